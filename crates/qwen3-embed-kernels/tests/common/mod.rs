//! Operands of kernels, and comparisons with bounds.
#![allow(dead_code, reason = "each test uses some of the items")]

use half::bf16;
use qwen3_embed_kernels::cpu::{
    AttentionScratch, Heads, Kernels, Layout, PackedWeight, Rows, RowsMut, Values, ValuesMut,
    attention,
};
use qwen3_embed_kernels::{Queries, Ragged};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

pub(crate) const U: f64 = f32::EPSILON as f64 / 2.0;

/// An exponential has an error of at most 2 ulp. The operations around it add a few roundings.
pub(crate) const EXP_ROUNDINGS: usize = 8;

pub(crate) fn gamma(n: usize) -> f64 {
    let nu = n as f64 * U;
    nu / (1.0 - nu)
}

/// Values that begin one element into their allocation.
pub(crate) struct Misaligned(pub(crate) Vec<f32>);

impl Misaligned {
    pub(crate) fn random(seed: u64, n: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        Self((0..=n).map(|_| rng.random_range(-2.0..2.0)).collect())
    }

    pub(crate) fn get(&self) -> &[f32] {
        &self.0[1..]
    }

    pub(crate) fn get_mut(&mut self) -> &mut [f32] {
        &mut self.0[1..]
    }

    pub(crate) fn f64(&self) -> Vec<f64> {
        widened(self.get())
    }
}

/// A type of activations.
pub(crate) trait Value: Copy + Into<f64> + PartialEq + 'static {
    const NAN: Self;
    /// Half the distance from 1 to the next value of the type. 0 for f32, because the bounds include roundings to f32.
    const U: f64;
    fn of(value: f32) -> Self;
    fn read(values: &[Self]) -> Values<'_>;
    fn write(values: &mut [Self]) -> ValuesMut<'_>;
}

impl Value for f32 {
    const NAN: Self = f32::NAN;
    const U: f64 = 0.0;
    fn of(value: f32) -> Self {
        value
    }
    fn read(values: &[Self]) -> Values<'_> {
        values.into()
    }
    fn write(values: &mut [Self]) -> ValuesMut<'_> {
        values.into()
    }
}

impl Value for bf16 {
    const NAN: Self = bf16::NAN;
    const U: f64 = 1.0 / 256.0;
    fn of(value: f32) -> Self {
        bf16::from_f32(value)
    }
    fn read(values: &[Self]) -> Values<'_> {
        values.into()
    }
    fn write(values: &mut [Self]) -> ValuesMut<'_> {
        values.into()
    }
}

/// A matrix with gaps of NaN between its rows, one element into its allocation.
#[derive(Clone)]
pub(crate) struct Grid<T> {
    values: Vec<T>,
    shape: [usize; 2],
}

impl<T: Value> Grid<T> {
    pub(crate) const GAP: usize = 3;

    pub(crate) fn nan(n_rows: usize, n_columns: usize) -> Self {
        let values = vec![T::NAN; 1 + n_rows * (n_columns + Self::GAP)];
        Self { values, shape: [n_rows, n_columns] }
    }

    pub(crate) fn of(dense: &[f32], n_columns: usize) -> Self {
        let mut grid = Self::nan(dense.len() / n_columns, n_columns);
        let rows = grid.values[1..].chunks_exact_mut(n_columns + Self::GAP);
        for (row, dense) in rows.zip(dense.chunks_exact(n_columns)) {
            row.iter_mut().zip(dense).for_each(|(out, &value)| *out = T::of(value));
        }
        grid
    }

    pub(crate) fn random(seed: u64, n_rows: usize, n_columns: usize) -> Self {
        Self::of(Misaligned::random(seed, n_rows * n_columns).get(), n_columns)
    }

