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
//! scores, the exponentials' sums and the weighted sums are f32. Blocks of keys begin at fixed
//! positions of the text: a row's result depends on its own text only, bit for bit.
//!
//! # Source
//!
//! Milakov and Gimelshein, *Online normalizer calculation for softmax* (2018); Dao et al.,
//! *FlashAttention* (2022).

mod block;
mod pack;

use half::bf16;
use rayon::prelude::*;

use super::Kernels;
use super::activations::RowsMut;
use super::aligned::Aligned;
use super::product::Float;
use crate::Ragged;

pub(super) use block::attend;
pub(super) use pack::pack;

/// Keys of a block: a multiple of every kernel set's panel, and of its registers.
const KEY_BLOCK: usize = 128;

/// Rows of a block of queries, over the heads of a group, at least one query.
const QUERY_ROWS: usize = 48;

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

    /// Whether K divides H, and D is even and not zero.
    pub fn is_whole(&self) -> bool {
        self.n_kv_heads > 0
            && self.n_heads.is_multiple_of(self.n_kv_heads)
            && self.head_dim > 0
            && self.head_dim.is_multiple_of(2)
    }

    pub(super) fn assert_whole(&self) {
        assert!(self.is_whole(), "K divides H and D is even: {self:?}");
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
    keys: Aligned<T>,
    /// For each part: [panels of dimensions, steps of keys, columns, values of a step].
    values: Aligned<T>,
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
    heads.assert_whole();
    let n_tokens = batch.n_tokens();
    assert_eq!(qkv.len(), n_tokens * heads.qkv_columns(), "qkv is [T, (H + 2K) · D]");
    assert_eq!([out.n_rows, out.n_columns], [n_tokens, heads.q_columns()], "out is [T, H · D]");
    let AttentionScratch { parts, tasks, f32, bf16 } = scratch;
    let call = Call { qkv, heads, columns: 2 * kernels.lanes, out };
    if out.is_f32() {
        call.run(batch, parts, tasks, f32, &kernels.attention_f32);
    } else {
        call.run(batch, parts, tasks, bf16, &kernels.attention_bf16);
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
    fn run<T: Float>(
        &self,
        batch: &Ragged,
        parts: &mut Vec<Part>,
        tasks: &mut Vec<Task>,
        panels: &mut Panels<T>,
        kernels: &AttentionKernels<T>,
    ) {
        let [n_keys, n_values] = self.divide::<T>(batch, parts, tasks);
        panels.keys.reserve(n_keys);
        panels.values.reserve(n_values);
        let room = [Disjoint(panels.keys.as_mut_ptr()), Disjoint(panels.values.as_mut_ptr())];
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
    fn divide<T: Float>(
        &self,
        batch: &Ragged,
        parts: &mut Vec<Part>,
        tasks: &mut Vec<Task>,
    ) -> [usize; 2] {
        let most = (QUERY_ROWS / self.heads.group()).max(1);
        let (mut keys, mut values) = (0, 0);
        parts.clear();
        tasks.clear();
        for text in batch.ranges() {
            let (row, n_tokens) = (text.start, text.len());
            // As even a share as whole queries allow.
            let share = n_tokens.div_ceil(n_tokens.div_ceil(most));
            for kv_head in 0..self.heads.n_kv_heads {
                let part = Part { row, n_tokens, kv_head, keys, values };
                keys += part.key_size(self.heads, self.columns);
                values += part.value_size(self.heads, self.columns, T::DEPTH);
                tasks.extend((0..n_tokens).step_by(share).map(|first| {
                    let n_queries = share.min(n_tokens - first);
                    Task { part: parts.len(), first, n_queries }
                }));
                parts.push(part);
            }
        }
        [keys, values]
    }
}

/// Memory that parts write to, each at its own place.
struct Disjoint<T>(*mut T);

// SAFETY: parts are disjoint, as the callers of `part` vouch.
unsafe impl<T: Send> Sync for Disjoint<T> {}

impl<T> Disjoint<T> {
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
