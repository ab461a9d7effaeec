//! The forward pass's operations on the processor, on slices.
//!
//! Each kernel is written once, over the vector operations of `simd`, and compiled for several
//! instruction sets. [`Kernels`] is a table of one set's kernels, and the only code that asks what
//! the processor can do is [`Kernels::available`].
//!
//! # Determinism
//!
//! With one kernel set, a row's result depends on that row alone (for attention: on its text
//! alone), bit for bit: not on the rest of the batch, nor on the number of threads.

mod activations;
mod aligned;
mod attention;
mod blocks;
mod dispatch;
mod linear;
mod packed;
mod product;
mod quantised;
mod rotation;
mod rows;
mod simd;
mod vector;

use rayon::prelude::*;

pub use activations::{Arithmetic, Rows, RowsMut, Values, ValuesMut};
pub use attention::{AttentionScratch, Heads, KEY_BLOCK, attention};
pub use blocks::BlockRow;
pub use dispatch::{Kernels, UnknownKernels};
pub use linear::Epilogue;
pub use packed::{Layout, PackedWeight};
pub use product::{BLOCK, BYTE_GROUP, Bits};
pub use quantised::Quantised;
pub use rotation::{ROTATION, rotate};

/// RMSNorm of each row: `out = x / sqrt(mean(x²) + eps) · weight`, in parallel on rayon's current
/// pool.
///
/// # Shapes
///
/// `x` and `out` are [rows, C] and `weight` is `[C]`.
///
/// # Panics
///
/// If they are not; `qwen3_embed_kernels::ops` checks before it calls.
pub fn rms_norm(kernels: &Kernels, x: &[f32], weight: &[f32], eps: f32, out: &mut RowsMut<'_>) {
    let n = weight.len();
    if n == 0 {
        return;
    }
    assert_eq!(out.n_columns, n, "out is [rows, C]");
    assert_eq!(x.len(), out.n_rows * n, "x is [rows, C]");
    let out = &*out;
    let rows = x.par_chunks_exact(n).enumerate().with_min_len(MIN_ROWS);
    // SAFETY: the table's instructions are there, as for every table; the sizes were just checked, and
    // each row is one task's.
    rows.for_each(|(row, x)| unsafe { (kernels.rms_norm)(x, weight, eps, out, row) });
}

/// Per-head RMSNorm and RoPE of the queries and keys of a batch, in place, in parallel on rayon's
/// current pool. The rows before `first_query` have no queries.
///
/// # Shapes
///
/// `qkv` is [T, (H + 2K) · D]; the weights are `[D]`; `cos` and `sin` are [T, D / 2], a row for each
/// token.
///
/// # Panics
///
/// If they are not, or if the heads are none that attention can have;
/// `qwen3_embed_kernels::ops` checks before it calls.
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
        // SAFETY: the table's instructions are there, as for every table.
        unsafe {
            if row_idx >= first_query {
                (kernels.qk_norm_rope)(q, q_norm, eps, cos, sin);
            }
            (kernels.qk_norm_rope)(k, k_norm, eps, cos, sin);
        }
    });
}

/// Copies rows: `out = x`, both f32.
///
/// # Panics
///
/// If they are not, or not of the same shape; `qwen3_embed_kernels::ops` checks before it calls.
pub fn copy_rows(x: Rows<'_>, out: &mut RowsMut<'_>) {
    let Values::F32(values) = x.values else { panic!("f32 values, not {:?}", x.values) };
    assert_eq!([out.n_rows, out.n_columns], [x.n_rows, x.n_columns], "out is as large as x");
    for row in 0..x.n_rows {
        out.row_mut(row).copy_from_slice(&values[row * x.stride..][..x.n_columns]);
    }
}

/// Rows that are worth a task of their own.
const MIN_ROWS: usize = 8;
