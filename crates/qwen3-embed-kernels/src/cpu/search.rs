//! The comparison of one query with many stored vectors, for searches without an index.
//!
//! Each function reads the rows once, from the first to the last, and writes one result for each row. A search is
//! limited by the memory, so a kernel computes all that it needs from a value while the value is in a register: with the
//! dot product, also the squared norm of the row.
//!
//! ```text
//! for each row:
//!     for each register of values, the last of which is filled up with zeros:
//!         dots[i] += query · row
//!         squares[i] += row · row        with the next of four i
//!     out = [sum of all lanes of dots, sum of all lanes of squares]
//! ```
//!
//! Rows of integers and of bits are compared exactly, so their results are the same in every kernel set.

use half::f16;

use super::dispatch::Kernels;
use super::scalar::Widened;
use super::simd::{Simd, SimdOp};
use super::vector::load_part;

/// The dot product of the query with each row, and the squared norm of each row, in f32: `out = [query · row, row · row]`.
///
/// # Shapes
///
/// `query` is `[D]` and not empty, `rows` is [rows, D].
///
/// # Panics
///
/// If a shape is different.
pub fn dots_f32(kernels: &Kernels, query: &[f32], rows: &[f32], out: &mut [[f32; 2]]) {
    assert_rows(query, rows, out);
    kernels.run(Dots { query, rows, out });
}

/// [`dots_f32`] for rows in f16, which are widened to f32.
///
/// # Panics
///
/// If a shape is different.
pub fn dots_f16(kernels: &Kernels, query: &[f32], rows: &[f16], out: &mut [[f32; 2]]) {
    assert_rows(query, rows, out);
    kernels.run(Dots { query, rows, out });
}

/// The dot product of a query of 16-bit integers with each row of 8-bit integers. The result is exact if the magnitudes
/// of the query's values add up to at most [`LARGEST_QUERY`], whatever the rows are. Otherwise, a sum may wrap around.
///
/// # Shapes
///
/// `query` is `[D]` and not empty, `rows` is [rows, D].
///
/// # Panics
///
/// If a shape is different.
pub fn dots_int8(kernels: &Kernels, query: &[i16], rows: &[i8], out: &mut [i32]) {
    assert_rows(query, rows, out);
    kernels.run(DotsInt8 { query, rows, out });
}

/// The largest sum of the magnitudes of a query with which [`dots_int8`] does not overflow.
pub const LARGEST_QUERY: i32 = i32::MAX / 128;

/// The Hamming distance between the query and each row: the number of bits in which they differ.
///
/// # Shapes
///
/// `query` is [B] bytes and not empty, `rows` is [rows, B].
///
/// # Panics
///
/// If a shape is different.
pub fn hamming(kernels: &Kernels, query: &[u8], rows: &[u8], out: &mut [u32]) {
    assert_rows(query, rows, out);
    kernels.run(Hamming { query, rows, out });
}

fn assert_rows<Q, R, O>(query: &[Q], rows: &[R], out: &[O]) {
    assert!(!query.is_empty(), "the query is empty");
    assert_eq!(
        out.len() * query.len(),
        rows.len(),
        "rows is [rows, D], with one result for each row"
    );
}

/// How many bytes ahead of the values that it reads a kernel prefetches. The CPU's own prefetcher stops at the end of a
/// page of 4 KiB.
const AHEAD: usize = 4096;

/// The bytes of a cache line.
const LINE: usize = 64;

/// See [`dots_f32`].
struct Dots<'a, T> {
    query: &'a [f32],
    rows: &'a [T],
    out: &'a mut [[f32; 2]],
}

impl<T: Widened> SimdOp for Dots<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { query, rows, out } = self;
        for (row, out) in rows.chunks_exact(query.len()).zip(out) {
            *out = dot_and_square(s, query, row);
        }
    }
}

