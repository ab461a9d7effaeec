//! Launches of attention, and the description of a batch that the kernels read.

use super::{ElementType, Launch, MOST_HEAD_DIM, Shape, at_most, grid, numbers};
use crate::cpu::Heads;
use crate::{Queries, Ragged, Result, SegmentKind};

/// Attention over a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attention {
    pub(crate) heads: Heads,
    pub(crate) queries: Queries,
    /// Whether a token sees only itself and the tokens before it. If false, it sees its whole text.
    pub(crate) causal: bool,
}

/// A kernel for attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttentionKernel {
    /// The kernel for tensor cores: for 16-bit types and a head_dim of 128.
    Flash,
    /// The kernel for every type and any head_dim up to 256.
    Simple,
}

/// The description of a batch that the kernels read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AttentionIndex {
    /// Five numbers for each segment: `struct Segment` of `kernels/segments.cuh`.
    pub(crate) segments: Vec<u32>,
    /// Three numbers for each tile: `struct Tile` of the same file. Tiles with many keys come first, so that no tile
    /// that takes long starts last.
    pub(crate) tiles: Vec<u32>,
}

/// The head_dim of the kernel for tensor cores.
const FLASH_HEAD_DIM: usize = 128;

/// Rows of a block of the kernel for tensor cores: queries times the query heads of a group.
const FLASH_ROWS: usize = 64;

/// Queries of a block of the simple kernel. A block has a warp for each query.
const SIMPLE_QUERIES: usize = 4;

/// Values in the 16 bytes that the kernel for tensor cores reads at once.
const FLASH_ALIGNMENT: usize = 8;

impl AttentionKernel {
    /// The fastest kernel that supports these heads and operands. `places` has, for each operand, the distance between
    /// its rows and its offset in its allocation.
    pub(crate) fn choose(element: ElementType, heads: Heads, places: [[usize; 2]; 2]) -> Self {
        let is_aligned = places.concat().iter().all(|n| n.is_multiple_of(FLASH_ALIGNMENT));
        let fits = heads.head_dim == FLASH_HEAD_DIM && heads.group() <= FLASH_ROWS;
        if element != ElementType::F32 && fits && is_aligned { Self::Flash } else { Self::Simple }
    }

    /// The largest number of queries of a block.
    fn n_queries(self, heads: Heads) -> usize {
        match self {
            Self::Flash => FLASH_ROWS / heads.group(),
            Self::Simple => SIMPLE_QUERIES,
        }
    }
}

impl AttentionIndex {
    /// The index of a batch for a kernel.
    pub(crate) fn new(batch: &Ragged, attention: Attention, kernel: AttentionKernel) -> Self {
        const NO_PARENT: u32 = u32::MAX;
        let n_queries = kernel.n_queries(attention.heads);
        // `Ragged` has checked that rows and positions fit in u32.
        let mut segments = Vec::with_capacity(5 * batch.n_segments());
        let mut tiles: Vec<[u32; 3]> = Vec::new();
        for idx in 0..batch.n_segments() {
            let segment = batch.segment(idx);
            let positions = batch.positions_of(idx);
            let rows = batch.rows_of(idx);
            let parent = segment.parent.map_or(NO_PARENT, |parent| parent as u32);
            let [start, end] = [positions.start, positions.end].map(|position| position as u32);
            segments.extend([start, end, rows[0] as u32, rows[1] as u32, parent]);
            let first = match (segment.kind, attention.queries) {
                (SegmentKind::Given, _) => continue,
                (_, Queries::All) => positions.start,
                (SegmentKind::Text, Queries::Last) => positions.end - 1,
                (SegmentKind::Inner, Queries::Last) => continue,
            };
            for first in (first..positions.end).step_by(n_queries) {
                let n = n_queries.min(positions.end - first);
                tiles.push([idx as u32, first as u32, n as u32]);
            }
        }
        tiles.sort_by_key(|&[_, first, n]| std::cmp::Reverse(first + n));
        Self { segments, tiles: tiles.concat() }
    }
}

/// A launch of attention. The pointers are `qkv`, `out`, and the segments and tiles of an [`AttentionIndex`]. The first
/// row of `out` is the result for the row `first_query` of the batch.
pub(crate) fn attention(
    element: ElementType,
    kernel: AttentionKernel,
    attention: Attention,
    n_tiles: usize,
    [qkv, out]: [Shape; 2],
    first_query: usize,
) -> Result<Launch> {
    let Heads { n_heads, n_kv_heads, head_dim } = attention.heads;
    let (op, blocks, n_threads) = match kernel {
        AttentionKernel::Flash => ("flash_attention", n_kv_heads, 128),
        AttentionKernel::Simple => ("attention", n_heads, SIMPLE_QUERIES as u32 * 32),
    };
    at_most(op, "head_dim", head_dim, MOST_HEAD_DIM)?;
    let mut sizes = vec![n_heads, n_kv_heads];
    if kernel == AttentionKernel::Simple {
        sizes.push(head_dim);
    }
    sizes.extend([qkv.stride, out.stride, first_query, attention.causal.into()]);
    Ok(Launch {
        operation: op,
        element,
        grid: grid(op, [n_tiles, blocks])?,
        block: n_threads,
        numbers: numbers(op, &sizes)?,
        floats: Vec::new(),
    })
}
