//! Slices that need not be a whole number of registers.

use super::product::{Float, Whole};
use super::simd::Simd;

/// The first values of a slice, zeros where it is shorter than a register.
#[inline(always)]
pub(super) fn load_part<S: Simd, T: Float>(s: S, values: &[T]) -> S::V {
    const { assert!(S::LANES <= MAX_LANES) };
    if values.len() >= S::LANES {
        // SAFETY: the length was just checked.
        return unsafe { T::load(s, values.as_ptr()) };
    }
    let mut padded = [T::default(); MAX_LANES];
    padded[..values.len()].copy_from_slice(values);
    // SAFETY: `padded` has as many values as any register.
    unsafe { T::load(s, padded.as_ptr()) }
}

/// Writes a register to a slice, as much of it as fits.
#[inline(always)]
pub(super) fn store_part<S: Simd, T: Float>(s: S, out: &mut [T], values: S::V) {
    const { assert!(S::LANES <= MAX_LANES) };
    if out.len() >= S::LANES {
        // SAFETY: the length was just checked.
        return unsafe { T::store(s, out.as_mut_ptr(), values) };
    }
    let mut padded = [T::default(); MAX_LANES];
    // SAFETY: `padded` has as many values as any register.
    unsafe { T::store(s, padded.as_mut_ptr(), values) };
    out.copy_from_slice(&padded[..out.len()]);
}

/// Writes the nearest whole numbers to a slice, as many of them as fit.
#[inline(always)]
pub(super) fn store_whole_part<S: Simd, T: Whole>(s: S, out: &mut [T], values: S::V) {
    const { assert!(S::LANES <= MAX_LANES) };
    if out.len() >= S::LANES {
        // SAFETY: the length was just checked.
        return unsafe { T::store(s, out.as_mut_ptr(), values) };
    }
    let mut padded = [T::default(); MAX_LANES];
    // SAFETY: `padded` has as many values as any register.
    unsafe { T::store(s, padded.as_mut_ptr(), values) };
    out.copy_from_slice(&padded[..out.len()]);
}

/// `out[i] = values[i]`, for as many as there are.
#[inline(always)]
pub(super) fn convert<S: Simd, T: Float>(s: S, values: &[f32], out: &mut [T]) {
    for (values, out) in values.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
        store_part(s, &mut out[..values.len()], load_part(s, values));
    }
}

/// Lanes of the widest register of any kernel set.
const MAX_LANES: usize = 16;
