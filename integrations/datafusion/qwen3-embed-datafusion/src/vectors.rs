//! Functions of vectors: `cosine_similarity`, `binary_quantize` and `hamming`.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, FixedSizeBinaryBuilder, Float32Array,
    LargeListArray, UInt32Array,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float32Type};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

use crate::{Error, rows};

/// A function of vectors.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Vectors {
    function: Function,
    signature: Signature,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Function {
    /// `cosine_similarity(a, b)`: vectors to `Float32`.
    CosineSimilarity,
    /// `binary_quantize(a)`: the signs of a vector as packed bits.
    BinaryQuantize,
    /// `hamming(a, b)`: packed bits to the number of different bits.
    Hamming,
}

impl Function {
    pub(crate) const ALL: [Self; 3] = [Self::CosineSimilarity, Self::BinaryQuantize, Self::Hamming];

    fn name(self) -> &'static str {
        match self {
            Self::CosineSimilarity => "cosine_similarity",
            Self::BinaryQuantize => "binary_quantize",
            Self::Hamming => "hamming",
        }
    }

    /// The type as which an argument is passed to the function.
    fn coerced(self, data_type: &DataType) -> Option<DataType> {
        match (self, data_type) {
            (Self::Hamming, DataType::Null | DataType::Binary | DataType::LargeBinary) => {
                Some(DataType::BinaryView)
            }
            (Self::Hamming, DataType::BinaryView | DataType::FixedSizeBinary(_)) => {
                Some(data_type.clone())
            }
            (Self::Hamming, _) => None,
            (_, DataType::Null) => Some(DataType::new_list(DataType::Float32, true)),
            (
                _,
                DataType::FixedSizeList(item, _) | DataType::List(item) | DataType::LargeList(item),
            ) if item.data_type().is_floating() => Some(data_type.clone()),
            _ => None,
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::CosineSimilarity | Self::BinaryQuantize => {
                "a vector (a list of floating-point numbers)"
            }
            Self::Hamming => "packed bits (Binary, LargeBinary, BinaryView or FixedSizeBinary)",
        }
    }

    fn n_arguments(self) -> usize {
        match self {
            Self::BinaryQuantize => 1,
            Self::CosineSimilarity | Self::Hamming => 2,
        }
    }
}

impl Vectors {
    pub(crate) fn new(function: Function) -> Self {
        Self { function, signature: Signature::user_defined(Volatility::Immutable) }
    }

    fn compute(&self, arguments: &[ArrayRef], result: &DataType) -> Result<ArrayRef> {
        let different = |error| {
            let qwen3_embed::Error::DimensionMismatch { left, right } = error else {
                return Error::of_model(self.function.name(), error, |_| None);
            };
            Error::Lengths { function: self.function.name(), left, right }
        };
        Ok(match (self.function, arguments) {
            (Function::CosineSimilarity, [a, b]) => {
                let (a, b) = (Floats::of(a)?, Floats::of(b)?);
                let cosine = |(a, b)| qwen3_embed::cosine(a, b).map_err(different);
                let rows =
                    (0..a.len()).map(|row| a.get(row).zip(b.get(row)).map(cosine).transpose());
                Arc::new(rows.collect::<Result<Float32Array, Error>>()?)
            }
            (Function::Hamming, [a, b]) => {
                let (a, b) = (bits(a)?, bits(b)?);
                let hamming = |(a, b)| qwen3_embed::hamming(a, b).map_err(different);
                let rows = a.iter().zip(&b).map(|(a, b)| a.zip(b).map(hamming).transpose());
                Arc::new(rows.collect::<Result<UInt32Array, Error>>()?)
            }
            (_, [vectors, ..]) => {
                let vectors = Floats::of(vectors)?;
                let DataType::FixedSizeBinary(size) = *result else {
                    let rows = (0..vectors.len()).map(|row| vectors.get(row));
                    let packed = rows.map(|vector| vector.map(qwen3_embed::pack_signs));
                    return Ok(Arc::new(packed.collect::<BinaryViewArray>()));
                };
                let mut packed = FixedSizeBinaryBuilder::with_capacity(vectors.len(), size);
                for row in 0..vectors.len() {
                    match vectors.get(row) {
                        Some(vector) => packed.append_value(qwen3_embed::pack_signs(vector))?,
                        None => packed.append_null(),
                    }
                }
                Arc::new(packed.finish())
            }
            (function, []) => {
                rows::check_number(function.name(), 1..=2, 0)?;
                datafusion::arrow::array::new_null_array(result, 0)
            }
        })
    }
}

impl ScalarUDFImpl for Vectors {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let (function, n) = (self.function.name(), self.function.n_arguments());
        rows::check_number(function, n..=n, types.len())?;
        let coerced = types.iter().enumerate().map(|(argument, data_type)| {
            let wrong = || {
                let (expected, got) = (self.function.expected(), data_type.to_string());
                Error::Argument { function, argument: argument + 1, expected, got }.into()
            };
            self.function.coerced(data_type).ok_or_else(wrong)
        });
        coerced.collect()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(match self.function {
            Function::CosineSimilarity => DataType::Float32,
            Function::Hamming => DataType::UInt32,
            Function::BinaryQuantize => match types.first().and_then(rows::dimensions_of) {
                Some(dimensions) => {
                    let n_bytes = dimensions.div_ceil(8);
                    DataType::FixedSizeBinary(i32::try_from(n_bytes).unwrap_or(i32::MAX))
                }
                None => DataType::BinaryView,
            },
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let n_rows = if constant { 1 } else { args.number_rows };
        let arrays = args.args.iter().map(|arg| arg.to_array(n_rows));
        let result = self.compute(&arrays.collect::<Result<Vec<_>>>()?, args.return_type())?;
        Ok(if constant {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)
        } else {
            ColumnarValue::Array(result)
        })
    }
}

/// A column of vectors of f32.
struct Floats {
    lists: LargeListArray,
    values: Float32Array,
}

impl Floats {
    fn of(array: &ArrayRef) -> Result<Self> {
        let lists = cast(array, &DataType::new_large_list(DataType::Float32, true))?;
        let lists = lists.as_list::<i64>().clone();
        let values = lists.values().as_primitive::<Float32Type>().clone();
        Ok(Self { lists, values })
    }

    fn len(&self) -> usize {
        self.lists.len()
    }

    /// The vector of a row. `None` if it is null, or if one of its values is.
    fn get(&self, row: usize) -> Option<&[f32]> {
        let offsets = self.lists.value_offsets();
        // Offsets of a valid array are indices of its values.
        let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
        let has_null = || self.values.slice(start, end - start).null_count() > 0;
        (self.lists.is_valid(row) && !(self.values.null_count() > 0 && has_null()))
            .then(|| &self.values.values()[start..end])
    }
}

/// A column of packed bits.
fn bits(array: &ArrayRef) -> Result<BinaryViewArray> {
    Ok(cast(array, &DataType::BinaryView)?.as_binary_view().clone())
}
