//! What goes into kernels and comes out of them: rows of values, of one type or another, in memory
//! that is the caller's.

use std::marker::PhantomData;

use half::bf16;

use super::product::{block_row_size, byte_row_size};
use super::simd::Simd;
use super::vector::{load_part, store_part};

/// How a product multiplies. Whole numbers within a group apart, it sums in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// f32 activations, and weights that are f32 or are widened to it.
    F32,
    /// bf16 activations and weights.
    Bf16,
    /// Activations in 16 bits with a scale for each row, and weights in 8 bits with a scale for each
    /// group of 32 input features of an output. Products are summed in whole numbers.
    Int8,
    /// Activations and weights in 8 bits, both with a scale for each group of
    /// [`BYTE_GROUP`](super::BYTE_GROUP) input
    /// features. Products are summed in whole numbers. Without an instruction for it, this is slower than
    /// [`Int8`](Self::Int8).
    Bytes,
    /// Activations in 8 bits with a scale for each block of [`BLOCK`](super::BLOCK) input features,
    /// and weights in 4 to 6 bits: see [`Bits`](super::Bits). Products are summed in whole numbers.
    Blocks,
}

/// A matrix [rows, columns] to read. Rows may have a gap between them.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    pub(super) values: Values<'a>,
    pub(super) n_rows: usize,
    pub(super) n_columns: usize,
    pub(super) stride: usize,
}

/// Values to read, of any type.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// As f32.
    F32(&'a [f32]),
    /// As bf16.
    Bf16(&'a [bf16]),
    /// In 16 bits, for one weight only: see [`Quantised`](super::Quantised).
    Int16 {
        /// Multiples of the row's scale.
        values: &'a [i16],
        /// One for each row.
        scales: &'a [f32],
    },
    /// In 8 bits, each group with its scale: see [`Quantised`](super::Quantised).
    Bytes(&'a [i8]),
    /// In 8 bits as well, for weights in blocks: see [`Quantised`](super::Quantised).
    Blocks(&'a [i8]),
}

impl<'a> From<&'a [f32]> for Values<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a [bf16]> for Values<'a> {
    fn from(values: &'a [bf16]) -> Self {
        Self::Bf16(values)
    }
}

impl Values<'_> {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::Int16 { values, .. } => values.len(),
            Self::Bytes(values) | Self::Blocks(values) => values.len(),
        }
    }
}

impl<'a> Rows<'a> {
    /// A matrix whose rows begin `stride` elements apart, from the first element of `values` on.
    ///
    /// # Panics
    ///
    /// If a row is longer than the stride, or if there are fewer values.
    pub fn new(
        values: impl Into<Values<'a>>,
        [n_rows, n_columns]: [usize; 2],
        stride: usize,
    ) -> Self {
        let values = values.into();
        let row_size = match values {
            Values::Int16 { scales, .. } => {
                assert!(scales.len() >= n_rows, "a scale for each of {n_rows} rows");
                n_columns
            }
            Values::Bytes(_) => byte_row_size(n_columns),
            Values::Blocks(_) => block_row_size(n_columns),
            Values::F32(_) | Values::Bf16(_) => n_columns,
        };
        assert_fits(values.len(), [n_rows, row_size], stride);
        Self { values, n_rows, n_columns, stride }
    }

    /// The values of a row, if they are f32 or bf16.
    pub(super) fn row(&self, row: usize) -> Option<Values<'a>> {
        let range = row * self.stride..row * self.stride + self.n_columns;
        match self.values {
            Values::F32(values) => Some(Values::F32(&values[range])),
            Values::Bf16(values) => Some(Values::Bf16(&values[range])),
            Values::Int16 { .. } | Values::Bytes(_) | Values::Blocks(_) => None,
        }
    }

    /// The values, row by row, if they are f32 without gaps.
    pub fn as_f32(&self) -> Option<&'a [f32]> {
        match self.values {
            Values::F32(values) if self.stride == self.n_columns || self.n_rows <= 1 => {
                Some(&values[..self.n_rows * self.n_columns])
            }
            _ => None,
        }
    }
}

/// A matrix [rows, columns] to write. Rows may have a gap between them, which is left as it is.
///
/// Tasks write disjoint parts of it at the same time.
#[derive(Debug)]
pub struct RowsMut<'a> {
    first: First,
    pub(super) n_rows: usize,
    pub(super) n_columns: usize,
    stride: usize,
    values: PhantomData<&'a mut [f32]>,
}

/// The first of the values to write, of either type.
#[derive(Debug, Clone, Copy)]
enum First {
    F32(*mut f32),
    Bf16(*mut bf16),
}

// SAFETY: elements are only reached through the unsafe methods below, whose callers vouch that no
// two tasks touch the same.
unsafe impl Sync for RowsMut<'_> {}
// SAFETY: as above.
unsafe impl Send for RowsMut<'_> {}

