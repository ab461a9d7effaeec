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
//! once for all of them. Queries, keys, exponentials and values are multiplied as f32 or as bf16;
//! scores, exponentials' sums and weighted sums are f32. Blocks of keys begin at fixed positions of the text: a row's result
//! depends on its own text only, bit for bit.
//!
//! # Source
//!
//! Milakov and Gimelshein, *Online normalizer calculation for softmax* (2018); Dao et al.,
//! *FlashAttention* (2022).

use std::cell::Cell;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::Kernels;
use super::activations::{Arithmetic, RowsMut};
use super::product::{Element, Finish, Operands, Product, panel_columns, tile, tile_rows};
use super::simd::Simd;
use super::vector::{load_part, store_part};
use crate::Ragged;

/// Keys of a block: a multiple of every kernel set's panel, and of its registers.
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

/// What attention works in; kept from call to call so that nothing is allocated anew.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    parts: Vec<Part>,
    tasks: Vec<Task>,
    f32: Panels<f32>,
    bf16: Panels<bf16>,
}

/// Keys and values, packed as a product's right operands.
#[derive(Debug, Default)]
struct Panels<T> {
    /// For each part: [panels of keys, steps of D, columns, values of a step].
    keys: Vec<T>,
    /// For each part: [panels of dimensions, steps of keys, columns, values of a step].
    values: Vec<T>,
}

/// One key/value head of one text.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// The text's first row.
    row: usize,
    n_tokens: usize,
    kv_head: usize,
    /// Where its packed keys and values begin.
    keys: usize,
    values: usize,
}

/// A block of one text's queries for the heads that share a key/value head.
#[derive(Debug, Clone, Copy)]
struct Task {
    part: usize,
    /// Position of the first query in the text, and how many there are.
    first: usize,
    n_queries: usize,
}

impl Part {
    /// Values that the packed keys take.
    fn key_size(&self, heads: Heads, columns: usize) -> usize {
        self.n_tokens.next_multiple_of(columns) * heads.head_dim
    }

    /// Values that the packed values take, if a step is `depth` of them.
    fn value_size(&self, heads: Heads, columns: usize, depth: usize) -> usize {
        self.n_tokens.next_multiple_of(depth) * heads.head_dim.next_multiple_of(columns)
    }
}

/// Attention of every token to what comes before it in its own text, and to itself, in parallel on
/// rayon's current pool. It multiplies in the type of `out`.
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
    out: &mut RowsMut<'_>,
) {
    let n_tokens = batch.n_tokens();
    assert_eq!(qkv.len(), n_tokens * heads.qkv_columns(), "qkv is [T, (H + 2K) · D]");
    assert_eq!([out.n_rows, out.n_columns], [n_tokens, heads.q_columns()], "out is [T, H · D]");
    let AttentionScratch { parts, tasks, f32, bf16 } = scratch;
    let call = Call { qkv, heads, columns: 2 * kernels.lanes, out };
    match out.arithmetic() {
        Arithmetic::F32 => call.run(batch, parts, tasks, f32, &kernels.attention_f32),
        Arithmetic::Bf16 => call.run(batch, parts, tasks, bf16, &kernels.attention_bf16),
    }
}

/// The kernels of a kernel set for one type.
#[derive(Debug)]
pub(super) struct AttentionKernels<T> {
    pub(super) pack: unsafe fn(&mut Pack<'_, T>),
    pub(super) attend: unsafe fn(&Block<'_, T>),
}

/// What all tasks of a call share.
struct Call<'a> {
    qkv: &'a [f32],
    heads: Heads,
    /// Columns of a panel.
    columns: usize,
    out: &'a RowsMut<'a>,
}

impl Call<'_> {
    fn run<T: Element>(
        &self,
        batch: &Ragged,
        parts: &mut Vec<Part>,
        tasks: &mut Vec<Task>,
        panels: &mut Panels<T>,
        kernels: &AttentionKernels<T>,
    ) {
        let [n_keys, n_values] = self.divide::<T>(batch, parts, tasks);
        panels.keys.resize(n_keys, T::default());
        panels.values.resize(n_values, T::default());
        let room = [Room(panels.keys.as_mut_ptr()), Room(panels.values.as_mut_ptr())];
        parts.par_iter().for_each(|part| {
            // SAFETY: `divide` gives each part room of its own within the panels. The table's
            // instructions are there, as for every table.
            unsafe {
                let keys = room[0].part(part.keys, part.key_size(self.heads, self.columns));
                let n_values = part.value_size(self.heads, self.columns, T::DEPTH);
                let values = room[1].part(part.values, n_values);
                (kernels.pack)(&mut Pack { call: self, part, keys, values });
            }
        });
        // Later queries see more keys: the longest tasks go first.
        tasks.par_iter().rev().for_each(|task| {
            let part = &parts[task.part];
            let keys = &panels.keys[part.keys..][..part.key_size(self.heads, self.columns)];
            let n_values = part.value_size(self.heads, self.columns, T::DEPTH);
            let values = &panels.values[part.values..][..n_values];
            // SAFETY: the table's instructions are there, as for every table.
            unsafe { (kernels.attend)(&Block { call: self, part, task, keys, values }) };
        });
    }

