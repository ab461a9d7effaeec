//! Grouped-query attention over a ragged batch, in blocks and with an online softmax.
//!
//! ```text
//! pack the keys and values of every segment and key/value head into panels
//! for each segment, key/value head and block of queries       (split over the threads)
//!     for each block of keys that its last query sees
//!         scores = queries · keys                             [rows, keys of the block]
//!         for each row:
//!             m' = max(m, scores of what the row sees)
//!             p  = exp(scores − m'), 0 beyond what the row sees
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
//! What a segment continues is packed once for all that continue it, as far as it fills whole blocks
//! of keys. Its last, broken block each of them packs again, in front of its own tokens: a block lies
//! in one place, whatever the segments of its tokens.
//!
//! # Source
//!
//! Milakov and Gimelshein, *Online normalizer calculation for softmax* (2018); Dao et al.,
//! *FlashAttention* (2022).

mod block;
mod pack;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::Kernels;
use super::activations::RowsMut;
use super::aligned::Aligned;
use super::product::Float;
use crate::{Queries, Ragged, SegmentKind};

pub(super) use block::attend;
pub(super) use pack::pack;

/// Keys of a block: a multiple of every kernel set's panel, and of its registers. A segment has packed keys and values
/// of its own from the beginning of the block in which it begins, those of what it continues among them.
pub const KEY_BLOCK: usize = 128;

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
    pub(crate) fn group(&self) -> usize {
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

/// One key/value head of one segment: as many parts as there are heads follow one another for each
/// segment.
#[derive(Debug, Clone, Copy)]
struct Part {
    segment: usize,
    kv_head: usize,
    /// Position of the first token that is packed, which begins a block of keys, and how many are.
    first: usize,
    n_tokens: usize,
    /// Where its packed keys and values begin.
    keys: usize,
    values: usize,
}

/// A block of one segment's queries for the heads that share a key/value head.
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

/// Attention of every token to what it sees of its own text, in parallel on rayon's current pool. It
/// multiplies in the type of `out`.
///
/// # Shapes
///
/// `qkv` is [P + T, (H + 2K) · D], the queries normed, rotated and divided by √D; `out` is
/// [T, H · D], or [N, H · D] for [`Queries::Last`].
///
/// # Panics
///
/// If they are not; `qwen3_embed_kernels::ops` checks before it calls.
pub fn attention(
    kernels: &Kernels,
    qkv: &[f32],
    batch: &Ragged,
    queries: Queries,
    heads: Heads,
    scratch: &mut AttentionScratch,
    out: &mut RowsMut<'_>,
) {
    heads.assert_whole();
    let (n_rows, first_query) = (batch.n_rows(), batch.first_query(queries));
    assert_eq!(qkv.len(), n_rows * heads.qkv_columns(), "qkv is [P + T, (H + 2K) · D]");
    let shape = [n_rows - first_query, heads.q_columns()];
    assert_eq!([out.n_rows, out.n_columns], shape, "out is [queries, H · D]");
    let AttentionScratch { parts, tasks, f32, bf16 } = scratch;
    let call = Call { qkv, batch, queries, heads, columns: 2 * kernels.lanes, out };
    if out.is_f32() {
        call.run(parts, tasks, f32, &kernels.attention_f32);
    } else {
        call.run(parts, tasks, bf16, &kernels.attention_bf16);
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
    batch: &'a Ragged,
    queries: Queries,
    heads: Heads,
    /// Columns of a panel.
    columns: usize,
    out: &'a RowsMut<'a>,
}

impl Call<'_> {
    fn run<T: Float>(
        &self,
        parts: &mut Vec<Part>,
        tasks: &mut Vec<Task>,
        panels: &mut Panels<T>,
        kernels: &AttentionKernels<T>,
    ) {
        let [n_keys, n_values] = self.divide::<T>(parts, tasks);
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
            // SAFETY: the table's instructions are there, as for every table.
            unsafe { (kernels.attend)(&Block { call: self, parts, task, panels }) };
        });
    }

    /// Divides the batch into parts and tasks; returns the sizes of all packed keys and values.
    fn divide<T: Float>(&self, parts: &mut Vec<Part>, tasks: &mut Vec<Task>) -> [usize; 2] {
        let most = (QUERY_ROWS / self.heads.group()).max(1);
        let (mut keys, mut values) = (0, 0);
        parts.clear();
        tasks.clear();
        for segment in 0..self.batch.n_segments() {
            let positions = self.batch.positions_of(segment);
            let first = positions.start / KEY_BLOCK * KEY_BLOCK;
            let with_queries = self.with_queries(segment, positions.clone());
            // Others read no more than whole blocks.
            let end = match with_queries.is_empty() {
                true => positions.end / KEY_BLOCK * KEY_BLOCK,
                false => positions.end,
            };
            let n_tokens = end - first;
            // As even a share as whole queries allow.
            let share = with_queries.len().div_ceil(with_queries.len().div_ceil(most).max(1));
            for kv_head in 0..self.heads.n_kv_heads {
                let part = Part { segment, kv_head, first, n_tokens, keys, values };
                keys += part.key_size(self.heads, self.columns);
                values += part.value_size(self.heads, self.columns, T::DEPTH);
                tasks.extend(with_queries.clone().step_by(share.max(1)).map(|first| {
                    let n_queries = share.min(with_queries.end - first);
                    Task { part: parts.len(), first, n_queries }
                }));
                parts.push(part);
            }
        }
        [keys, values]
    }

    /// The positions of a segment, of all `positions` of its own, that have queries.
    fn with_queries(&self, segment: usize, positions: Range<usize>) -> Range<usize> {
        let end = positions.end;
        match (self.batch.segment(segment).kind, self.queries) {
            (SegmentKind::Text, Queries::Last) => end - 1..end,
            (SegmentKind::Text | SegmentKind::Inner, Queries::All) => positions,
            (SegmentKind::Given, _) | (SegmentKind::Inner, Queries::Last) => end..end,
        }
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
    parts: &'a [Part],
    task: &'a Task,
    panels: &'a Panels<T>,
}

impl<'a, T: Float> Block<'a, T> {
    fn part(&self) -> &'a Part {
        &self.parts[self.task.part]
    }

    /// The position behind the last key that a query of the task sees.
    fn seen_from(&self, query: usize) -> usize {
        self.call.batch.seen_from(self.part().segment, self.task.first + query).end
    }

    /// The part that has the block of keys from position `start` on: the task's, or one that its
    /// segment continues. Its packed keys and values come with it.
    fn holder(&self, start: usize) -> (&'a Part, &'a [T], &'a [T]) {
        let Call { batch, heads, columns, .. } = *self.call;
        let mut part = self.part();
        while start < part.first {
            let parent = batch.segment(part.segment).parent.expect("a text begins at position 0");
            part = &self.parts[parent * heads.n_kv_heads + part.kv_head];
        }
        let keys = &self.panels.keys[part.keys..][..part.key_size(heads, columns)];
        let n_values = part.value_size(heads, columns, T::DEPTH);
        (part, keys, &self.panels.values[part.values..][..n_values])
    }
}
