//! Statistics of activations: which features are outliers, and how much accuracy 8-bit quantization loses.
//!
//! In trained Qwen3 models, a few features are up to thousands of times as large as the others, and they are the same
//! features for nearly every token. Rounding the weights of such a feature to 8 bits causes an error that is as much
//! larger. The activations of a few tokens show which features are outliers, and whether the activations can be
//! quantized to 8 bits, too.

use candle_core::Tensor;
use qwen3_embed_kernels::cpu::{ROTATION, rotate};
use qwen3_embed_kernels::ops;

use crate::Result;

/// The largest number of outliers of one input: as many features as share a scale.
const MAX_OUTLIERS: usize = 32;

/// An outlier's root mean square is at least this many times the median of all features.
const MIN_OUTLIER_RATIO: f64 = 4.0;

/// The outliers are only stored with more bits if their squares are at least this share of all squares.
const MIN_OUTLIER_SHARE: f64 = 0.2;

/// The largest [`loss`] with which activations are quantized to 8 bits, together with the weights.
///
/// Normally distributed values lose 3.3e-5. Products of two such values, which are the inputs of down projections, lose
/// 9e-5 to 1.2e-4, and 3.4e-5 after a rotation. With a larger loss, the cosine of small models to f32 is below 0.999.
const MAX_LOSS: f64 = 6e-5;

/// The largest [`loss`] with which activations are quantized to 8 bits if the weights stay exact.
const MAX_LOSS_WITH_EXACT_WEIGHTS: f64 = 3e-4;

/// How activations are quantized to 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByteFit {
    /// Without a transformation.
    Plain,
    /// After a rotation: see [`rotate`].
    Rotated,
}

/// The input of a linear layer, [T, I]. It is empty if the input is not known.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    x: Vec<f32>,
    n_columns: usize,
}

impl Activations {
    /// Copies the activations `x`, [T, I].
    pub(crate) fn of(x: &Tensor) -> Result<Self> {
        Ok(Self { x: ops::to_f32(x)?, n_columns: x.dims()[1] })
    }

    /// The activations with each column multiplied by its factor in `columns`.
    pub(crate) fn times(&self, columns: &[f32]) -> Self {
        let x = self.x.iter().zip(columns.iter().cycle()).map(|(x, column)| x * column).collect();
        Self { x, n_columns: self.n_columns }
    }

    /// The indices of the features that are outliers, the largest first.
    pub(crate) fn outliers(&self) -> Vec<usize> {
        if self.x.is_empty() { Vec::new() } else { outliers(&self.x, self.n_columns) }
    }

    /// How to quantize the activations and the weights to 8 bits, with a scale for every `group` values. `None` if too
    /// much would be lost.
    pub(crate) fn fitting_bytes(&self, group: usize) -> Option<ByteFit> {
        if self.x.is_empty() {
            return None;
        }
        let fits = |input: &Self| {
            input.outliers().is_empty() && loss(&input.x, input.n_columns, group, &[]) <= MAX_LOSS
        };
        if fits(self) {
            return Some(ByteFit::Plain);
        }
        let can_rotate = self.n_columns.is_multiple_of(ROTATION);
        (can_rotate && fits(&self.rotated())).then_some(ByteFit::Rotated)
    }

    /// The activations after the rotation.
    fn rotated(&self) -> Self {
        let mut x = self.x.clone();
        rotate(&mut x);
        Self { x, n_columns: self.n_columns }
    }

    /// Whether the activations can be quantized to 8 bits, with a scale for every `group` values, if the weights stay
    /// exact. Outliers are then harmless in themselves, so the loss is measured relative to the other features.
    pub(crate) fn fits_bytes_beside_outliers(&self, group: usize) -> bool {
        !self.x.is_empty()
            && loss(&self.x, self.n_columns, group, &self.outliers()) <= MAX_LOSS_WITH_EXACT_WEIGHTS
    }
}

