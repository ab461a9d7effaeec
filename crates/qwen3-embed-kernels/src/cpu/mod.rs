//! The operations of the forward pass on the CPU, on slices.
//!
//! Each kernel is written once, with the vector operations of the module `simd`, and compiled for several instruction
//! sets. A [`Kernels`] runs the kernels that are compiled for one instruction set. Only [`Kernels::available`] detects
//! which instructions the CPU has.
//!
//! # Determinism
//!
//! With one kernel set, the result for a row depends on that row alone (for attention: on its text alone), bit for bit.
//! It depends neither on the rest of the batch nor on the number of threads.

mod activations;
mod aligned;
mod arithmetic;
mod attention;
mod dispatch;
mod formats;
mod gemm;
mod packed;
mod panels;
mod quantize;
mod rotation;
mod rows;
mod scalar;
pub mod search;
mod simd;
mod tile;
mod vector;

use rayon::prelude::*;

pub use activations::{QuantizeBuffer, Quantized, Rows, RowsMut, Values, ValuesMut};
pub use arithmetic::{Arithmetic, WideActivations};
pub use attention::{AttentionScratch, Heads, KEY_BLOCK, attention};
pub use dispatch::{Kernels, UnknownKernels};
pub use formats::{BLOCK, BYTE_GROUP, Bits, BlockRow};
pub use gemm::Epilogue;
pub use packed::PackedWeight;
pub use panels::Layout;
pub use rotation::{ROTATION, rotate};

use rows::{QkNormRope, RmsNorm};

/// RMSNorm of each row: `out = x / sqrt(mean(x²) + eps) · weight`, in parallel on rayon's current pool.
///
/// # Shapes
///
/// `x` and `out` are [rows, C] and `weight` is `[C]`.
///
/// # Panics
///
/// If a shape is different. The functions of [`ops`](crate::ops) return an error instead.
pub fn rms_norm(kernels: &Kernels, x: &[f32], weight: &[f32], eps: f32, out: &mut RowsMut<'_>) {
    let n = weight.len();
    if n == 0 {
        return;
    }
    assert_eq!(out.n_columns, n, "out is [rows, C]");
    assert_eq!(x.len(), out.n_rows * n, "x is [rows, C]");
    let out = &*out;
    let rows = x.par_chunks_exact(n).enumerate().with_min_len(MIN_ROWS);
    // SAFETY: the sizes were just checked, and each row is written by one task.
    rows.for_each(|(row, x)| kernels.run(unsafe { RmsNorm::new(x, weight, eps, out, row) }));
}

/// Per-head RMSNorm and RoPE of the queries and keys of a batch, in place, in parallel on rayon's current pool. The
/// queries of the rows before `first_query` are left unchanged.
///
/// # Shapes
///
/// `qkv` is [T, (H + 2K) · D]; the weights are `[D]`; `cos` and `sin` are [T, D / 2], a row for each
/// token.
///
/// # Panics
///
/// If a shape is different, or if the heads do not fit together (see [`Heads::is_whole`]). The functions of
/// [`ops`](crate::ops) return an error instead.
pub fn qk_norm_rope(
    kernels: &Kernels,
    qkv: &mut [f32],
    heads: Heads,
    first_query: usize,
    [q_norm, k_norm]: [&[f32]; 2],
    eps: f32,
    [cos, sin]: [&[f32]; 2],
) {
    heads.assert_whole();
    let half = heads.head_dim / 2;
    let n_rows = qkv.len() / heads.qkv_columns();
    assert_eq!(qkv.len(), n_rows * heads.qkv_columns(), "qkv is [T, (H + 2K) · D]");
    for norm in [q_norm, k_norm] {
        assert_eq!(norm.len(), heads.head_dim, "a weight is [D]");
    }
    for table in [cos, sin] {
        assert_eq!(table.len(), n_rows * half, "a table is [T, D / 2]");
    }
    let rows = qkv.par_chunks_exact_mut(heads.qkv_columns()).with_min_len(MIN_ROWS);
    let tables = cos.par_chunks_exact(half).zip(sin.par_chunks_exact(half));
    rows.zip(tables).enumerate().for_each(|(row_idx, (row, (cos, sin)))| {
        let (q, kv) = row.split_at_mut(heads.q_columns());
        let k = &mut kv[..heads.n_kv_heads * heads.head_dim];
        if row_idx >= first_query {
            kernels.run(QkNormRope { heads: q, weight: q_norm, eps, cos, sin });
        }
        kernels.run(QkNormRope { heads: k, weight: k_norm, eps, cos, sin });
    });
}

/// Copies rows of f32 values: `out = x`.
///
/// # Panics
///
/// If a matrix is not f32, or if the shapes differ. The functions of [`ops`](crate::ops) return an error instead.
pub fn copy_rows(x: Rows<'_>, out: &mut RowsMut<'_>) {
    let Values::F32(values) = x.values else { panic!("expected a matrix of f32 for x") };
    assert_eq!([out.n_rows, out.n_columns], [x.n_rows, x.n_columns], "out has the shape of x");
    for row in 0..x.n_rows {
        out.row_mut(row).copy_from_slice(&values[row * x.stride..][..x.n_columns]);
    }
}

/// The least number of rows in a rayon task.
const MIN_ROWS: usize = 8;
