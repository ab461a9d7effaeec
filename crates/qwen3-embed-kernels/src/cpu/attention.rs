//! Causal grouped-query attention over a ragged batch, in blocks and with an online softmax.
//!
//! ```text
//! pack the keys and values of every text and key/value head into panels
//! for each text, key/value head and block of queries          (split over the threads)
//!     for each block of keys up to the last query's position
//!         scores = queries · keys                             [rows, keys of the block]
//!         for each row:
//!             m' = max(m, scores up to the row's position)
//!             p  = exp(scores − m'), 0 beyond the row's position
//!             l  = l · exp(m − m') + sum(p)
//!             o  = o · exp(m − m') + p · values
//!     out = o / l
//! ```
//!
//! The rows of a block are its queries for all query heads of the group, so that a panel is read
//! once for all of them. Blocks of keys begin at fixed positions of the text: a row's result
//! depends on its own text only, bit for bit.
//!
//! # Source
//!
//! Milakov and Gimelshein, *Online normalizer calculation for softmax* (2018); Dao et al.,
//! *FlashAttention* (2022).

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use super::Kernels;
use super::linear::{Shared, load_part, store_part};
use super::product::{Finish, panel_columns, tile, tile_rows};
use super::simd::Simd;
use crate::Ragged;

/// Keys of a block: a multiple of every kernel set's panel.
const KEY_BLOCK: usize = 128;

/// Rows of a block of queries, over the heads of a group, at least one query.
const ROWS: usize = 48;

/// Heads and their width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads, H.
    pub n_heads: usize,
    /// Key/value heads, K; K divides H.
    pub n_kv_heads: usize,
    /// Width of a head, D.
    pub head_dim: usize,
}

impl Heads {
    /// Columns of packed queries, keys and values: (H + 2K) · D.
    pub fn qkv_columns(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// Columns of the queries, and of attention's result: H · D.
    pub fn q_columns(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Query heads for each key/value head.
    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }
}

/// Keys and values in panels; kept from call to call so that nothing is allocated anew.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    /// For each text and key/value head: [panels of keys, D, columns].
    keys: Vec<f32>,
    /// For each text and key/value head: [panels of dimensions, keys, columns].
    values: Vec<f32>,
}

/// Attention of every token to what comes before it in its own text, and to itself, in parallel on
/// rayon's current pool.
///
/// # Shapes
///
/// `qkv` is [T, (H + 2K) · D], the queries normed, rotated and divided by √D; `out` is [T, H · D].
///
/// # Panics
///
/// If they are not; `qwen3_embed_kernels::ops` checks before it calls.
pub fn causal_attention(
    kernels: &Kernels,
    qkv: &[f32],
    batch: &Ragged,
    heads: Heads,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    assert_eq!(qkv.len(), batch.n_tokens() * heads.qkv_columns(), "qkv is [T, (H + 2K) · D]");
    assert_eq!(out.len(), batch.n_tokens() * heads.q_columns(), "out is [T, H · D]");
    let columns = 2 * kernels.lanes;
    let key_size = |n: usize| n.next_multiple_of(columns) * heads.head_dim;
    let value_size = |n: usize| n * heads.head_dim.next_multiple_of(columns);
    let mut pack_tasks = Vec::new();
    let mut tasks = Vec::new();
    let (mut key_start, mut value_start) = (0, 0);
    for text in batch.ranges() {
        let n = text.len();
        for kv_head in 0..heads.n_kv_heads {
            let keys = key_start..key_start + key_size(n);
            let values = value_start..value_start + value_size(n);
            (key_start, value_start) = (keys.end, values.end);
            let n_queries = (ROWS / heads.group()).max(1);
            for start in (0..n).step_by(n_queries) {
                let queries = start..(start + n_queries).min(n);
                let (keys, values) = (keys.clone(), values.clone());
                tasks.push(Task { text: text.clone(), kv_head, queries, keys, values });
            }
            pack_tasks.push((text.clone(), kv_head));
        }
    }
    scratch.keys.resize(key_start, 0.0);
    scratch.values.resize(value_start, 0.0);
    let (mut keys, mut values) = (scratch.keys.as_mut_slice(), scratch.values.as_mut_slice());
    let mut parts = Vec::with_capacity(pack_tasks.len());
    for (text, kv_head) in pack_tasks {
        let (k, v);
        (k, keys) = keys.split_at_mut(key_size(text.len()));
        (v, values) = values.split_at_mut(value_size(text.len()));
        parts.push((text, kv_head, k, v));
    }
    parts.into_par_iter().for_each(|(text, kv_head, keys, values)| {
        pack_keys_and_values(qkv, &text, kv_head, heads, columns, keys, values);
    });
    let out = Shared(out.as_mut_ptr());
    // Later queries see more keys: the longest tasks go first.
    tasks.par_iter().rev().for_each(|task| {
        let keys = &scratch.keys[task.keys.clone()];
        let values = &scratch.values[task.values.clone()];
        // SAFETY: the table's instructions are there, as for every table.
        unsafe { (kernels.attention)(&Block { qkv, heads, task, keys, values, out: &out }) };
    });
}