    /// Divides the batch into parts and tasks; returns the sizes of all packed keys and values.
    fn divide<T: Element>(
        &self,
        batch: &Ragged,
        parts: &mut Vec<Part>,
        tasks: &mut Vec<Task>,
    ) -> [usize; 2] {
        let most = (ROWS / self.heads.group()).max(1);
        let (mut keys, mut values) = (0, 0);
        parts.clear();
        tasks.clear();
        for text in batch.ranges() {
            let (row, n_tokens) = (text.start, text.len());
            for kv_head in 0..self.heads.n_kv_heads {
                let part = Part { row, n_tokens, kv_head, keys, values };
                keys += part.key_size(self.heads, self.columns);
                values += part.value_size(self.heads, self.columns, T::DEPTH);
                tasks.extend((0..n_tokens).step_by(most).map(|first| {
                    let n_queries = most.min(n_tokens - first);
                    Task { part: parts.len(), first, n_queries }
                }));
                parts.push(part);
            }
        }
        [keys, values]
    }
}

/// Memory that parts write to, each at its own place.
struct Room<T>(*mut T);

// SAFETY: parts are disjoint, as the callers of `part` vouch.
unsafe impl<T: Send> Sync for Room<T> {}

impl<T> Room<T> {
    /// # Safety
    ///
    /// The values are there, and nobody else has them.
    #[expect(clippy::mut_from_ref, reason = "the caller vouches that nobody else has them")]
    unsafe fn part(&self, start: usize, n: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), n) }
    }
}

/// A part whose keys and values are to be packed.
pub(super) struct Pack<'a, T> {
    call: &'a Call<'a>,
    part: &'a Part,
    keys: &'a mut [T],
    values: &'a mut [T],
}

/// A task and what it works on.
pub(super) struct Block<'a, T> {
    call: &'a Call<'a>,
    part: &'a Part,
    task: &'a Task,
    keys: &'a [T],
    values: &'a [T],
}

/// Fills the panels of a part; what is beyond its keys and values is zero.
#[inline(always)]
pub(super) fn pack<S: Simd, T: Element>(s: S, pack: &mut Pack<'_, T>) {
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
fn pack_keys<S: Simd, T: Element>(s: S, pack: &mut Pack<'_, T>, k_column: usize) {
    let (columns, n_tokens) = (pack.call.columns, pack.part.n_tokens);
    let dim = pack.call.heads.head_dim;
    pack.keys[n_tokens / columns * columns * dim..].fill(T::default());
    let mut lanes = [T::default(); KEY_BLOCK];
    for position in 0..n_tokens {
        let key = head(pack, position, k_column);
        let panel = &mut pack.keys[position / columns * columns * dim..][..columns * dim];
        let column = &mut panel[position % columns * T::DEPTH..];
        let blocks = column.chunks_mut(KEY_BLOCK * columns);
        for (column, key) in blocks.zip(key.chunks(KEY_BLOCK)) {
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
fn pack_values<S: Simd, T: Element>(s: S, pack: &mut Pack<'_, T>, v_column: usize) {
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
                let [a, b] = [first, second].map(|v| load_part(s, v.get(d..).unwrap_or(&[])));
                // SAFETY: `out` has room for a step of LANES columns.
                unsafe { T::store_step(s, out.as_mut_ptr(), a, b) };
            }
        }
    }
}

/// `out[i] = values[i]`, for as many as there are.
#[inline(always)]
fn convert<S: Simd, T: Element>(s: S, values: &[f32], out: &mut [T]) {
    for (values, out) in values.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
        store_part(s, &mut out[..values.len()], load_part(s, values));
    }
}