/// Values to write, of either type.
#[derive(Debug)]
pub enum ValuesMut<'a> {
    /// As f32.
    F32(&'a mut [f32]),
    /// As bf16: each is rounded to the nearest.
    Bf16(&'a mut [bf16]),
}

impl<'a> From<&'a mut [f32]> for ValuesMut<'a> {
    fn from(values: &'a mut [f32]) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a mut [bf16]> for ValuesMut<'a> {
    fn from(values: &'a mut [bf16]) -> Self {
        Self::Bf16(values)
    }
}

impl<'a> RowsMut<'a> {
    /// A matrix whose rows begin `stride` elements apart, from the first element of `values` on.
    ///
    /// # Panics
    ///
    /// If a row is longer than the stride, or if there are fewer values.
    pub fn new(
        values: impl Into<ValuesMut<'a>>,
        [n_rows, n_columns]: [usize; 2],
        stride: usize,
    ) -> Self {
        let (n_values, first) = match values.into() {
            ValuesMut::F32(values) => (values.len(), First::F32(values.as_mut_ptr())),
            ValuesMut::Bf16(values) => (values.len(), First::Bf16(values.as_mut_ptr())),
        };
        assert_fits(n_values, [n_rows, n_columns], stride);
        Self { first, n_rows, n_columns, stride, values: PhantomData }
    }

    /// The values, row by row, if they are f32 without gaps.
    pub fn as_f32(&mut self) -> Option<&mut [f32]> {
        match self.first {
            First::F32(first) if self.stride == self.n_columns || self.n_rows <= 1 => {
                // SAFETY: `new` has checked that so many are there, and `self` borrows them.
                Some(unsafe { std::slice::from_raw_parts_mut(first, self.n_rows * self.n_columns) })
            }
            _ => None,
        }
    }

    /// Row `row`, of f32 values.
    ///
    /// # Panics
    ///
    /// If there is no such row, or the values are bf16.
    pub(super) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        let First::F32(first) = self.first else { panic!("f32 values are asked for") };
        assert!(row < self.n_rows, "row {row} of {}", self.n_rows);
        // SAFETY: `new` has checked that the row is among the values, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(first.add(row * self.stride), self.n_columns) }
    }

    /// Whether the values are f32, and not bf16.
    pub(super) fn is_f32(&self) -> bool {
        matches!(self.first, First::F32(_))
    }

    /// Writes a register at `row` and `column`, as much of it as there are columns before `end`.
    ///
    /// # Safety
    ///
    /// `row` is below `n_rows`, `column` is below `end`, `end` is at most `n_columns`, and no other
    /// task touches these elements.
    #[inline(always)]
    pub(super) unsafe fn store<S: Simd>(
        &self,
        s: S,
        row: usize,
        column: usize,
        end: usize,
        x: S::V,
    ) {
        let (at, n) = (row * self.stride + column, S::LANES.min(end - column));
        // SAFETY: `new` has checked that a row's columns are among the values, and the caller that
        // these are nobody else's: the slice is the only reference to them.
        unsafe {
            match self.first {
                First::F32(first) => {
                    store_part(s, std::slice::from_raw_parts_mut(first.add(at), n), x);
                }
                First::Bf16(first) => {
                    store_part(s, std::slice::from_raw_parts_mut(first.add(at), n), x);
                }
            }
        }
    }

    /// Adds a register to what is at `row` and `column`, as much of it as there are columns. The
    /// values are f32.
    ///
    /// # Safety
    ///
    /// As [`store`](Self::store), with `n_columns` for the end.
    #[inline(always)]
    pub(super) unsafe fn add<S: Simd>(&self, s: S, row: usize, column: usize, x: S::V) {
        let First::F32(first) = self.first else { unreachable!("only f32 is added to") };
        let (at, n) = (row * self.stride + column, S::LANES.min(self.n_columns - column));
        // SAFETY: as in `store`.
        let out = unsafe { std::slice::from_raw_parts_mut(first.add(at), n) };
        store_part(s, out, s.add(load_part(s, out), x));
    }
}

/// Panics unless `n_values` are as many as the shape and the stride ask for.
fn assert_fits(n_values: usize, [n_rows, n_columns]: [usize; 2], stride: usize) {
    assert!(n_columns <= stride, "rows of {n_columns} columns are {stride} apart");
    let needed = match n_rows.checked_sub(1) {
        None => Some(0),
        Some(gaps) => gaps.checked_mul(stride).and_then(|start| start.checked_add(n_columns)),
    };
    assert!(
        needed.is_some_and(|needed| n_values >= needed),
        "{n_values} values for [{n_rows}, {n_columns}], {stride} apart"
    );
}