/// A block of one text's queries for the heads that share a key/value head.
pub(super) struct Task {
    text: Range<usize>,
    kv_head: usize,
    /// Positions in the text.
    queries: Range<usize>,
    /// Where the packed keys and values are.
    keys: Range<usize>,
    values: Range<usize>,
}

/// A task and what it works on.
pub(super) struct Block<'a> {
    qkv: &'a [f32],
    heads: Heads,
    task: &'a Task,
    keys: &'a [f32],
    values: &'a [f32],
    out: &'a Shared,
}

/// Fills the panels of one text's keys and values for one head; what is beyond them is zero.
fn pack_keys_and_values(
    qkv: &[f32],
    text: &Range<usize>,
    kv_head: usize,
    heads: Heads,
    columns: usize,
    keys: &mut [f32],
    values: &mut [f32],
) {
    let dim = heads.head_dim;
    let stride = heads.qkv_columns();
    let k_column = heads.q_columns() + kv_head * dim;
    let v_column = k_column + heads.n_kv_heads * dim;
    keys.fill(0.0);
    values.fill(0.0);
    for (position, row) in
        qkv[text.start * stride..text.end * stride].chunks_exact(stride).enumerate()
    {
        let panel = &mut keys[position / columns * columns * dim..];
        for (d, &k) in row[k_column..][..dim].iter().enumerate() {
            panel[d * columns + position % columns] = k;
        }
        for (p, v) in row[v_column..][..dim].chunks(columns).enumerate() {
            values[(p * text.len() + position) * columns..][..v.len()].copy_from_slice(v);
        }
    }
}

/// What a task keeps for its rows.
#[derive(Default)]
struct Rows {
    /// [rows, KEY_BLOCK]: scores, then their exponentials.
    scores: Vec<f32>,
    /// [rows, D rounded up to whole panels]: the weighted sums of values so far.
    sums: Vec<f32>,
    /// The largest score so far.
    max: Vec<f32>,
    /// The sum of the exponentials so far.
    total: Vec<f32>,
    /// What the sums of the block are to be multiplied with before the block is added.
    rescale: Vec<f32>,
}

thread_local! {
    static ROWS_OF_THREAD: Cell<Rows> = Cell::default();
}

/// Computes a task.
#[inline(always)]
pub(super) fn attend<S: Simd>(s: S, block: &Block<'_>) {
    // Taken and put back, because a closure would be compiled without this function's features.
    let mut rows = ROWS_OF_THREAD.take();
    let n_rows = block.task.queries.len() * block.heads.group();
    let width = block.heads.head_dim.next_multiple_of(panel_columns::<S>());
    rows.reset(n_rows, width);
    for start in (0..block.task.queries.end).step_by(KEY_BLOCK) {
        let keys = start..(start + KEY_BLOCK).min(block.task.queries.end);
        score(s, block, &keys, n_rows, &mut rows);
        soften(s, block, &keys, n_rows, &mut rows);
        accumulate(s, block, &keys, n_rows, width, &mut rows);
    }
    write(s, block, n_rows, width, &rows);
    ROWS_OF_THREAD.set(rows);
}