/// What a task keeps for its rows.
#[derive(Default)]
struct Rows {
    /// [rows, D]: the queries, in the type that is multiplied, each row in the room for f32.
    queries: Vec<f32>,
    /// [rows, KEY_BLOCK]: scores, then in their place their exponentials in the type that is
    /// multiplied.
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
pub(super) fn attend<T: Element, P: Product<Left = T, Right = T>>(p: P, block: &Block<'_, T>) {
    // Taken and put back, because a closure would be compiled without this function's features.
    let mut rows = ROWS_OF_THREAD.take();
    let heads = block.call.heads;
    let n_rows = block.task.n_queries * heads.group();
    let width = heads.head_dim.next_multiple_of(panel_columns::<P::S>());
    let end = block.task.first + block.task.n_queries;
    rows.reset(n_rows, width, heads.head_dim);
    take_queries(p, block, &mut rows);
    for start in (0..end).step_by(KEY_BLOCK) {
        let keys = start..(start + KEY_BLOCK).min(end);
        score(p, block, &keys, n_rows, &mut rows);
        soften(p, block, &keys, n_rows, &mut rows);
        accumulate(p, block, &keys, n_rows, width, &mut rows);
    }
    write(p.simd(), block, n_rows, width, &rows);
    ROWS_OF_THREAD.set(rows);
}

/// Elements from one row to the next where rows of a `T` lie in the room for `width` f32.
const fn stride_in<T>(width: usize) -> usize {
    width * (size_of::<f32>() / size_of::<T>())
}

impl Rows {
    /// Begins a task of `n_rows` rows of `dim` dimensions whose sums are `width` wide.
    fn reset(&mut self, n_rows: usize, width: usize, dim: usize) {
        self.queries.resize(n_rows * dim, 0.0);
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

/// Where the result of row `r` goes: row `r` is query `r / group` for head `r % group` of the group.
#[inline(always)]
fn place<T>(block: &Block<'_, T>, r: usize) -> (usize, usize) {
    let (heads, group) = (block.call.heads, block.call.heads.group());
    let head = block.part.kv_head * group + r % group;
    (block.part.row + block.task.first + r / group, head * heads.head_dim)
}

/// Copies the task's queries, row by row.
#[inline(always)]
fn take_queries<P: Product>(p: P, block: &Block<'_, P::Left>, rows: &mut Rows) {
    let heads = block.call.heads;
    let dim = heads.head_dim;
    for (r, out) in rows.queries.chunks_exact_mut(dim).enumerate() {
        let (row, column) = place(block, r);
        let query = &block.call.qkv[row * heads.qkv_columns() + column..][..dim];
        // SAFETY: a value is at most as large as f32 and as strictly aligned, and every pattern of
        // bits is one.
        let out = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), dim) };
        convert::<P::S, P::Left>(p.simd(), query, out);
    }
}

