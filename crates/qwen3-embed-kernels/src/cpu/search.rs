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
/// `query` is `[B]` bytes and not empty, `rows` is [rows, B].
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
const AHEAD: usize = 8192;

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

/// Independent sums of a row, so that the CPU does not wait for the latency of each addition. They stay in registers only if
/// all indices are constants.
const SUMS: usize = 4;

/// `[query · row, row · row]`.
#[inline(always)]
fn dot_and_square<S: Simd, T: Widened>(s: S, query: &[f32], row: &[T]) -> [f32; 2] {
    assert_eq!(query.len(), row.len());
    let (mut dots, mut squares) = ([s.splat(0.0); SUMS], [s.splat(0.0); SUMS]);
    let whole = row.len() - row.len() % (SUMS * S::LANES);
    for at in (0..whole).step_by(SUMS * S::LANES) {
        // SAFETY: `SUMS · LANES` values begin at this index of both slices.
        let (query, row) = unsafe { (query.as_ptr().add(at), row.as_ptr().add(at)) };
        prefetch_ahead(s, row, SUMS * S::LANES);
        for i in 0..SUMS {
            // SAFETY: as above.
            let query = unsafe { s.load(query.add(i * S::LANES)) };
            // SAFETY: as above.
            let row = unsafe { T::load(s, row.add(i * S::LANES)) };
            dots[i] = s.mul_add(query, row, dots[i]);
            squares[i] = s.mul_add(row, row, squares[i]);
        }
    }
    let (query, row) = (&query[whole..], &row[whole..]);
    for i in 0..SUMS {
        if i * S::LANES < row.len() {
            let query = load_part(s, &query[i * S::LANES..]);
            let row = load_part(s, &row[i * S::LANES..]);
            dots[i] = s.mul_add(query, row, dots[i]);
            squares[i] = s.mul_add(row, row, squares[i]);
        }
    }
    [total(s, dots), total(s, squares)]
}

/// The sum of the lanes of some registers.
#[inline(always)]
fn total<S: Simd>(s: S, [a, b, c, d]: [S::V; SUMS]) -> f32 {
    s.sum(s.add(s.add(a, b), s.add(c, d)))
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
    assert_eq!(query.len(), row.len());
    let mut sums = [s.zeros(); SUMS];
    let part = 2 * S::LANES;
    let blocks = row.len() - row.len() % (SUMS * part);
    for at in (0..blocks).step_by(SUMS * part) {
        // SAFETY: `SUMS · part` values begin at this index of both slices.
        let (query, row) = unsafe { (query.as_ptr().add(at), row.as_ptr().add(at)) };
        prefetch_ahead(s, row, SUMS * part);
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: as above.
            *sum = unsafe { s.add_byte_products(row.add(i * part), query.add(i * part), *sum) };
        }
    }
    let parts = row.len() - row.len() % part;
    for at in (blocks..parts).step_by(part) {
        // SAFETY: `part` values begin at this index of both slices.
        sums[0] =
            unsafe { s.add_byte_products(row.as_ptr().add(at), query.as_ptr().add(at), sums[0]) };
    }
    let [a, b, c, d] = sums;
    let mut total = s.sum_i32(s.add_i32(s.add_i32(a, b), s.add_i32(c, d)));
    for (&query, &row) in query[parts..].iter().zip(&row[parts..]) {
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
            prefetch_ahead(s, row.as_ptr(), row.len());
            *out = distance(s, query, row);
        }
    }
}

/// The number of bits in which `query` and `row` differ.
#[inline(always)]
fn distance<S: Simd>(s: S, query: &[u8], row: &[u8]) -> u32 {
    assert_eq!(query.len(), row.len());
    let part = 4 * S::LANES;
    let parts = row.len() - row.len() % part;
    let mut total = 0;
    if parts > 0 {
        let mut sum = s.zeros();
        for at in (0..parts).step_by(part) {
            // SAFETY: as many bytes as a register has begin at this index of both slices.
            let (query, row) = unsafe {
                (s.load_quads(query.as_ptr().add(at)), s.load_quads(row.as_ptr().add(at)))
            };
            sum = s.add_differing_bits(query, row, sum);
        }
        total = s.sum_i32(sum).cast_unsigned();
    }
    let (query, query_rest) = query[parts..].as_chunks::<8>();
    let (row, row_rest) = row[parts..].as_chunks::<8>();
    for (&query, &row) in query.iter().zip(row) {
        total += (u64::from_ne_bytes(query) ^ u64::from_ne_bytes(row)).count_ones();
    }
    for (query, row) in query_rest.iter().zip(row_rest) {
        total += (query ^ row).count_ones();
    }
    total
}

/// Prefetches the memory that is [`AHEAD`] bytes after each cache line of `n` values.
#[inline(always)]
fn prefetch_ahead<S: Simd, T>(s: S, values: *const T, n: usize) {
    for line in (0..n * size_of::<T>()).step_by(LINE) {
        s.prefetch(values.cast::<u8>().wrapping_add(AHEAD + line));
    }
}
