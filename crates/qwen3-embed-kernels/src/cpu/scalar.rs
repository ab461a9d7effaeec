//! The types of the values that kernels read and write.

use half::{bf16, f16};

use super::simd::Simd;

/// A type of values in memory.
///
/// # Safety
///
/// Every bit pattern is a valid value, and all bits zero is the value zero.
pub(super) unsafe trait Scalar: Copy + Default + Send + Sync {
    /// Values of `k` that are side by side in a column of a panel of this type.
    const DEPTH: usize;
}

// SAFETY: every bit pattern is an f32, and zero bits are 0.0.
unsafe impl Scalar for f32 {
    const DEPTH: usize = 1;
}

// SAFETY: bf16 is a transparent u16, and zero bits are 0.0.
unsafe impl Scalar for bf16 {
    const DEPTH: usize = 2;
}

// SAFETY: every bit pattern is an i8.
unsafe impl Scalar for i8 {
    const DEPTH: usize = 2;
}

// SAFETY: every bit pattern is a u8.
unsafe impl Scalar for u8 {
    const DEPTH: usize = 4;
}

// SAFETY: every bit pattern is an i16.
unsafe impl Scalar for i16 {
    const DEPTH: usize = 2;
}

/// A floating-point type that is loaded into registers of f32.
///
/// # Safety
///
/// As of [`Scalar`].
pub(super) unsafe trait Widened: Copy + Default + Send + Sync {
    /// Loads a register.
    ///
    /// # Safety
    ///
    /// `p` is valid for reading `S::LANES` values.
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V;
}

// SAFETY: every bit pattern is an f32, and zero bits are 0.0.
unsafe impl Widened for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load(p) }
    }
}

// SAFETY: bf16 is a transparent u16, and zero bits are 0.0.
unsafe impl Widened for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(p) }
    }
}

// SAFETY: f16 is a transparent u16, and zero bits are 0.0.
unsafe impl Widened for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, p: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(p) }
    }
}

/// A floating-point type that is loaded into and stored from registers of f32.
///
/// # Safety
///
/// The size and the alignment of a value are at most those of f32.
pub(super) unsafe trait FloatScalar: Scalar + Widened {
    /// Stores a register, rounding each value to this type.
    ///
    /// # Safety
    ///
    /// `p` is valid for writing `S::LANES` values.
    unsafe fn store<S: Simd>(s: S, p: *mut Self, x: S::V);
    /// Stores one step of `S::LANES` columns of a panel. `first` has the values for the first `k` of the step, and
    /// `second` has the values for the second `k`, which are unused if `DEPTH` is 1.
    ///
    /// # Safety
    ///
    /// `p` is valid for writing `S::LANES · DEPTH` values.
    unsafe fn store_step<S: Simd>(s: S, p: *mut Self, first: S::V, second: S::V);
}

// SAFETY: it is f32.
unsafe impl FloatScalar for f32 {
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut Self, x: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store(p, x) }
    }

    #[inline(always)]
    unsafe fn store_step<S: Simd>(s: S, p: *mut Self, first: S::V, _: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store(p, first) }
    }
}

// SAFETY: bf16 has half the size and alignment of f32.
unsafe impl FloatScalar for bf16 {
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut Self, x: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store_bf16(p, x) }
    }

    #[inline(always)]
    unsafe fn store_step<S: Simd>(s: S, p: *mut Self, first: S::V, second: S::V) {
        // SAFETY: the caller's promise: `p` is valid for LANES pairs.
        unsafe { s.store(p.cast(), s.pair(first, second)) }
    }
}

/// An integer type to which activations are quantized.
///
/// # Safety
///
/// The size and the alignment of a value are at most those of f32.
pub(super) unsafe trait IntScalar: Scalar {
    /// The largest magnitude of a quantized value.
    const LARGEST: f32;
    /// Stores a register, rounding each value to the nearest integer. The magnitude of each value must be at most
    /// [`LARGEST`](Self::LARGEST).
    ///
    /// # Safety
    ///
    /// `p` is valid for writing `S::LANES` values.
    unsafe fn store<S: Simd>(s: S, p: *mut Self, x: S::V);
}

// SAFETY: i16 has half the size and alignment of f32.
unsafe impl IntScalar for i16 {
    const LARGEST: f32 = i16::MAX as f32;

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut Self, x: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store_i16(p, x) }
    }
}

// SAFETY: i8 has a quarter of the size and alignment of f32.
unsafe impl IntScalar for i8 {
    const LARGEST: f32 = i8::MAX as f32;

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, p: *mut Self, x: S::V) {
        // SAFETY: the caller's promise.
        unsafe { s.store_i8(p, x) }
    }
}