/// `scores = queries · keys`.
#[inline(always)]
fn score<P: Product>(
    p: P,
    block: &Block<'_, P::Right>,
    keys: &Range<usize>,
    n_rows: usize,
    rows: &mut Rows,
) {
    let (dim, columns) = (block.call.heads.head_dim, panel_columns::<P::S>());
    for panel_idx in keys.start / columns..keys.end.div_ceil(columns) {
        let panel = &block.keys[panel_idx * dim * columns..][..dim * columns];
        let column = panel_idx * columns - keys.start;
        let mut row = 0;
        while row < n_rows {
            let n = tile_rows::<P::S>(n_rows - row);
            let queries = &rows.queries[row * dim..][..n * dim];
            let scores = &mut rows.scores[row * KEY_BLOCK..][..n * KEY_BLOCK];
            let operands = Operands {
                rows: queries.as_ptr().cast(),
                stride: stride_in::<P::Left>(dim),
                panel: panel.as_ptr(),
                n_k: dim,
                ahead: panel.as_ptr().cast(),
                ahead_step: 0,
            };
            // SAFETY: there are n rows of `dim` queries, and `panel` is a whole one.
            unsafe { tile(p, n, &operands, StoreScores { scores, column }) };
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
fn soften<P: Product>(
    p: P,
    block: &Block<'_, P::Left>,
    keys: &Range<usize>,
    n_rows: usize,
    rows: &mut Rows,
) {
    let group = block.call.heads.group();
    for r in 0..n_rows {
        let position = block.task.first + r / group;
        let scores = &mut rows.scores[r * KEY_BLOCK..][..KEY_BLOCK];
        let seen = (position + 1).saturating_sub(keys.start).min(keys.len());
        if seen == 0 {
            // Nothing to add: the sums stay as they are, bit for bit.
            exponentials(p, scores, 0, keys.len(), 0.0);
            rows.rescale[r] = 1.0;
            continue;
        }
        let old = rows.max[r];
        let max = largest(p.simd(), old, &scores[..seen]);
        let total = exponentials(p, scores, seen, keys.len(), max);
        rows.rescale[r] = (old - max).exp();
        rows.total[r] = rows.total[r] * rows.rescale[r] + total;
        rows.max[r] = max;
    }
}

/// Replaces the first `seen` scores by `exp(score − max)` and the others by zero, in the type that is
/// multiplied, and returns their sum.
#[inline(always)]
fn exponentials<P: Product>(p: P, scores: &mut [f32], seen: usize, end: usize, max: f32) -> f32 {
    let (s, lanes) = (p.simd(), P::S::LANES);
    let max = s.splat(max);
    let mut sums = s.splat(0.0);
    for start in (0..end).step_by(lanes) {
        let n = lanes.min(seen.saturating_sub(start));
        let scores = &mut scores[start..];
        let exp = match n {
            0 => s.splat(0.0),
            n if n == lanes => s.exp(s.sub(load_part(s, scores), max)),
            n => {
                let mut exp = [0f32; KEY_BLOCK];
                store_part(s, &mut exp, s.exp(s.sub(load_part(s, scores), max)));
                load_part(s, &exp[..n])
            }
        };
        sums = s.add(sums, exp);
        // SAFETY: scores are whole registers, as KEY_BLOCK is; an exponential is no larger than a
        // score, so that it overwrites none that is still to be read.
        unsafe {
            let out = scores.as_mut_ptr().sub(start).cast::<P::Left>().add(start);
            P::Left::store(s, out, exp);
        }
    }
    s.sum(sums)
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
fn accumulate<P: Product>(
    p: P,
    block: &Block<'_, P::Right>,
    keys: &Range<usize>,
    n_rows: usize,
    width: usize,
    rows: &mut Rows,
) {
    let columns = panel_columns::<P::S>();
    let depth = P::Right::DEPTH;
    let value_rows = block.part.n_tokens.next_multiple_of(depth);
    for panel_idx in 0..width / columns {
        let start = (panel_idx * value_rows + keys.start) * columns;
        let panel = &block.values[start..][..keys.len().next_multiple_of(depth) * columns];
        let mut row = 0;
        while row < n_rows {
            let n = tile_rows::<P::S>(n_rows - row);
            let scores = &rows.scores[row * KEY_BLOCK..][..n * KEY_BLOCK];
            let sums = &mut rows.sums[row * width..][..n * width];
            let rescale = &rows.rescale[row..][..n];
            let operands = Operands {
                rows: scores.as_ptr().cast(),
                stride: stride_in::<P::Left>(KEY_BLOCK),
                panel: panel.as_ptr(),
                n_k: keys.len(),
                ahead: panel.as_ptr().cast(),
                ahead_step: 0,
            };
            let finish = AddValues { sums, width, column: panel_idx * columns, rescale };
            // SAFETY: `exponentials` has written keys.len() values of each row of scores, and `panel`
            // has as many of its rows.
            unsafe { tile(p, n, &operands, finish) };
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
fn write<S: Simd, T>(s: S, block: &Block<'_, T>, n_rows: usize, width: usize, rows: &Rows) {
    let dim = block.call.heads.head_dim;
    for r in 0..n_rows {
        let (row, column) = place(block, r);
        let scale = s.splat(1.0 / rows.total[r]);
        let sums = &rows.sums[r * width..][..dim];
        for (d, sums) in (0..dim).step_by(S::LANES).zip(sums.chunks(S::LANES)) {
            let values = s.mul(load_part(s, sums), scale);
            // SAFETY: `out` is [T, H · D], checked by `causal_attention`; this task alone writes the
            // heads of its group for its queries.
            unsafe { block.call.out.store(s, row, column + d, column + dim, values) };
        }
    }
}
