//! Conversions between vectors and arrays of ndarray.

use ndarray::{Array2, ArrayView2};

use crate::{Embeddings, Error, Result};

impl Embeddings {
    /// A view of the vectors as an array with a row for each vector, without a copy.
    ///
    /// # Examples
    ///
    /// ```
    /// use qwen3_embed::Embeddings;
    ///
    /// let embeddings = Embeddings::new(vec![1.0, 0.0, 0.0, 1.0, 0.6, 0.8], 2)?;
    /// assert_eq!(embeddings.view().dim(), (3, 2));
    /// let mean = embeddings.view().mean_axis(ndarray::Axis(0));
    /// # assert!(mean.is_some());
    /// # Ok::<(), qwen3_embed::Error>(())
    /// ```
    pub fn view(&self) -> ArrayView2<'_, f32> {
        let shape = (self.len(), self.dimensions());
        ArrayView2::from_shape(shape, self.as_slice()).expect("the values are whole rows")
    }
}

/// Converts vectors to an array with a row for each vector, without a copy.
impl From<Embeddings> for Array2<f32> {
    fn from(embeddings: Embeddings) -> Self {
        let shape = (embeddings.len(), embeddings.dimensions());
        Array2::from_shape_vec(shape, embeddings.into_vec()).expect("the values are whole rows")
    }
}

/// Converts an array with a row for each vector. The values are copied unless they are stored row by row and fill their
/// allocation.
///
/// # Examples
///
/// ```
/// use qwen3_embed::Embeddings;
///
/// let array = ndarray::array![[1.0f32, 0.0], [0.6, 0.8]];
/// let embeddings = Embeddings::try_from(array.clone())?;
/// assert_eq!(embeddings.row(1), [0.6, 0.8]);
/// assert_eq!(ndarray::Array2::from(embeddings), array);
/// # Ok::<(), qwen3_embed::Error>(())
/// ```
impl TryFrom<Array2<f32>> for Embeddings {
    type Error = Error;

    /// # Errors
    ///
    /// As of [`Embeddings::new`].
    fn try_from(array: Array2<f32>) -> Result<Self> {
        let (n_values, dimensions) = (array.len(), array.ncols());
        let values = if array.is_standard_layout() {
            match array.into_raw_vec_and_offset() {
                (values, None | Some(0)) if values.len() == n_values => values,
                (values, offset) => values[offset.unwrap_or(0)..][..n_values].to_vec(),
            }
        } else {
            array.iter().copied().collect()
        };
        Self::new(values, dimensions)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Axis, Slice, array};

    use super::*;

    #[test]
    fn arrays_in_any_layout_become_the_same_vectors() {
        let array = array![[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]];
        let embeddings = Embeddings::try_from(array.clone()).unwrap();
        assert_eq!(embeddings.as_slice(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
        assert_eq!(embeddings.view(), array);
        let transposed = Embeddings::try_from(array.clone().reversed_axes()).unwrap();
        assert_eq!(transposed.row(0), [1.0, 4.0, 7.0]);
        // Rows and columns of a larger allocation.
        for (rows, columns) in [(1..3, 0..3), (0..2, 0..3), (1..3, 1..2), (1..1, 0..2)] {
            let mut part = array.clone();
            part.slice_axis_inplace(Axis(0), Slice::from(rows));
            part.slice_axis_inplace(Axis(1), Slice::from(columns));
            let embeddings = Embeddings::try_from(part.clone()).unwrap();
            assert_eq!(Array2::from(embeddings), part);
        }
    }

    #[test]
    fn rejects_arrays_without_columns_and_values_that_are_not_finite() {
        let empty = Embeddings::try_from(Array2::<f32>::zeros((3, 0)));
        assert!(matches!(empty, Err(Error::NotWholeRows { .. })));
        let nan = Embeddings::try_from(array![[1.0, 2.0], [f32::NAN, 3.0]]);
        assert!(matches!(nan, Err(Error::NotFinite { row: 1, dimension: 0, .. })));
    }
}
