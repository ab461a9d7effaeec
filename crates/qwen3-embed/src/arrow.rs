//! Conversions between vectors and arrays of Arrow.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, FixedSizeBinaryArray, FixedSizeListArray, Float16Array, Float32Array,
    Int8Array, UInt8Array,
};
use arrow_schema::{ArrowError, Field};

use crate::{BinaryEmbeddings, Embeddings, Error, F16Embeddings, Int8Embeddings, Result};

/// Converts vectors to an array with a list for each vector, without a copy.
///
/// # Examples
///
/// ```
/// use arrow_array::FixedSizeListArray;
/// use qwen3_embed::Embeddings;
///
/// let embeddings = Embeddings::new(vec![1.0, 0.0, 0.0, 1.0, 0.6, 0.8], 2)?;
/// let array = FixedSizeListArray::try_from(embeddings.clone())?;
/// assert_eq!(array.value_length(), 2);
/// assert_eq!(Embeddings::try_from(&array)?, embeddings);
/// # Ok::<(), qwen3_embed::Error>(())
/// ```
impl TryFrom<Embeddings> for FixedSizeListArray {
    type Error = Error;

    /// # Errors
    ///
    /// [`Error::Dimensions`] if the number of dimensions is not in the range of i32.
    fn try_from(embeddings: Embeddings) -> Result<Self> {
        let dimensions = embeddings.dimensions();
        lists(Arc::new(Float32Array::from(embeddings.into_vec())), dimensions)
    }
}

/// Converts vectors to an array with a list for each vector, without a copy.
impl TryFrom<F16Embeddings> for FixedSizeListArray {
    type Error = Error;

    /// # Errors
    ///
    /// [`Error::Dimensions`] if the number of dimensions is not in the range of i32.
    fn try_from(embeddings: F16Embeddings) -> Result<Self> {
        let dimensions = embeddings.dimensions();
        lists(Arc::new(Float16Array::from(embeddings.into_vec())), dimensions)
    }
}

/// Converts the integers of vectors to an array with a list for each vector, without a copy. Store the
/// [scales](Int8Embeddings::scales) elsewhere.
impl TryFrom<Int8Embeddings> for FixedSizeListArray {
    type Error = Error;

    /// # Errors
    ///
    /// [`Error::Dimensions`] if the number of dimensions is not in the range of i32.
    fn try_from(embeddings: Int8Embeddings) -> Result<Self> {
        let dimensions = embeddings.dimensions();
        lists(Arc::new(Int8Array::from(embeddings.into_vec())), dimensions)
    }
}

/// Converts vectors of bits to an array with the bytes of each vector, without a copy.
impl TryFrom<BinaryEmbeddings> for FixedSizeBinaryArray {
    type Error = Error;

    /// # Errors
    ///
    /// [`Error::Dimensions`] if the number of bytes of a vector is not in the range of i32.
    fn try_from(embeddings: BinaryEmbeddings) -> Result<Self> {
        let size = size(embeddings.dimensions().div_ceil(8))?;
        let (_, bytes, _) = UInt8Array::from(embeddings.into_vec()).into_parts();
        Ok(Self::try_new(size, bytes.into_inner(), None)?)
    }
}

/// Copies the vectors of an array with a list of f32 values for each vector.
impl TryFrom<&FixedSizeListArray> for Embeddings {
    type Error = Error;

    /// # Errors
    ///
    /// [`Error::Arrow`] if the values are not f32, or if a list or a value is null; the others as of [`Embeddings::new`].
    fn try_from(array: &FixedSizeListArray) -> Result<Self> {
        let values: &Float32Array = values(array, "Float32")?;
        Self::new(values.values().to_vec(), length(array))
    }
}

/// Copies the vectors of an array with a list of f16 values for each vector.
impl TryFrom<&FixedSizeListArray> for F16Embeddings {
    type Error = Error;

    /// # Errors
    ///
    /// [`Error::Arrow`] if the values are not f16, or if a list or a value is null; the others as of
    /// [`F16Embeddings::new`].
    fn try_from(array: &FixedSizeListArray) -> Result<Self> {
        let values: &Float16Array = values(array, "Float16")?;
        Self::new(values.values().to_vec(), length(array))
    }
}

/// Lists of `dimensions` values each.
fn lists(values: ArrayRef, dimensions: usize) -> Result<FixedSizeListArray> {
    let field = Field::new_list_field(values.data_type().clone(), false);
    Ok(FixedSizeListArray::try_new(Arc::new(field), size(dimensions)?, values, None)?)
}