impl Rows {
    /// Begins a task of `n_rows` rows whose sums are `width` wide.
    fn reset(&mut self, n_rows: usize, width: usize) {
        self.scores.resize(n_rows * KEY_BLOCK, 0.0);
        self.rescale.resize(n_rows, 0.0);
        for (values, length, start) in [
            (&mut self.sums, n_rows * width, 0.0),
            (&mut self.max, n_rows, f32::NEG_INFINITY),
            (&mut self.total, n_rows, 0.0),
        ] {
            values.clear();
            values.resize(length, start);
        }
    }
}

/// `scores = queries · keys`. Row `r` is query `r / group` for head `r % group` of the group.
#[inline(always)]
fn score<S: Simd>(s: S, block: &Block<'_>, keys: &Range<usize>, n_rows: usize, rows: &mut Rows) {
    let (heads, task) = (block.heads, block.task);
    let (dim, group, columns) = (heads.head_dim, heads.group(), panel_columns::<S>());
    let query = |r: usize| -> &[f32] {
        let row = task.text.start + task.queries.start + r / group;
        let head = task.kv_head * group + r % group;
        &block.qkv[row * heads.qkv_columns() + head * dim..][..dim]
    };
    for panel in keys.start / columns..keys.end.div_ceil(columns) {
        let weights = &block.keys[panel * dim * columns..][..dim * columns];
        let column = panel * columns - keys.start;
        let mut row = 0;
        while row < n_rows {
            let n = tile_rows::<S>(n_rows - row);
            let scores = &mut rows.scores[row * KEY_BLOCK..][..n * KEY_BLOCK];
            let finish = StoreScores { scores, column };
            // SAFETY: each query is a slice of `dim` values and `weights` is a whole panel.
            unsafe {
                let pointer = |r: usize| query(row + r).as_ptr();
                tile::<S, f32>(s, n, pointer, weights.as_ptr(), dim, finish);
            }
            row += n;
        }
    }
}

/// Stores a tile of scores from `column` of the block on.
struct StoreScores<'a> {
    scores: &'a mut [f32],
    column: usize,
}

impl<S: Simd> Finish<S> for StoreScores<'_> {
    #[inline(always)]
    fn finish(&mut self, s: S, row: usize, sums: [S::V; 2]) {
        let out = &mut self.scores[row * KEY_BLOCK + self.column..][..2 * S::LANES];
        store_part(s, &mut out[..S::LANES], sums[0]);
        store_part(s, &mut out[S::LANES..], sums[1]);
    }
}

/// Turns the block's scores into exponentials, and notes how far the maximum moved.
#[inline(always)]
fn soften<S: Simd>(s: S, block: &Block<'_>, keys: &Range<usize>, n_rows: usize, rows: &mut Rows) {
    let group = block.heads.group();
    for r in 0..n_rows {
        let position = block.task.queries.start + r / group;
        let scores = &mut rows.scores[r * KEY_BLOCK..][..KEY_BLOCK];
        let seen = (position + 1).saturating_sub(keys.start).min(keys.len());
        let (visible, hidden) = scores.split_at_mut(seen);
        hidden.fill(0.0);
        if seen == 0 {
            // Nothing to add: the sums stay as they are, bit for bit.
            rows.rescale[r] = 1.0;
            continue;
        }
        let old = rows.max[r];
        let max = largest(s, old, visible);
        let shift = s.splat(max);
        let mut sums = s.splat(0.0);
        for part in visible.chunks_mut(S::LANES) {
            let n = part.len();
            let exp = s.exp(s.sub(load_part(s, part), shift));
            store_part(s, part, exp);
            sums = s.add(sums, if n == S::LANES { exp } else { load_part(s, part) });
        }
        rows.rescale[r] = (old - max).exp();
        rows.total[r] = rows.total[r] * rows.rescale[r] + s.sum(sums);
        rows.max[r] = max;
    }
}

