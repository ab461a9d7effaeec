//! Activations: the rows that kernels read and write, in memory of the caller.

use std::marker::PhantomData;

use half::bf16;

use super::aligned::Aligned;
use super::arithmetic::Arithmetic;
use super::simd::Simd;
use super::vector::{load_part, store_part};

/// A matrix [rows, columns] to read. There may be gaps between rows.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    pub(super) values: Values<'a>,
    pub(super) n_rows: usize,
    pub(super) n_columns: usize,
    /// Values from the beginning of a row to the beginning of the next row.
    pub(super) stride: usize,
}

/// Values to read.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// As f32.
    F32(&'a [f32]),
    /// As bf16.
    Bf16(&'a [bf16]),
    /// Quantized for one weight, by [`PackedWeight::quantize`](super::PackedWeight::quantize).
    Quantized(Quantized<'a>),
}

/// Quantized activations.
#[derive(Debug, Clone, Copy)]
pub struct Quantized<'a> {
    /// The arithmetic for which the activations are quantized.
    pub(super) arithmetic: Arithmetic,
    pub(super) buffer: &'a QuantizeBuffer,
}

/// A buffer for quantized activations. Keep it from call to call, so that calls do not allocate.
#[derive(Debug, Default)]
pub struct QuantizeBuffer {
    /// For activations in 16 bits.
    pub(super) i16: Aligned<i16>,
    /// For activations in 8 bits.
    pub(super) i8: Aligned<i8>,
    /// One scale for each row, for formats that do not store scales with the values.
    pub(super) scales: Vec<f32>,
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

impl<'a> Rows<'a> {
    /// A matrix of f32 or bf16 values whose rows begin `stride` values apart, the first at the first of `values`.
    ///
    /// # Panics
    ///
    /// If a row is longer than the stride, if `values` is too short for the rows, or if the values are quantized.
    pub fn new(
        values: impl Into<Values<'a>>,
        [n_rows, n_columns]: [usize; 2],
        stride: usize,
    ) -> Self {
        let values = values.into();
        let n_values = match values {
            Values::F32(values) => values.len(),
            Values::Bf16(values) => values.len(),
            Values::Quantized(_) => {
                panic!("expected rows of f32 or bf16 values, got quantized values")
            }
        };
        assert_fits(n_values, [n_rows, n_columns], stride);
        Self { values, n_rows, n_columns, stride }
    }

    /// The values of a row, which must be f32 or bf16.
    pub(super) fn row(&self, row: usize) -> Values<'a> {
        let range = row * self.stride..row * self.stride + self.n_columns;
        match self.values {
            Values::F32(values) => Values::F32(&values[range]),
            Values::Bf16(values) => Values::Bf16(&values[range]),
            Values::Quantized(_) => panic!("expected f32 or bf16 values, got quantized values"),
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

    /// The buffer of rows that were quantized for this arithmetic.
    ///
    /// # Panics
    ///
    /// If the rows were not quantized, or for another arithmetic.
    pub(super) fn quantized_for(&self, arithmetic: Arithmetic) -> &'a QuantizeBuffer {
        match self.values {
            Values::Quantized(values) if values.arithmetic == arithmetic => values.buffer,
            _ => panic!("the weight multiplies activations quantized for {arithmetic:?}"),
        }
    }
}

/// A matrix [rows, columns] to write. There may be gaps between rows, which are not written.
///
/// Several tasks write disjoint parts of the matrix at the same time.
#[derive(Debug)]
pub struct RowsMut<'a> {
    first: First,
    pub(super) n_rows: usize,
    pub(super) n_columns: usize,
    stride: usize,
    values: PhantomData<&'a mut [f32]>,
}

/// The address of the first value, with the type of the values.
#[derive(Debug, Clone, Copy)]
enum First {
    F32(*mut f32),
    Bf16(*mut bf16),
}

// SAFETY: elements are accessed through the unsafe methods below, whose callers promise that no two tasks access the
// same element, and through methods that borrow the matrix mutably.
unsafe impl Sync for RowsMut<'_> {}
// SAFETY: as above.
unsafe impl Send for RowsMut<'_> {}

/// Values to write.
#[derive(Debug)]
pub enum ValuesMut<'a> {
    /// As f32.
    F32(&'a mut [f32]),
    /// As bf16: results are rounded to the nearest.
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
    /// A matrix whose rows begin `stride` values apart, the first at the first of `values`.
    ///
    /// # Panics
    ///
    /// If a row is longer than the stride, or if `values` is too short for the rows.
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
                // SAFETY: `new` has checked the number of values, and `self` is borrowed mutably.
                Some(unsafe { std::slice::from_raw_parts_mut(first, self.n_rows * self.n_columns) })
            }
            _ => None,
        }
    }

    /// Row `row`, whose values must be f32.
    ///
    /// # Panics
    ///
    /// If there is no such row, or if the values are bf16.
    pub(super) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        let First::F32(first) = self.first else { panic!("expected a matrix of f32, got bf16") };
        assert!(row < self.n_rows, "row {row} of {}", self.n_rows);
        // SAFETY: `new` has checked that the row is among the values, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(first.add(row * self.stride), self.n_columns) }
    }

    /// Whether the values are f32 rather than bf16.
    pub(super) fn is_f32(&self) -> bool {
        matches!(self.first, First::F32(_))
    }

    /// Stores a register at `row` and `column`, up to the column before `end`.
    ///
    /// # Safety
    ///
    /// `row` is below `n_rows`, `column` is below `end`, `end` is at most `n_columns`, and no other task accesses these
    /// elements.
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
        // SAFETY: `new` has checked that the rows are among the values. No other task accesses these elements, as the
        // caller promises, so the slice is the only reference to them.
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

    /// Adds a register to the values at `row` and `column`, up to the last column. The values must be f32.
    ///
    /// # Safety
    ///
    /// As of [`store`](Self::store), where `end` is `n_columns`.
    #[inline(always)]
    pub(super) unsafe fn add<S: Simd>(&self, s: S, row: usize, column: usize, x: S::V) {
        let First::F32(first) = self.first else { unreachable!("results are added to f32 only") };
        let (at, n) = (row * self.stride + column, S::LANES.min(self.n_columns - column));
        // SAFETY: as in `store`.
        let out = unsafe { std::slice::from_raw_parts_mut(first.add(at), n) };
        store_part(s, out, s.add(load_part(s, out), x));
    }
}

/// Panics unless `n_values` are enough for the shape and the stride.
fn assert_fits(n_values: usize, [n_rows, n_columns]: [usize; 2], stride: usize) {
    assert!(n_columns <= stride, "rows of {n_columns} columns do not fit in a stride of {stride}");
    let needed = match n_rows.checked_sub(1) {
        None => Some(0),
        Some(gaps) => gaps.checked_mul(stride).and_then(|start| start.checked_add(n_columns)),
    };
    assert!(
        needed.is_some_and(|needed| n_values >= needed),
        "{n_values} values are too few for [{n_rows}, {n_columns}] with a stride of {stride}"
    );
}