/// The size of a list or of a sequence of bytes.
fn size(n: usize) -> Result<i32> {
    let max = i32::MAX as usize;
    i32::try_from(n).map_err(|_| Error::Dimensions { got: n, min: 1, max })
}

/// The number of values of each list.
fn length(array: &FixedSizeListArray) -> usize {
    usize::try_from(array.value_length()).unwrap_or(0)
}

/// The values of all lists, which must have the type `T` and must not be null.
fn values<'a, T: 'static>(array: &'a FixedSizeListArray, name: &str) -> Result<&'a T> {
    let values = array.values();
    let got = array.data_type();
    let Some(typed) = values.as_any().downcast_ref() else {
        let message = format!("expected a FixedSizeList of {name}, got {got}");
        return Err(ArrowError::InvalidArgumentError(message).into());
    };
    if let Some(row) = (0..array.len()).find(|&row| array.is_null(row)) {
        let message = format!("vector {row} is null");
        return Err(ArrowError::InvalidArgumentError(message).into());
    }
    if let Some(at) = (0..values.len()).find(|&at| values.is_null(at)) {
        let (row, dimension) = (at / length(array).max(1), at % length(array).max(1));
        let message = format!("vector {row} has a null at dimension {dimension}");
        return Err(ArrowError::InvalidArgumentError(message).into());
    }
    Ok(typed)
}

#[cfg(test)]
mod tests {
    use arrow_array::types::Float32Type;
    use arrow_schema::DataType;

    use super::*;
    use crate::Int8Scales;

    fn embeddings() -> Embeddings {
        Embeddings::new(vec![1.0, -0.5, 0.25, 2.0, 0.0, -3.0], 3).unwrap()
    }

    #[test]
    fn vectors_survive_a_conversion_to_arrow_and_back() {
        let array = FixedSizeListArray::try_from(embeddings()).unwrap();
        assert_eq!(
            (array.len(), array.value_length(), array.value_type()),
            (2, 3, DataType::Float32)
        );
        assert_eq!(Embeddings::try_from(&array).unwrap(), embeddings());
        assert_eq!(Embeddings::try_from(&array.slice(1, 1)).unwrap().as_slice(), [2.0, 0.0, -3.0]);
        let halves = FixedSizeListArray::try_from(embeddings().to_f16()).unwrap();
        assert_eq!(F16Embeddings::try_from(&halves).unwrap(), embeddings().to_f16());
        let none = Embeddings::new(Vec::new(), 3).unwrap();
        let array = FixedSizeListArray::try_from(none.clone()).unwrap();
        assert_eq!(Embeddings::try_from(&array).unwrap(), none);
    }

    #[test]
    fn integers_and_bits_are_those_of_the_vectors() {
        let scales = Int8Scales::PerDimension(vec![0.1; 3]);
        let int8 = embeddings().to_int8(&scales).unwrap();
        let array = FixedSizeListArray::try_from(int8.clone()).unwrap();
        let values = array.values().as_any().downcast_ref::<Int8Array>().unwrap();
        assert_eq!(values.values(), int8.as_slice());
        let array = FixedSizeBinaryArray::try_from(embeddings().to_binary()).unwrap();
        assert_eq!(
            (array.len(), array.value(0), array.value(1)),
            (2, &[0b1010_0000][..], &[0b1000_0000][..])
        );
    }

    #[test]
    fn rejects_other_types_and_nulls() {
        let check = |array: &FixedSizeListArray, message: &str| {
            let error = Embeddings::try_from(array).unwrap_err();
            assert!(matches!(error, Error::Arrow(_)));
            assert!(error.to_string().contains(message), "{error}");
        };
        let halves = FixedSizeListArray::try_from(embeddings().to_f16()).unwrap();
        check(&halves, "expected a FixedSizeList of Float32, got");
        let with_nulls = |rows: Vec<Option<Vec<Option<f32>>>>| {
            FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(rows, 2)
        };
        let pair = Some(vec![Some(1.0), Some(2.0)]);
        check(&with_nulls(vec![pair.clone(), None]), "vector 1 is null");
        let null_value = Some(vec![Some(1.0), None]);
        check(&with_nulls(vec![pair, null_value]), "vector 1 has a null at dimension 1");
    }
}
