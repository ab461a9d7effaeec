//! Loads and stores of slices that may be shorter than a register.

use super::scalar::{FloatScalar, IntScalar, Widened};
use super::simd::Simd;

/// Loads the first values of a slice. Lanes beyond the end of the slice are zero.
#[inline(always)]
pub(super) fn load_part<S: Simd, T: Widened>(s: S, values: &[T]) -> S::V {
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

/// Stores as much of a register as fits in the slice.
#[inline(always)]
pub(super) fn store_part<S: Simd, T: FloatScalar>(s: S, out: &mut [T], values: S::V) {
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

/// Stores as much of a register as fits in the slice, rounded to the nearest integers.
#[inline(always)]
pub(super) fn store_int_part<S: Simd, T: IntScalar>(s: S, out: &mut [T], values: S::V) {
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

/// Converts values: `out[i] = values[i]`, up to the end of the shorter slice.
#[inline(always)]
pub(super) fn convert<S: Simd, T: FloatScalar>(s: S, values: &[f32], out: &mut [T]) {
    for (values, out) in values.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
        store_part(s, &mut out[..values.len()], load_part(s, values));
    }
}

/// Lanes of the widest register of all instruction sets.
const MAX_LANES: usize = 16;
