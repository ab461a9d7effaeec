//! The division of an attention call into parts that are packed and tasks that are computed.

use std::ops::Range;

use super::heads::Heads;
use crate::cpu::activations::RowsMut;
use crate::cpu::aligned::Aligned;
use crate::{Queries, Ragged, SegmentKind};

/// Keys in a block: a multiple of the columns of a panel in every kernel set. The packed keys and values of a segment
/// start at the beginning of the block in which the segment begins. Before the first token of the segment, they include
/// the keys and values of the earlier tokens of this block, from the segments that it continues. So a segment that
/// begins within a block costs memory and time for tokens of other segments.
pub const KEY_BLOCK: usize = 128;

/// The largest number of rows in a block of queries: queries times the query heads of a key/value head. A block has at
/// least one query, also if the query heads alone are more.
const QUERY_ROWS: usize = 48;

/// Keys and values of a batch, packed as the right operands of matrix multiplications.
#[derive(Debug, Default)]
pub(super) struct PackedKeyValues<T> {
    /// For each part: [panels of keys, steps of D, columns, values of a step].
    pub(super) keys: Aligned<T>,
    /// For each part: [panels of dimensions, steps of keys, columns, values of a step].
    pub(super) values: Aligned<T>,
}

/// The packed keys and values of one key/value head of one segment. The parts of the heads of a segment follow one
/// another.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyValuePart {
    pub(super) segment: usize,
    pub(super) kv_head: usize,
    /// Position of the first packed token, which begins a block of keys.
    pub(super) first: usize,
    /// Packed tokens.
    pub(super) n_tokens: usize,
    /// The index at which the packed keys begin in [`PackedKeyValues::keys`].
    pub(super) keys: usize,
    /// The index at which the packed values begin in [`PackedKeyValues::values`].
    pub(super) values: usize,
}

impl KeyValuePart {
    /// The number of elements of the packed keys.
    pub(super) fn key_size(&self, heads: Heads, columns: usize) -> usize {
        self.n_tokens.next_multiple_of(columns) * heads.head_dim
    }

    /// The number of elements of the packed values, if the number of tokens is rounded up to a multiple of `depth`.
    pub(super) fn value_size(&self, heads: Heads, columns: usize, depth: usize) -> usize {
        self.n_tokens.next_multiple_of(depth) * heads.head_dim.next_multiple_of(columns)
    }
}

/// A block of queries of one segment, for the query heads of one key/value head.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueryTask {
    /// The index of the part with the keys and values of the segment and key/value head.
    pub(super) part: usize,
    /// Position of the first query in the text.
    pub(super) first: usize,
    pub(super) n_queries: usize,
}

/// The operands of a call of [`attention`](super::attention).
pub(super) struct AttentionCall<'a> {
    pub(super) qkv: &'a [f32],
    pub(super) batch: &'a Ragged,
    pub(super) queries: Queries,
    pub(super) heads: Heads,
    /// Columns of a panel.
    pub(super) columns: usize,
    /// The number of packed values, and of exponentials, is rounded up to a multiple of this.
    pub(super) depth: usize,
    pub(super) out: &'a RowsMut<'a>,
}

impl AttentionCall<'_> {
    /// Divides the batch into parts and tasks. Returns the sizes of all packed keys and of all packed values.
    pub(super) fn divide(
        &self,
        parts: &mut Vec<KeyValuePart>,
        tasks: &mut Vec<QueryTask>,
    ) -> [usize; 2] {
        let most = (QUERY_ROWS / self.heads.group()).max(1);
        let (mut keys, mut values) = (0, 0);
        parts.clear();
        tasks.clear();
        for segment in 0..self.batch.n_segments() {
            let positions = self.batch.positions_of(segment);
            let first = positions.start / KEY_BLOCK * KEY_BLOCK;
            let with_queries = self.with_queries(segment, positions.clone());
            // Without queries, the keys are only read by other segments, which read only whole blocks of this segment.
            let end = match with_queries.is_empty() {
                true => positions.end / KEY_BLOCK * KEY_BLOCK,
                false => positions.end,
            };
            let n_tokens = end - first;
            // The number of queries in a task, such that all tasks have about as many.
            let share = with_queries.len().div_ceil(with_queries.len().div_ceil(most).max(1));
            for kv_head in 0..self.heads.n_kv_heads {
                let part = KeyValuePart { segment, kv_head, first, n_tokens, keys, values };
                keys += part.key_size(self.heads, self.columns);
                values += part.value_size(self.heads, self.columns, self.depth);
                tasks.extend(with_queries.clone().step_by(share.max(1)).map(|first| {
                    let n_queries = share.min(with_queries.end - first);
                    QueryTask { part: parts.len(), first, n_queries }
                }));
                parts.push(part);
            }
        }
        [keys, values]
    }

    /// The part of `positions`, the positions of a segment, for which attention computes queries.
    fn with_queries(&self, segment: usize, positions: Range<usize>) -> Range<usize> {
        let end = positions.end;
        match (self.batch.segment(segment).kind, self.queries) {
            (SegmentKind::Text, Queries::Last) => end - 1..end,
            (SegmentKind::Text | SegmentKind::Inner, Queries::All) => positions,
            (SegmentKind::Given, _) | (SegmentKind::Inner, Queries::Last) => end..end,
        }
    }
}