/// The loss of quantizing `x`, [T, I], to 8 bits with a scale for every `group` values: the sum of squared errors of a
/// row divided by the sum of squares of the row, on average over the rows. The columns `apart` are left out of the sum
/// of squares. NaN if a value is not finite, or if all values are zero.
fn loss(x: &[f32], n_columns: usize, group: usize, apart: &[usize]) -> f64 {
    let (mut total, mut n_rows) = (0.0, 0);
    for row in x.chunks_exact(n_columns) {
        let (mut errors, mut squares) = (0f32, 0f32);
        for group in row.chunks(group) {
            let scale = group.iter().fold(0f32, |largest, x| largest.max(x.abs())) / 127.0;
            if scale < f32::MIN_POSITIVE {
                continue;
            }
            for &x in group {
                // Adding 1.5 · 2^23 rounds to an integer, because an f32 of this size has no fractional bits.
                let nearest = (x / scale + 12_582_912.0) - 12_582_912.0;
                errors += (x - nearest * scale).powi(2);
                squares += x * x;
            }
        }
        let mut squares = f64::from(squares);
        for &column in apart {
            squares -= f64::from(row[column]).powi(2);
        }
        // A row of zeros is not counted.
        if squares != 0.0 {
            // If the columns in `apart` have nearly all squares, the rest may be a rounding error, and negative.
            total += (f64::from(errors) / squares).abs();
            n_rows += 1;
        }
    }
    total / f64::from(n_rows)
}

/// The columns of `x`, [T, I], that are outliers. Empty if their squares are a small share of all squares.
fn outliers(x: &[f32], n_columns: usize) -> Vec<usize> {
    let mut squares = vec![0f64; n_columns];
    for row in x.chunks_exact(n_columns) {
        squares.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
    }
    let mut columns: Vec<usize> = (0..n_columns).collect();
    columns.sort_unstable_by(|&a, &b| squares[b].total_cmp(&squares[a]));
    let least = MIN_OUTLIER_RATIO * MIN_OUTLIER_RATIO * squares[columns[n_columns / 2]];
    let all: f64 = squares.iter().sum();
    columns.truncate(MAX_OUTLIERS);
    columns.retain(|&column| squares[column] > least);
    let share = columns.iter().map(|&column| squares[column]).sum::<f64>() / all;
    // The share is NaN if values are not finite, or if all are zero.
    if share.is_nan() || share < MIN_OUTLIER_SHARE {
        columns.clear();
    }
    columns
}

#[cfg(test)]
mod tests {
    use qwen3_embed_kernels::cpu::BYTE_GROUP;

    use super::*;

    fn outliers_of(rows: &[&[f32]]) -> Vec<usize> {
        outliers(&rows.concat(), rows[0].len())
    }

    #[test]
    fn loss_is_the_squared_error_relative_to_the_squares() {
        // With the scales 1 and 2, the errors are 0.25 and 0.5 in the first group, and 1 in the second one.
        let mut row = [0f32; 2 * BYTE_GROUP];
        (row[0], row[1], row[2]) = (127.0, 3.25, -0.5);
        (row[BYTE_GROUP], row[BYTE_GROUP + 1]) = (-254.0, 5.0);
        let expected = (0.25f64.powi(2) + 0.5f64.powi(2) + 1.0)
            / (127f64.powi(2) + 3.25f64.powi(2) + 0.25 + 254f64.powi(2) + 25.0);
        assert!((loss(&row, row.len(), BYTE_GROUP, &[]) / expected - 1.0).abs() < 1e-5);
        // The mean does not depend on the size of a row, and rows of zeros are not counted.
        let exact = [[1000.0 * 127.0; 2 * BYTE_GROUP], [0.0; 2 * BYTE_GROUP]].concat();
        let rows = [row.as_slice(), &exact].concat();
        assert!((loss(&rows, row.len(), BYTE_GROUP, &[]) / (expected / 2.0) - 1.0).abs() < 1e-5);
        row[7] = f32::INFINITY;
        assert!(
            loss(&row, row.len(), BYTE_GROUP, &[]).is_nan()
                && loss(&[0.0; 8], 8, BYTE_GROUP, &[]).is_nan()
        );
        row[7] = f32::NAN;
        assert!(loss(&row, row.len(), BYTE_GROUP, &[]).is_nan());
    }

    #[test]
    fn spikes_outliers_and_nan_prevent_quantization() {
        let shape = (2, 2 * BYTE_GROUP);
        let input = |values: Vec<f32>| {
            Activations::of(&Tensor::from_vec(values, shape, &candle_core::Device::Cpu).unwrap())
                .unwrap()
        };
        let waves: Vec<f32> = (0..4 * BYTE_GROUP).map(|i| (i as f32).sin()).collect();
        assert_eq!(input(waves.clone()).fitting_bytes(BYTE_GROUP), Some(ByteFit::Plain));
        let mut spikes = waves.clone();
        spikes.iter_mut().step_by(61).for_each(|x| *x *= 100.0);
        assert_eq!(input(spikes).fitting_bytes(BYTE_GROUP), None);
        let mut outlier = waves.clone();
        outlier.iter_mut().step_by(2 * BYTE_GROUP).for_each(|x| *x = 50.0);
        assert_eq!(input(outlier).outliers(), [0]);
        let mut damaged = waves;
        damaged[3] = f32::NAN;
        assert_eq!(input(damaged).fitting_bytes(BYTE_GROUP), None);
        assert_eq!(Activations::default().fitting_bytes(BYTE_GROUP), None);
    }

