//! Grouped-query attention over a ragged batch, in blocks and with an online softmax.
//!
//! ```text
//! pack the keys and values of every segment and key/value head into panels
//! for each segment, key/value head and block of queries       (a task; tasks are split over the threads)
//!     for each block of keys that the last query of the block sees
//!         scores = queries · keys                             [rows, keys of the block]
//!         for each row:
//!             m' = max(m, scores of the keys that the row sees)
//!             p  = exp(scores − m'), 0 for keys that the row does not see
//!             l  = l · exp(m − m') + sum(p)
//!             o  = o · exp(m − m') + p · values
//!     out = o / l
//! ```
//!
//! The rows of a block are its queries, once for each query head of a group (the query heads that use the same
//! key/value head). So a panel of keys or values is read once for the whole group. Queries, keys, exponentials and
//! values are multiplied as f32 or as bf16; scores, the sums of exponentials and the weighted sums are f32. Blocks of
//! keys begin at fixed positions of the text, so the result for a row depends on its own text only, bit for bit.
//!
//! If other segments continue a segment, the whole blocks of keys of this segment are packed once for all of them. The
//! keys of its last, partial block are packed again for each segment that continues it, in front of the keys of the
//! continuing segment. So the keys of a block are always contiguous in memory, also if they belong to several segments.
//!
//! # Source
//!
//! Milakov and Gimelshein, *Online normalizer calculation for softmax* (2018); Dao et al.,
//! *FlashAttention* (2022).

mod block;
mod heads;
mod pack;
mod plan;

use half::bf16;
use rayon::prelude::*;

use self::block::Attend;
use self::pack::Pack;
use self::plan::{AttentionCall, KeyValuePart, PackedKeyValues, QueryTask};
use super::activations::RowsMut;
use super::dispatch::Kernels;
use super::formats::{Bf16Kernel, F32Kernel};
use super::scalar::{FloatScalar, Scalar};
use super::tile::TileKernel;
use crate::{Queries, Ragged};

pub use self::heads::Heads;
pub use self::plan::KEY_BLOCK;

/// Buffers of attention. Keep them from call to call, so that calls do not allocate.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    parts: Vec<KeyValuePart>,
    tasks: Vec<QueryTask>,
    f32: PackedKeyValues<f32>,
    bf16: PackedKeyValues<bf16>,
}

/// Attention of every token to the tokens of its own text that it sees: see [`Ragged::seen_from`]. It runs in parallel
/// on rayon's current pool. Queries, keys, weights and values are multiplied in the type of `out`.
///
/// # Shapes
///
/// `qkv` is [P + T, (H + 2K) · D], with queries that are normalized, rotated and divided by √D. `out` is [T, H · D], or
/// [N, H · D] for [`Queries::Last`].
///
/// # Panics
///
/// If a shape is different. The functions of [`ops`](crate::ops) return an error instead.
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
    let (columns, is_f32) = (2 * kernels.lanes, out.is_f32());
    let depth = if is_f32 { f32::DEPTH } else { kernels.bf16_depth };
    let call = AttentionCall { qkv, batch, queries, heads, columns, depth, out };
    if is_f32 {
        run(kernels, F32Kernel, &call, parts, tasks, f32);
    } else {
        run(kernels, Bf16Kernel, &call, parts, tasks, bf16);
    }
}

/// Packs keys and values and computes all tasks with `kernel`.
fn run<T: FloatScalar, K: TileKernel<Left = T, Right = T> + Sync>(
    kernels: &Kernels,
    kernel: K,
    call: &AttentionCall<'_>,
    parts: &mut Vec<KeyValuePart>,
    tasks: &mut Vec<QueryTask>,
    packed: &mut PackedKeyValues<T>,
) {
    let AttentionCall { heads, columns, depth, .. } = *call;
    let [n_keys, n_values] = call.divide(parts, tasks);
    packed.keys.reserve(n_keys);
    packed.values.reserve(n_values);
    let buffers = [Disjoint(packed.keys.as_mut_ptr()), Disjoint(packed.values.as_mut_ptr())];
    parts.par_iter().for_each(|part| {
        let n_values = part.value_size(heads, columns, depth);
        // SAFETY: `divide` assigns disjoint ranges of the buffers to the parts.
        let [keys, values] = unsafe {
            [
                buffers[0].part(part.keys, part.key_size(heads, columns)),
                buffers[1].part(part.values, n_values),
            ]
        };
        kernels.run(Pack { call, part, keys, values });
    });
    // Later queries see more keys. The tasks run in reverse order, so that the longest tasks start first.
    tasks.par_iter().rev().for_each(|task| {
        kernels.run(Attend { kernel, call, parts, task, packed });
    });
}

/// A buffer of which several parts are written at the same time.
struct Disjoint<T>(*mut T);

// SAFETY: parts are disjoint, as the callers of `part` promise.
unsafe impl<T: Send> Sync for Disjoint<T> {}

impl<T> Disjoint<T> {
    /// The `n` values from `start` on.
    ///
    /// # Safety
    ///
    /// The buffer has these values, and there is no other reference to them.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that parts are disjoint")]
    unsafe fn part(&self, start: usize, n: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), n) }
    }
}