/// The largest of `old` and `values`.
#[inline(always)]
fn largest<S: Simd>(s: S, old: f32, values: &[f32]) -> f32 {
    let (whole, rest) = values.split_at(values.len() / S::LANES * S::LANES);
    let mut max = s.splat(old);
    for part in whole.chunks_exact(S::LANES) {
        max = s.max(max, load_part(s, part));
    }
    rest.iter().copied().fold(s.largest(max), f32::max)
}

/// `sums = sums · rescale + exponentials · values`.
#[inline(always)]
fn accumulate<S: Simd>(
    s: S,
    block: &Block<'_>,
    keys: &Range<usize>,
    n_rows: usize,
    width: usize,
    rows: &mut Rows,
) {
    let columns = panel_columns::<S>();
    let n_keys = block.task.text.len();
    for panel in 0..width / columns {
        let values =
            &block.values[(panel * n_keys + keys.start) * columns..][..keys.len() * columns];
        let mut row = 0;
        while row < n_rows {
            let n = tile_rows::<S>(n_rows - row);
            let scores = &rows.scores[row * KEY_BLOCK..][..n * KEY_BLOCK];
            let sums = &mut rows.sums[row * width..][..n * width];
            let rescale = &rows.rescale[row..][..n];
            let column = panel * columns;
            let finish = AddValues { sums, width, column, rescale };
            // SAFETY: each row of scores has KEY_BLOCK values, of which keys.len() are read, and
            // `values` has keys.len() rows of a panel.
            unsafe {
                let pointer = |r: usize| scores[r * KEY_BLOCK..].as_ptr();
                tile::<S, f32>(s, n, pointer, values.as_ptr(), keys.len(), finish);
            }
            row += n;
        }
    }
}

/// Rescales a tile of the sums so far, from `column` on, and adds the block's.
struct AddValues<'a> {
    sums: &'a mut [f32],
    width: usize,
    column: usize,
    rescale: &'a [f32],
}

impl<S: Simd> Finish<S> for AddValues<'_> {
    #[inline(always)]
    fn finish(&mut self, s: S, row: usize, sums: [S::V; 2]) {
        let out = &mut self.sums[row * self.width + self.column..][..2 * S::LANES];
        let rescale = s.splat(self.rescale[row]);
        for (out, sums) in out.chunks_exact_mut(S::LANES).zip(sums) {
            store_part(s, out, s.mul_add(load_part(s, out), rescale, sums));
        }
    }
}

/// Divides the sums by the totals and writes them out.
#[inline(always)]
fn write<S: Simd>(s: S, block: &Block<'_>, n_rows: usize, width: usize, rows: &Rows) {
    let (heads, task) = (block.heads, block.task);
    let (dim, group) = (heads.head_dim, heads.group());
    for r in 0..n_rows {
        let row = task.text.start + task.queries.start + r / group;
        let head = task.kv_head * group + r % group;
        // SAFETY: `out` is [T, H · D], checked by `causal_attention`; this task alone writes the heads
        // of its group for its queries.
        let out = unsafe {
            std::slice::from_raw_parts_mut(
                block.out.0.add(row * heads.q_columns() + head * dim),
                dim,
            )
        };
        let scale = s.splat(1.0 / rows.total[r]);
        let sums = &rows.sums[r * width..][..dim];
        for (out, sums) in out.chunks_mut(S::LANES).zip(sums.chunks(S::LANES)) {
            store_part(s, out, s.mul(load_part(s, sums), scale));
        }
    }
}
