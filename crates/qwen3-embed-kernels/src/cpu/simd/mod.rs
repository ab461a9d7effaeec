//! The vector operations that kernels are written in, and their implementation for each instruction set.
//!
//! A kernel is one generic function over [`Simd`], wrapped in a [`SimdOp`]. It is compiled for an instruction set by
//! being inlined into a function that enables the features of that set: see `dispatch`. Therefore every method here
//! is `#[inline(always)]`, and kernels contain no closures that compute: the body of a closure is compiled without the
//! features of the function around it unless it happens to be inlined.
//!
//! A new instruction set implements [`FloatOps`], [`IntOps`] and [`BlockOps`], whose default methods are right for
//! every set that has the required ones.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod block;
mod float;
mod int;
mod portable;

pub(super) use block::BlockOps;
pub(super) use float::{FloatOps, TileSums};
pub(super) use int::IntOps;
pub(super) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(super) use {avx2::Avx2, avx512::Avx512};

/// All operations of an instruction set.
pub(super) trait Simd: FloatOps + IntOps + BlockOps {}

impl<S: FloatOps + IntOps + BlockOps> Simd for S {}

/// A kernel with its arguments, to be run with the instruction set that the CPU has: see
/// [`Kernels::run`](super::dispatch::Kernels::run).
pub(super) trait SimdOp {
    type Output;

    /// Runs the kernel. Implement it `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}
