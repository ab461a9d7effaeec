//! The operations of the forward pass on CUDA devices.
//!
//! Kernels are in `kernels/*.cu`, which the build script compiles if the feature `cuda` is on. The functions here check
//! sizes against the limits of a kernel and return a [`Launch`]: the kernel, the number of blocks and threads, and the
//! scalar arguments of the kernel. `device` runs a launch on a GPU. Tests also run launches on an emulator, which runs
//! the same kernels on the CPU, so that launches are tested without a GPU.

mod attention;
#[cfg(feature = "cuda")]
pub(crate) mod device;
#[cfg(test)]
mod emulator;
mod gemm;
#[cfg(feature = "cuda")]
pub(crate) mod queue;
#[cfg(feature = "cuda")]
pub(crate) mod recording;

#[cfg(test)]
mod tests;

pub(crate) use attention::{Attention, AttentionIndex, AttentionKernel, attention};
#[cfg(feature = "cuda")]
pub(crate) use gemm::Gemm;

use crate::cpu::Heads;
use crate::{Error, Result};

/// A type of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ElementType {
    F32,
    Bf16,
    F16,
}

impl ElementType {
    /// The suffix of the names of kernels for this type.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// Bytes of a value.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// A launch of a kernel, without its pointers, which are its first arguments.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Launch {
    /// The operation, which is the first part of the kernel's name.
    pub(crate) operation: &'static str,
    /// The type, which is the last part of the kernel's name.
    pub(crate) element: ElementType,
    /// Blocks in each dimension. Zero if there is nothing to do.
    pub(crate) grid: [u32; 3],
    /// Threads in a block: a multiple of the 32 threads of a warp.
    pub(crate) block: u32,
    /// Integer arguments, in order.
    pub(crate) numbers: Vec<u32>,
    /// Floating-point arguments, in order.
    pub(crate) floats: Vec<f32>,
}

impl Launch {
    /// The name of the kernel.
    pub(crate) fn name(&self) -> String {
        format!("{}_{}", self.operation, self.element.name())
    }

    /// Whether there is nothing to do. CUDA rejects such launches.
    pub(crate) fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }
}

/// The shape of a matrix, and the distance between its rows in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) n_rows: usize,
    pub(crate) n_columns: usize,
    pub(crate) stride: usize,
}

impl Shape {
    /// A matrix without gaps between rows.
    #[cfg(test)]
    pub(crate) fn dense(n_rows: usize, n_columns: usize) -> Self {
        Self { n_rows, n_columns, stride: n_columns }
    }
}

/// Threads of a block that computes a row or a part of a row.
const ROW_BLOCK: u32 = 256;

/// The largest head dimension for which the kernels have registers.
const MOST_HEAD_DIM: usize = 256;

/// The largest number of blocks in the first dimension of a grid, and in the second.
const MOST_BLOCKS: [usize; 2] = [i32::MAX as usize, 65_535];

/// A launch of RMSNorm. The pointers are `x`, f32, `weight`, f32, and `out`.
pub(crate) fn rms_norm(element: ElementType, x: Shape, out: Shape, eps: f32) -> Result<Launch> {
    const OP: &str = "rms_norm";
    Ok(Launch {
        operation: OP,
        element,
        grid: grid(OP, [x.n_rows, 1])?,
        block: ROW_BLOCK,
        numbers: numbers(OP, &[x.n_columns, x.stride, out.stride])?,
        floats: vec![eps],
    })
}

/// A launch of per-head RMSNorm and RoPE. The pointers are `qkv`, and the norm weights of queries and of keys, cosines
/// and sines, which are f32.
pub(crate) fn qk_norm_rope(
    element: ElementType,
    qkv: Shape,
    heads: Heads,
    first_query: usize,
    eps: f32,
) -> Result<Launch> {
    const OP: &str = "qk_norm_rope";
    const WARPS: usize = 4;
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    at_most(OP, "head_dim", head_dim, MOST_HEAD_DIM)?;
    let n_warps = qkv.n_rows.saturating_mul(n_heads + n_kv_heads);
    Ok(Launch {
        operation: OP,
        element,
        grid: grid(OP, [n_warps.div_ceil(WARPS), 1])?,
        block: WARPS as u32 * 32,
        numbers: numbers(
            OP,
            &[qkv.n_rows, n_heads, n_kv_heads, head_dim, qkv.stride, first_query],
        )?,
        floats: vec![eps],
    })
}

/// A launch of SwiGLU. The pointers are `gate_up` and `out`.
pub(crate) fn swiglu(element: ElementType, gate_up: Shape, out: Shape) -> Result<Launch> {
    const CHUNK_BYTES: usize = 16;
    let numbers = [out.n_columns, gate_up.stride, out.stride];
    columns("swiglu", element, out, CHUNK_BYTES / element.size(), &numbers)
}

/// A launch that adds a bias to `out` if `add`, and otherwise overwrites `out` with the bias. The pointers are `bias`,
/// f32, and `out`.
pub(crate) fn bias(element: ElementType, out: Shape, add: bool) -> Result<Launch> {
    columns("bias", element, out, 1, &[out.n_columns, out.stride, add.into()])
}

/// A launch that copies a matrix. The pointers are `x` and `out`.
pub(crate) fn copy_rows(element: ElementType, x: Shape, out: Shape) -> Result<Launch> {
    columns("copy_rows", element, out, 1, &[out.n_columns, x.stride, out.stride])
}

/// A launch that copies rows of a table. The pointers are the table, the indices of the rows, u32, and `out`, f32.
pub(crate) fn gather_rows(element: ElementType, table: Shape, out: Shape) -> Result<Launch> {
    const OP: &str = "gather_rows";
    const NEIGHBORS: usize = 4;
    let n_threads = out.n_columns.div_ceil(NEIGHBORS).next_multiple_of(32);
    Ok(Launch {
        operation: OP,
        element,
        grid: grid(OP, [out.n_rows, 1])?,
        block: ROW_BLOCK.min(n_threads as u32),
        numbers: numbers(OP, &[out.n_columns, table.stride, out.stride])?,
        floats: Vec::new(),
    })
}

/// A launch with a thread for each `n_neighbors` values in a row of `out`.
fn columns(
    op: &'static str,
    element: ElementType,
    out: Shape,
    n_neighbors: usize,
    args: &[usize],
) -> Result<Launch> {
    let n_columns = ROW_BLOCK as usize * n_neighbors;
    Ok(Launch {
        operation: op,
        element,
        grid: grid(op, [out.n_rows, out.n_columns.div_ceil(n_columns)])?,
        block: ROW_BLOCK,
        numbers: numbers(op, args)?,
        floats: Vec::new(),
    })
}

fn grid(op: &'static str, blocks: [usize; 2]) -> Result<[u32; 3]> {
    for (got, limit) in blocks.into_iter().zip(MOST_BLOCKS) {
        at_most(op, "the number of thread blocks", got, limit)?;
    }
    Ok([blocks[0] as u32, blocks[1] as u32, 1])
}

fn numbers(op: &'static str, values: &[usize]) -> Result<Vec<u32>> {
    values
        .iter()
        .map(|&value| {
            at_most(op, "a size", value, u32::MAX as usize)?;
            Ok(value as u32)
        })
        .collect()
}

fn at_most(op: &'static str, what: &'static str, got: usize, limit: usize) -> Result<()> {
    if got <= limit { Ok(()) } else { Err(Error::Limit { op, what, got, limit }) }
}
