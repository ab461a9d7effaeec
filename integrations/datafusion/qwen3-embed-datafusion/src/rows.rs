//! The rows of a batch: columns of texts, their distinct rows, and the column of results.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeListArray, Float32Array, StringViewArray,
};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, Signature, TypeSignature, Volatility,
};

use crate::Error;

/// The texts of a call's arguments, a column for each argument.
pub(crate) struct Texts {
    columns: Vec<StringViewArray>,
    /// Whether all arguments are constants. Then the columns have one row.
    constant: bool,
    n_rows: usize,
}

impl Texts {
    /// # Errors
    ///
    /// An error of Arrow if an argument is not a text.
    pub(crate) fn of(args: &ScalarFunctionArgs) -> Result<Self> {
        let constant = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        Self::repeated(args, constant)
    }

    /// The texts of all rows, even if all arguments are constants.
    pub(crate) fn of_rows(args: &ScalarFunctionArgs) -> Result<Self> {
        Self::repeated(args, false)
    }

    fn repeated(args: &ScalarFunctionArgs, constant: bool) -> Result<Self> {
        let n_rows = if constant { 1 } else { args.number_rows };
        let column = |arg: &ColumnarValue| -> Result<StringViewArray> {
            let array = arg.to_array(n_rows)?;
            // Not every dictionary of strings has a direct conversion to views.
            let array = match array.data_type() {
                DataType::Dictionary(_, values) => cast(&array, values)?,
                _ => array,
            };
            Ok(cast(&array, &DataType::Utf8View)?.as_string_view().clone())
        };
        let columns = args.args.iter().map(column).collect::<Result<_>>()?;
        Ok(Self { columns, constant, n_rows })
    }

    pub(crate) fn n_columns(&self) -> usize {
        self.columns.len()
    }

    /// The distinct rows. `key` and `item` are the indices of columns; rows with the same key form a group.
    pub(crate) fn distinct(&self, key: Option<usize>, item: usize) -> Distinct<'_> {
        let mut groups = Vec::<Group<'_>>::new();
        let (mut group_of, mut item_of) = (HashMap::new(), HashMap::new());
        let places = (0..self.n_rows).map(|row| {
            let text = |column: &usize| -> Option<&str> {
                let column = &self.columns[*column];
                column.is_valid(row).then(|| column.value(row))
            };
            // A null in one of the columns makes the row null.
            let key = key.as_ref().map(|column| text(column).ok_or(())).transpose().ok()?;
            let item = text(&item)?;
            let group = *group_of.entry(key).or_insert_with(|| {
                groups.push(Group { key, items: Vec::new() });
                groups.len() - 1
            });
            let items = &mut groups[group].items;
            let item = *item_of.entry((group, item)).or_insert_with(|| {
                items.push(item);
                items.len() - 1
            });
            Some((group, item))
        });
        let places = places.collect();
        Distinct { groups, places }
    }

    /// The result of the call, from the column of results.
    pub(crate) fn result(&self, array: &ArrayRef) -> Result<ColumnarValue> {
        Ok(if self.constant {
            ColumnarValue::Scalar(ScalarValue::try_from_array(array, 0)?)
        } else {
            ColumnarValue::Array(array.clone())
        })
    }
}

/// Texts without repetitions, in groups.
pub(crate) struct Distinct<'a> {
    pub(crate) groups: Vec<Group<'a>>,
    /// For each row, the indices of its group and of its text in the group. `None` if the row is null.
    places: Vec<Option<(usize, usize)>>,
}

/// Texts with the same key: the same instruction, or the same query.
pub(crate) struct Group<'a> {
    pub(crate) key: Option<&'a str>,
    pub(crate) items: Vec<&'a str>,
}

impl Distinct<'_> {
    /// A column of vectors. `values` contains the vectors of each group.
    pub(crate) fn vectors(&self, values: &[Vec<f32>], dimensions: usize) -> Result<ArrayRef> {
        let mut column = Vec::with_capacity(self.places.len() * dimensions);
        for place in &self.places {
            match *place {
                Some((group, item)) => {
                    column.extend_from_slice(&values[group][item * dimensions..][..dimensions]);
                }
                None => column.resize(column.len() + dimensions, 0.0),
            }
        }
        let nulls: NullBuffer = self.places.iter().map(Option::is_some).collect();
        let nulls = Some(nulls).filter(|nulls| nulls.null_count() > 0);
        let values = Arc::new(Float32Array::from(column));
        let (item, size) = vector_parts(dimensions);
        Ok(Arc::new(FixedSizeListArray::try_new(item, size, values, nulls)?))
    }

    /// A column of numbers. `values` contains the numbers of each group.
    pub(crate) fn numbers(&self, values: &[Vec<f32>]) -> ArrayRef {
        let number =
            |place: &Option<(usize, usize)>| place.map(|(group, item)| values[group][item]);
        Arc::new(self.places.iter().map(number).collect::<Float32Array>())
    }
}

/// The signature of a function whose arguments are texts.
pub(crate) fn signature(n_arguments: std::ops::RangeInclusive<usize>) -> Signature {
    let texts = n_arguments.map(TypeSignature::String).collect();
    Signature::one_of(texts, Volatility::Immutable)
}

/// Checks the number of arguments.
pub(crate) fn check_number(
    function: &'static str,
    expected: std::ops::RangeInclusive<usize>,
    got: usize,
) -> Result<()> {
    if expected.contains(&got) {
        return Ok(());
    }
    let (min, max) = (*expected.start(), *expected.end());
    let expected = if min == max { min.to_string() } else { format!("{min} to {max}") };
    Err(Error::Arguments { function, expected, got }.into())
}

/// The field of a function's result. It is null if an argument is.
pub(crate) fn field(function: &str, data_type: DataType, args: &ReturnFieldArgs<'_>) -> FieldRef {
    let nullable = args.arg_fields.iter().any(|field| field.is_nullable());
    Field::new(function, data_type, nullable).into()
}

/// The type of a column of vectors.
pub(crate) fn vector_type(dimensions: usize) -> DataType {
    let (item, size) = vector_parts(dimensions);
    DataType::FixedSizeList(item, size)
}

/// The number of dimensions of a column of vectors. `None` if the type is another one.
pub(crate) fn dimensions_of(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::FixedSizeList(_, size) => usize::try_from(*size).ok(),
        _ => None,
    }
}

fn vector_parts(dimensions: usize) -> (Arc<Field>, i32) {
    let item = Field::new_list_field(DataType::Float32, false);
    // No model has that many dimensions.
    (Arc::new(item), i32::try_from(dimensions).unwrap_or(i32::MAX))
}
