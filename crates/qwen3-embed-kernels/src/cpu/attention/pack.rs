//! Keys and values into panels.

use super::Pack;
use crate::cpu::product::Float;
use crate::cpu::simd::Simd;
use crate::cpu::vector::{convert, load_part};

/// Fills the panels of a part; what is beyond its keys and values is zero.
#[inline(always)]
pub(in crate::cpu) fn pack<S: Simd, T: Float>(s: S, pack: &mut Pack<'_, T>) {
    let (heads, part) = (pack.call.heads, pack.part);
    let k_column = heads.q_columns() + part.kv_head * heads.head_dim;
    pack_keys(s, pack, k_column);
    pack_values(s, pack, k_column + heads.n_kv_heads * heads.head_dim);
}

/// A head of one of the part's tokens, nothing beyond the last.
#[inline(always)]
fn head<'a, T>(pack: &Pack<'a, T>, position: usize, column: usize) -> &'a [f32] {
    if position >= pack.part.n_tokens {
        return &[];
    }
    let row = (pack.part.row + position) * pack.call.heads.qkv_columns();
    &pack.call.qkv[row + column..][..pack.call.heads.head_dim]
}

/// Keys are columns: each is written step by step, one below the other.
#[inline(always)]
fn pack_keys<S: Simd, T: Float>(s: S, pack: &mut Pack<'_, T>, k_column: usize) {
    let (columns, n_tokens) = (pack.call.columns, pack.part.n_tokens);
    let dim = pack.call.heads.head_dim;
    pack.keys[n_tokens / columns * columns * dim..].fill(T::default());
    const BLOCK: usize = 128;
    let mut lanes = [T::default(); BLOCK];
    for position in 0..n_tokens {
        let key = head(pack, position, k_column);
        let panel = &mut pack.keys[position / columns * columns * dim..][..columns * dim];
        let column = &mut panel[position % columns * T::DEPTH..];
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

/// Values are rows: a step of them is written side by side.
#[inline(always)]
fn pack_values<S: Simd, T: Float>(s: S, pack: &mut Pack<'_, T>, v_column: usize) {
    let columns = pack.call.columns;
    let n_steps = pack.part.n_tokens.div_ceil(T::DEPTH);
    for step in 0..n_steps {
        let first = head(pack, step * T::DEPTH, v_column);
        // Not there where a step is one value.
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
