//! An orthogonal transform of the input of a linear layer that spreads large values over their neighbors.
//!
//! The mean squared error of quantizing a group to 8 bits grows with the square of the largest value of the group. The
//! inputs of down projections are products of two activations, and their largest values are far above the others. After
//! a rotation, the values are distributed about normally. Weights are rotated too when they are packed, so the result
//! of the matrix multiplication stays the same: `(R x) · (R w) = x · w`.
//!
//! `R` is a Walsh–Hadamard transform of 16 values that are [`POINTS`] apart, within blocks of [`ROTATION`] values.
//! Therefore the transform consists of additions of whole registers, and no value moves to another lane.
//!
//! ```text
//! for h in 1, 2, 4, 8:
//!     for each pair (j, j + h):                      of 16 registers, r[j] = x[16 j ..]
//!         r[j], r[j + h] = r[j] + r[j + h], r[j] − r[j + h]
//! out = r / 4
//! ```

use super::scalar::FloatScalar;
use super::simd::{Portable, Simd};
use super::vector::{load_part, store_part};

/// The number of values that [`rotate`] transforms together. Only rows of whole blocks of this size can be rotated.
pub const ROTATION: usize = 256;

/// The number of values that are transformed together, and the distance between them.
const POINTS: usize = 16;

/// Rotates a row in place: applies an orthogonal transform to each block of [`ROTATION`] values, which spreads large
/// values over other values of the block. So quantization to 8 bits loses less accuracy. The transform is its own
/// inverse.
///
/// # Panics
///
/// If the length of the row is not a multiple of [`ROTATION`].
pub fn rotate(row: &mut [f32]) {
    let (blocks, rest) = row.as_chunks_mut::<ROTATION>();
    assert!(rest.is_empty(), "the length of a rotated row is a multiple of {ROTATION}");
    for block in blocks {
        *block = rotated(Portable, block.as_slice());
    }
}

/// Rotates a block.
#[inline(always)]
pub(super) fn rotated<S: Simd, T: FloatScalar>(s: S, block: &[T]) -> [f32; ROTATION] {
    const { assert!(POINTS.is_multiple_of(S::LANES) && POINTS * POINTS == ROTATION) };
    let mut out = [0f32; ROTATION];
    for lane in (0..POINTS).step_by(S::LANES) {
        let mut r = [s.splat(0.0); POINTS];
        for (j, r) in r.iter_mut().enumerate() {
            *r = load_part(s, &block[POINTS * j + lane..]);
        }
        butterflies::<S, 1>(s, &mut r);
        butterflies::<S, 2>(s, &mut r);
        butterflies::<S, 4>(s, &mut r);
        butterflies::<S, 8>(s, &mut r);
        for (j, r) in r.into_iter().enumerate() {
            store_part(s, &mut out[POINTS * j + lane..], s.mul(r, s.splat(0.25)));
        }
    }
    out
}

/// One step of the transform: sums and differences of registers that are `H` apart.
#[inline(always)]
fn butterflies<S: Simd, const H: usize>(s: S, r: &mut [S::V; POINTS]) {
    for pairs in r.chunks_exact_mut(2 * H) {
        let (first, second) = pairs.split_at_mut(H);
        for (a, b) in first.iter_mut().zip(second) {
            (*a, *b) = (s.add(*a, *b), s.sub(*a, *b));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waves(seed: usize) -> Vec<f32> {
        (0..2 * ROTATION).map(|i| ((i * i + seed) as f32).sin()).collect()
    }

    #[test]
    fn rotation_keeps_dot_products_and_is_its_own_inverse() {
        let (mut a, mut b) = (waves(1), waves(2));
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let before = (dot(&a, &b), dot(&a, &a));
        rotate(&mut a);
        rotate(&mut b);
        let after = (dot(&a, &b), dot(&a, &a));
        assert!((before.0 - after.0).abs() < 1e-4 && (before.1 - after.1).abs() < 1e-4);
        rotate(&mut a);
        assert!(a.iter().zip(waves(1)).all(|(a, expected)| (a - expected).abs() < 1e-6));
    }

    #[test]
    fn rotation_spreads_one_value_over_sixteen() {
        let mut x = vec![0f32; ROTATION];
        x[37] = 8.0;
        rotate(&mut x);
        for (i, x) in x.iter().enumerate() {
            assert_eq!(x.abs(), if i % POINTS == 37 % POINTS { 2.0 } else { 0.0 }, "{i}");
        }
    }

    #[test]
    #[should_panic(expected = "a multiple of")]
    fn rejects_rows_that_are_not_whole_blocks() {
        rotate(&mut [0.0; 300]);
    }
}
