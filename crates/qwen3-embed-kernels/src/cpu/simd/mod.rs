//! The vector operations that kernels are written in, and their implementation for each instruction set.
//!
//! A kernel is a generic function over [`Simd`], wrapped in a [`SimdOp`]. A kernel is compiled for an instruction set
//! by being inlined into a function that enables the target features of the set: see `dispatch`. Therefore every method
//! here is `#[inline(always)]`, and kernels do not compute in closures: the body of a closure is compiled without the
//! target features of the function around it, unless the closure happens to be inlined.
//!
//! A new instruction set implements [`FloatOps`], [`IntOps`], [`BlockOps`], [`MatrixOps`] and [`SearchOps`]. The default
//! methods of these traits are correct for every instruction set.

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod block;
mod float;
mod int;
mod matrix;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod search;

pub(super) use block::BlockOps;
pub(super) use float::{FloatOps, TileSums};
pub(super) use int::IntOps;
pub(super) use matrix::{MATRIX_ROW_BYTES, MOST_MATRIX_ROWS, MatrixBlock, MatrixOps};
#[cfg(target_arch = "aarch64")]
pub(super) use neon::Neon;
pub(super) use portable::Portable;
pub(super) use search::SearchOps;
#[cfg(target_arch = "x86_64")]
pub(super) use {avx2::Avx2, avx512::Avx512};

/// All operations of an instruction set.
pub(super) trait Simd: FloatOps + IntOps + BlockOps + MatrixOps + SearchOps {}

impl<S: FloatOps + IntOps + BlockOps + MatrixOps + SearchOps> Simd for S {}

/// A kernel with its arguments, to be run with the instruction set that the CPU has: see
/// [`Kernels::run`](super::dispatch::Kernels::run).
pub(super) trait SimdOp {
    type Output;

    /// Whether the kernel calls methods of [`MatrixOps`] if [`HAS_MATRICES`](MatrixOps::HAS_MATRICES). Other kernels are
    /// not compiled again for instruction sets with matrix registers.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only x86 has such sets"))]
    const USES_MATRICES: bool = false;

    /// Runs the kernel. Implement it `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}