    /// The input of a down projection is a product of two activations.
    #[test]
    fn products_of_activations_are_quantized_after_a_rotation() {
        // The sum of twelve uniform random numbers is almost normally distributed.
        let normal = |seed: u32| -> f32 {
            let mut state = seed.wrapping_mul(2_654_435_761) | 1;
            let uniform = |_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                state as f32 / u32::MAX as f32 - 0.5
            };
            (0..12).map(uniform).sum()
        };
        let products =
            |n: usize| (0..n as u32).map(|i| normal(2 * i) * normal(2 * i + 1)).collect::<Vec<_>>();
        let input = |columns: usize| Activations { x: products(8 * columns), n_columns: columns };
        let lost = loss(&input(1024).x, 1024, BYTE_GROUP, &[]);
        assert!(lost > MAX_LOSS, "{lost:e}");
        let lost = loss(&input(1024).rotated().x, 1024, BYTE_GROUP, &[]);
        assert!(lost < 4e-5, "{lost:e}");
        assert_eq!(input(1024).fitting_bytes(BYTE_GROUP), Some(ByteFit::Rotated));
        // If all tokens are alike, the largest features are outliers. A rotation spreads them, and none is left.
        let columns = products(1024);
        let x = (0..8 * 1024).map(|i| columns[i % 1024] * (1.0 + 0.1 * normal(i as u32))).collect();
        let alike = Activations { x, n_columns: 1024 };
        assert_eq!((alike.outliers().len(), alike.rotated().outliers().len()), (32, 0));
        assert_eq!(alike.fitting_bytes(BYTE_GROUP), Some(ByteFit::Rotated));
        // The width is not a multiple of the block of the rotation.
        assert_eq!(input(1024 + 64).fitting_bytes(BYTE_GROUP), None);
    }

    #[test]
    fn outliers_do_not_hide_the_loss_of_other_features() {
        const GROUP: usize = 256;
        let input = |every: usize, outlier: f32| {
            let value = |i: usize| if i.is_multiple_of(every) { outlier } else { (i as f32).sin() };
            let row: Vec<f32> = (0..4 * GROUP).map(value).collect();
            let shape = (1, row.len());
            Activations::of(&Tensor::from_vec(row, shape, &candle_core::Device::Cpu).unwrap())
                .unwrap()
        };
        // Outliers with a third of all squares are harmless.
        let several = input(32, 3.0);
        assert_eq!(several.outliers().len(), 32);
        assert!(
            several.fitting_bytes(GROUP).is_none() && several.fits_bytes_beside_outliers(GROUP)
        );
        // One outlier has nearly all squares. The scale leaves only a few levels for the other values.
        let one = input(4 * GROUP, 1000.0);
        assert!(loss(&one.x, 4 * GROUP, GROUP, &[]) <= MAX_LOSS_WITH_EXACT_WEIGHTS);
        assert!(!one.fits_bytes_beside_outliers(GROUP));
        assert!(!Activations::default().fits_bytes_beside_outliers(GROUP));
    }

    #[test]
    fn outliers_are_large_and_have_a_large_share_of_the_squares() {
        assert_eq!(outliers_of(&[&[1.0, -90.0, 1.0, 2.0, 30.0], &[1.0; 5]]), [1, 4]);
        assert_eq!(outliers_of(&[&[1.0, -3.0, 1.0, 2.0, 3.0]]), [0usize; 0]);
        // A column of ten thousand that is ten times as large as the others has one percent of the squares.
        let mut row = vec![1.0; 10_000];
        row[77] = 10.0;
        assert_eq!(outliers_of(&[&row]), [0usize; 0]);
        // If there are more outliers than the limit, the largest ones are chosen.
        let mut row: Vec<f32> =
            (0..1000).map(|i| if i < 50 { 100.0 + i as f32 } else { 1.0 }).collect();
        assert_eq!(outliers_of(&[&row]), (18..50).rev().collect::<Vec<_>>());
        row[3] = f32::NAN;
        assert_eq!(outliers_of(&[&row]), [0usize; 0]);
        assert_eq!(outliers_of(&[&[0.0; 8]]), [0usize; 0]);
    }
}
