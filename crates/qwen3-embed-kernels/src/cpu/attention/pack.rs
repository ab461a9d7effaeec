//! Packs keys and values into panels.

use super::plan::{AttentionCall, KeyValuePart};
use crate::cpu::scalar::FloatScalar;
use crate::cpu::simd::{Simd, SimdOp};
use crate::cpu::vector::{convert, load_part};

/// Fills the panels of a part (see [`KeyValuePart`]). Columns and steps beyond its keys and values become zero.
pub(super) struct Pack<'a, T> {
    pub(super) call: &'a AttentionCall<'a>,
    pub(super) part: &'a KeyValuePart,
    pub(super) keys: &'a mut [T],
    pub(super) values: &'a mut [T],
}

impl<T: FloatScalar> SimdOp for Pack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (heads, part) = (self.call.heads, self.part);
        let k_column = heads.q_columns() + part.kv_head * heads.head_dim;
        pack_keys(s, &mut self, k_column);
        pack_values(s, &mut self, k_column + heads.n_kv_heads * heads.head_dim);
    }
}

/// The key or value of the part's token `i`: the D columns of `qkv` from `column` on. Empty beyond the last token.
#[inline(always)]
fn head<'a, T>(pack: &Pack<'a, T>, i: usize, column: usize) -> &'a [f32] {
    let KeyValuePart { segment, first, n_tokens, .. } = *pack.part;
    if i >= n_tokens {
        return &[];
    }
    let row = pack.call.batch.row(segment, first + i) * pack.call.heads.qkv_columns();
    &pack.call.qkv[row + column..][..pack.call.heads.head_dim]
}

/// Writes each key to a column of a panel: the steps of the key are `columns` steps apart in memory.
#[inline(always)]
fn pack_keys<S: Simd, T: FloatScalar>(s: S, pack: &mut Pack<'_, T>, k_column: usize) {
    let (columns, n_tokens) = (pack.call.columns, pack.part.n_tokens);
    let dim = pack.call.heads.head_dim;
    pack.keys[n_tokens / columns * columns * dim..].fill(T::default());
    const BLOCK: usize = 128;
    let mut lanes = [T::default(); BLOCK];
    for i in 0..n_tokens {
        let key = head(pack, i, k_column);
        let panel = &mut pack.keys[i / columns * columns * dim..][..columns * dim];
        let column = &mut panel[i % columns * T::DEPTH..];
        let blocks = column.chunks_mut(BLOCK * columns);
        for (column, key) in blocks.zip(key.chunks(BLOCK)) {
            convert(s, key, &mut lanes);
            let steps = column.chunks_mut(columns * T::DEPTH);
            for (out, step) in steps.zip(lanes[..key.len()].chunks_exact(T::DEPTH)) {
                out[..T::DEPTH].copy_from_slice(step);
            }
        }
    }
}

/// Writes the values. Each value is a row that is divided over all panels. A step has the values of `T::DEPTH` tokens,
/// side by side in each column.
#[inline(always)]
fn pack_values<S: Simd, T: FloatScalar>(s: S, pack: &mut Pack<'_, T>, v_column: usize) {
    let columns = pack.call.columns;
    let n_steps = pack.part.n_tokens.next_multiple_of(pack.call.depth) / T::DEPTH;
    for step in 0..n_steps {
        let first = head(pack, step * T::DEPTH, v_column);
        // `second` is not used if a step has the value of one token only.
        let second = head(pack, step * T::DEPTH + 1, v_column);
        let panels = pack.values.chunks_exact_mut(n_steps * columns * T::DEPTH);
        for (panel_idx, panel) in panels.enumerate() {
            let out = &mut panel[step * columns * T::DEPTH..][..columns * T::DEPTH];
            for (i, out) in out.chunks_exact_mut(S::LANES * T::DEPTH).enumerate() {
                let d = panel_idx * columns + i * S::LANES;
                let first = load_part(s, first.get(d..).unwrap_or(&[]));
                let second = load_part(s, second.get(d..).unwrap_or(&[]));
                // SAFETY: `out` has room for a step of LANES columns.
                unsafe { T::store_step(s, out.as_mut_ptr(), first, second) };
            }
        }
    }
}