    pub(crate) fn rows(&self) -> Rows<'_> {
        Rows::new(T::read(&self.values[1..]), self.shape, self.shape[1] + Self::GAP)
    }

    pub(crate) fn rows_mut(&mut self) -> RowsMut<'_> {
        RowsMut::new(T::write(&mut self.values[1..]), self.shape, self.shape[1] + Self::GAP)
    }

    /// The values without the gaps. Asserts that the gaps are still NaN.
    pub(crate) fn dense(&self) -> Vec<f64> {
        let mut dense = Vec::new();
        for row in self.values[1..].chunks_exact(self.shape[1] + Self::GAP) {
            let (values, gap) = row.split_at(self.shape[1]);
            dense.extend(values.iter().map(|&v| v.into()));
            assert!(gap.iter().all(|&v| v.into().is_nan()), "a gap was written to");
        }
        dense
    }

    /// Compares with expected values that have not been rounded to `T`.
    pub(crate) fn assert_close(&self, expected: &[f64], bound: impl Fn(usize) -> f64, what: &str) {
        let got = self.dense();
        assert_eq!(got.len(), expected.len(), "{what}");
        for (i, (got, &expected)) in got.into_iter().zip(expected).enumerate() {
            let bound = bound(i) + T::U * (expected.abs() + bound(i));
            let error = (got - expected).abs();
            assert!(error <= bound, "{what}, {i}: {got} for {expected}, {error:e} > {bound:e}");
        }
    }
}

pub(crate) fn bits<T: Value>(grid: &Grid<T>) -> Vec<u64> {
    grid.dense().into_iter().map(f64::to_bits).collect()
}

pub(crate) fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

pub(crate) fn magnitudes(values: &[f64]) -> Vec<f64> {
    values.iter().map(|v| v.abs()).collect()
}

/// Compares element by element. `bound(i)` is the largest allowed error of element `i`.
pub(crate) fn assert_close(
    got: &[f32],
    expected: &[f64],
    bound: impl Fn(usize) -> f64,
    what: &str,
) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let (error, bound) = ((f64::from(got) - expected).abs(), bound(i));
        assert!(error <= bound, "{what}, element {i}: {got} for {expected}, {error:e} > {bound:e}");
    }
}

/// Attention, with the buffers of an earlier call.
pub(crate) fn attend_from<T: Value>(
    kernels: &Kernels,
    qkv: &[f32],
    batch: &Ragged,
    queries: Queries,
    heads: Heads,
) -> Grid<T> {
    let mut out = Grid::nan(batch.n_rows() - batch.first_query(queries), heads.q_columns());
    let mut scratch = AttentionScratch::default();
    // The scratch buffer has values of an earlier, larger batch, which must not matter.
    let larger = Ragged::from_lengths([batch.n_tokens() + 40]).unwrap();
    let ones = vec![1.0; larger.n_tokens() * heads.qkv_columns()];
    let mut ignored = Grid::<T>::nan(larger.n_tokens(), heads.q_columns());
    let rows = &mut ignored.rows_mut();
    attention(kernels, &ones, &larger, Queries::All, heads, &mut scratch, rows);
    attention(kernels, qkv, batch, queries, heads, &mut scratch, &mut out.rows_mut());
    out
}

/// A weight in f32 or bf16.
pub(crate) fn pack(
    weight: &Misaligned,
    n_out: usize,
    n_in: usize,
    layout: Layout,
    keep_bf16: bool,
) -> PackedWeight {
    let row = |o: usize| &weight.get()[o * n_in..][..n_in];
    if keep_bf16 {
        PackedWeight::pack_bf16(n_out, n_in, layout, |o, out| {
            out.iter_mut().zip(row(o)).for_each(|(out, &v)| *out = bf16::from_f32(v));
        })
    } else {
        PackedWeight::pack_f32(n_out, n_in, layout, |o, out| out.copy_from_slice(row(o)))
    }
}

/// The values of a weight after the rounding of its storage type.
pub(crate) fn kept(weight: &Misaligned, keep_bf16: bool) -> Vec<f64> {
    let value = |v: &f32| if keep_bf16 { bf16::from_f32(*v).to_f64() } else { f64::from(*v) };
    weight.get().iter().map(value).collect()
}
