//! Vectors in the types of the output.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use arrow_array::types::{Float16Type, Float32Type, Int8Type, UInt8Type};
use arrow_array::{ArrayRef, ArrowPrimitiveType, FixedSizeListArray, PrimitiveArray};
use arrow_schema::{ArrowError, Field};
use half::f16;
use qwen3_embed::Embeddings;

use crate::embed::args::VectorFormat;

/// The vectors of some texts, and the number of values of each.
pub(in crate::embed) struct Vectors {
    values: Values,
    width: usize,
}

/// Row-major values.
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    /// With the scale of each vector.
    Int8(Vec<i8>, Vec<f32>),
    /// Packed bits.
    Binary(Vec<u8>),
}

impl Vectors {
    /// Converts the vectors of texts to the type of the output.
    pub(in crate::embed) fn new(
        vectors: Vec<f32>,
        dimensions: usize,
        format: VectorFormat,
    ) -> Result<Self> {
        let embeddings = Embeddings::new(vectors, dimensions)?;
        let (values, width) = match format {
            VectorFormat::F32 => (Values::F32(embeddings.into_vec()), dimensions),
            VectorFormat::F16 => (Values::F16(embeddings.to_f16().into_vec()), dimensions),
            VectorFormat::Int8 => {
                let int8 = embeddings.to_int8_per_vector();
                let scales = int8.scales().as_slice().to_vec();
                (Values::Int8(int8.into_vec(), scales), dimensions)
            }
            VectorFormat::Binary => {
                (Values::Binary(embeddings.to_binary().into_vec()), dimensions.div_ceil(8))
            }
        };
        Ok(Self { values, width })
    }

    /// The values of some vectors, in the byte order of little-endian machines.
    pub(super) fn bytes(&self, rows: Range<usize>) -> Vec<u8> {
        let range = rows.start * self.width..rows.end * self.width;
        match &self.values {
            Values::F32(values) => values[range].iter().flat_map(|v| v.to_le_bytes()).collect(),
            Values::F16(values) => values[range].iter().flat_map(|v| v.to_le_bytes()).collect(),
            Values::Int8(values, _) => values[range].iter().flat_map(|v| v.to_le_bytes()).collect(),
            Values::Binary(values) => values[range].to_vec(),
        }
    }

    /// The scales of some vectors, if they have scales.
    pub(super) fn scales(&self, rows: Range<usize>) -> Option<&[f32]> {
        match &self.values {
            Values::Int8(_, scales) => Some(&scales[rows]),
            _ => None,
        }
    }

    /// The scales of some vectors in f32, in the byte order of little-endian machines, if they have scales.
    pub(super) fn scale_bytes(&self, rows: Range<usize>) -> Option<Vec<u8>> {
        let scales = self.scales(rows)?;
        Some(scales.iter().flat_map(|scale| scale.to_le_bytes()).collect())
    }

    /// The values of one vector in JSON. Values in f16 are written as the same values in f32.
    pub(super) fn json(&self, row: usize) -> serde_json::Result<String> {
        let range = row * self.width..(row + 1) * self.width;
        match &self.values {
            Values::F32(values) => serde_json::to_string(&values[range]),
            Values::F16(values) => {
                let values: Vec<f32> = values[range].iter().map(|value| value.to_f32()).collect();
                serde_json::to_string(&values)
            }
            Values::Int8(values, _) => serde_json::to_string(&values[range]),
            Values::Binary(values) => serde_json::to_string(&values[range]),
        }
    }

    /// Some vectors as a column of lists.
    pub(super) fn column(&self, rows: Range<usize>) -> Result<ArrayRef, ArrowError> {
        let range = rows.start * self.width..rows.end * self.width;
        let values = match &self.values {
            Values::F32(values) => array::<Float32Type>(&values[range]),
            Values::F16(values) => array::<Float16Type>(&values[range]),
            Values::Int8(values, _) => array::<Int8Type>(&values[range]),
            Values::Binary(values) => array::<UInt8Type>(&values[range]),
        };
        let item = Field::new_list_field(values.data_type().clone(), false);
        let width = i32::try_from(self.width)
            .map_err(|error| ArrowError::InvalidArgumentError(error.to_string()))?;
        Ok(Arc::new(FixedSizeListArray::try_new(item.into(), width, values, None)?))
    }
}

/// Values as an array of Arrow.
fn array<T: ArrowPrimitiveType>(values: &[T::Native]) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::from_iter_values(values.iter().copied()))
}