/// `[query · row, row · row]`.
#[inline(always)]
fn dot_and_square<S: Simd, T: Widened>(s: S, query: &[f32], row: &[T]) -> [f32; 2] {
    // Four independent sums, so that the CPU does not wait for the latency of each addition. They stay in registers
    // only if all indices are constants.
    let mut sums = [[s.splat(0.0); 2]; 4];
    let block = sums.len() * S::LANES;
    let (mut queries, mut rows) = (query.chunks_exact(block), row.chunks_exact(block));
    for (query, row) in (&mut queries).zip(&mut rows) {
        prefetch_ahead(s, row);
        for (i, sums) in sums.iter_mut().enumerate() {
            let query = load_part(s, &query[i * S::LANES..][..S::LANES]);
            let row = load_part(s, &row[i * S::LANES..][..S::LANES]);
            *sums = [s.mul_add(query, row, sums[0]), s.mul_add(row, row, sums[1])];
        }
    }
    let (query, row) = (queries.remainder(), rows.remainder());
    for (i, sums) in sums.iter_mut().enumerate() {
        if let (Some(query), Some(row)) = (query.get(i * S::LANES..), row.get(i * S::LANES..)) {
            let (query, row) = (load_part(s, query), load_part(s, row));
            *sums = [s.mul_add(query, row, sums[0]), s.mul_add(row, row, sums[1])];
        }
    }
    let [a, b, c, d] = sums;
    [
        s.sum(s.add(s.add(a[0], b[0]), s.add(c[0], d[0]))),
        s.sum(s.add(s.add(a[1], b[1]), s.add(c[1], d[1]))),
    ]
}

/// See [`dots_int8`].
struct DotsInt8<'a> {
    query: &'a [i16],
    rows: &'a [i8],
    out: &'a mut [i32],
}

impl SimdOp for DotsInt8<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { query, rows, out } = self;
        for (row, out) in rows.chunks_exact(query.len()).zip(out) {
            *out = dot_int8(s, query, row);
        }
    }
}

/// `query · row`.
#[inline(always)]
fn dot_int8<S: Simd>(s: S, query: &[i16], row: &[i8]) -> i32 {
    let mut sums = [s.zeros(); 4];
    let part = 2 * S::LANES;
    let block = sums.len() * part;
    let (mut queries, mut rows) = (query.chunks_exact(block), row.chunks_exact(block));
    for (query, row) in (&mut queries).zip(&mut rows) {
        prefetch_ahead(s, row);
        for (i, sum) in sums.iter_mut().enumerate() {
            let (query, row) = (&query[i * part..][..part], &row[i * part..][..part]);
            // SAFETY: both slices have 2 · LANES values.
            *sum = unsafe { s.add_byte_products(row.as_ptr(), query.as_ptr(), *sum) };
        }
    }
    let (mut queries, mut rows) =
        (queries.remainder().chunks_exact(part), rows.remainder().chunks_exact(part));
    for (query, row) in (&mut queries).zip(&mut rows) {
        // SAFETY: both slices have 2 · LANES values.
        sums[0] = unsafe { s.add_byte_products(row.as_ptr(), query.as_ptr(), sums[0]) };
    }
    let [a, b, c, d] = sums;
    let mut total = s.sum_i32(s.add_i32(s.add_i32(a, b), s.add_i32(c, d)));
    for (&query, &row) in queries.remainder().iter().zip(rows.remainder()) {
        total = total.wrapping_add(i32::from(query) * i32::from(row));
    }
    total
}

/// See [`hamming`].
struct Hamming<'a> {
    query: &'a [u8],
    rows: &'a [u8],
    out: &'a mut [u32],
}

impl SimdOp for Hamming<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { query, rows, out } = self;
        for (row, out) in rows.chunks_exact(query.len()).zip(out) {
            prefetch_ahead(s, row);
            *out = distance(s, query, row);
        }
    }
}

/// The number of bits in which `query` and `row` differ.
#[inline(always)]
fn distance<S: Simd>(s: S, query: &[u8], row: &[u8]) -> u32 {
    let mut sum = s.zeros();
    let part = 4 * S::LANES;
    let (mut queries, mut rows) = (query.chunks_exact(part), row.chunks_exact(part));
    for (query, row) in (&mut queries).zip(&mut rows) {
        // SAFETY: both slices have as many bytes as a register.
        sum = unsafe {
            s.add_differing_bits(s.load_quads(query.as_ptr()), s.load_quads(row.as_ptr()), sum)
        };
    }
    let mut total = if row.len() < part { 0 } else { s.sum_i32(sum).cast_unsigned() };
    let (query, query_rest) = queries.remainder().as_chunks::<8>();
    let (row, row_rest) = rows.remainder().as_chunks::<8>();
    for (&query, &row) in query.iter().zip(row) {
        total += (u64::from_ne_bytes(query) ^ u64::from_ne_bytes(row)).count_ones();
    }
    for (query, row) in query_rest.iter().zip(row_rest) {
        total += (query ^ row).count_ones();
    }
    total
}

/// Prefetches the memory that is [`AHEAD`] bytes after each cache line of some values.
#[inline(always)]
fn prefetch_ahead<S: Simd, T>(s: S, values: &[T]) {
    for line in (0..size_of_val(values)).step_by(LINE) {
        s.prefetch(values.as_ptr().cast::<u8>().wrapping_add(AHEAD + line));
    }
}
