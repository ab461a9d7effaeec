//! Statistics of activations.

use candle_core::Tensor;
use qwen3_embed_kernels::cpu::{ROTATION, rotate};
use qwen3_embed_kernels::ops;

use crate::Result;

/// Features of one product at most: as many as share a scale.
const MOST: usize = 32;

/// How many times the root mean square of half of the features an outlier's is at least.
const RATIO: f64 = 4.0;

/// Outliers are worth keeping more precisely when they hold such a share of all squares.
const SHARE: f64 = 0.2;

/// What 8 bits may lose of the activations. Of values with a normal distribution they lose 3.3e-5, of the
/// product of two such values, which is what a down projection reads, 9e-5 to 1.2e-4, and 3.4e-5 if it is
/// rotated. With more, the cosine of small models falls below 0.999.
const MOST_LOSS: f64 = 6e-5;

/// What 8 bits may lose of the activations where nothing is lost of the weights.
const MOST_LOSS_ALONE: f64 = 3e-4;

/// How activations fit in 8 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByteFit {
    /// As they are.
    Plain,
    /// Rotated: see [`rotate`].
    Rotated,
}

/// The input of a product, [T, I]; empty where it is not known.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    x: Vec<f32>,
    n_columns: usize,
}

impl Activations {
    /// An input that is `x`, [T, I].
    pub(crate) fn of(x: &Tensor) -> Result<Self> {
        Ok(Self { x: ops::to_f32(x)?, n_columns: x.dims()[1] })
    }

    /// The input with its columns multiplied with `columns`.
    pub(crate) fn times(&self, columns: &[f32]) -> Self {
        let x = self.x.iter().zip(columns.iter().cycle()).map(|(x, column)| x * column).collect();
        Self { x, n_columns: self.n_columns }
    }

    /// The features that are outliers.
    pub(crate) fn outliers(&self) -> Vec<usize> {
        if self.x.is_empty() { Vec::new() } else { outliers(&self.x, self.n_columns) }
    }

    /// How such activations fit in 8 bits, with a scale for each `group`, and the weights that meet them too; `None`
    /// if they do not.
    pub(crate) fn fitting_bytes(&self, group: usize) -> Option<ByteFit> {
        if self.x.is_empty() {
            return None;
        }
        let fits = |input: &Self| {
            input.outliers().is_empty() && loss(&input.x, input.n_columns, group, &[]) <= MOST_LOSS
        };
        if fits(self) {
            return Some(ByteFit::Plain);
        }
        let can_rotate = self.n_columns.is_multiple_of(ROTATION);
        (can_rotate && fits(&self.rotated())).then_some(ByteFit::Rotated)
    }

    /// The input, rotated.
    fn rotated(&self) -> Self {
        let mut x = self.x.clone();
        rotate(&mut x);
        Self { x, n_columns: self.n_columns }
    }

    /// Whether 8 bits are enough for such activations, with a scale for each `group`, where weights are exact:
    /// then outliers are no harm in themselves, but they must not hide what is lost of the other features.
    pub(crate) fn fits_bytes_beside_outliers(&self, group: usize) -> bool {
        !self.x.is_empty()
            && loss(&self.x, self.n_columns, group, &self.outliers()) <= MOST_LOSS_ALONE
    }
}

/// What 8 bits lose of `x`, [T, I], with a scale for each `group`: the squares of the errors, as a share of the
/// squares of a row, but for the columns `apart`, in the mean over the rows. NaN where a value is not finite,
/// or all are zero.
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
                // Beside 1.5 · 2^23 there are no bits for a fraction.
                let nearest = (x / scale + 12_582_912.0) - 12_582_912.0;
                errors += (x - nearest * scale).powi(2);
                squares += x * x;
            }
        }
        let mut squares = f64::from(squares);
        for &column in apart {
            squares -= f64::from(row[column]).powi(2);
        }
        // A row of zeros loses nothing.
        if squares != 0.0 {
            // What is left of a sum in f32 may be its rounding, and negative.
            total += (f64::from(errors) / squares).abs();
            n_rows += 1;
        }
    }
    total / f64::from(n_rows)
}

/// The columns of `x`, [T, I], that are outliers; none if they hold little of what there is.
fn outliers(x: &[f32], n_columns: usize) -> Vec<usize> {
    let mut squares = vec![0f64; n_columns];
    for row in x.chunks_exact(n_columns) {
        squares.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
    }
    let mut columns: Vec<usize> = (0..n_columns).collect();
    columns.sort_unstable_by(|&a, &b| squares[b].total_cmp(&squares[a]));
    let least = RATIO * RATIO * squares[columns[n_columns / 2]];
    let all: f64 = squares.iter().sum();
    columns.truncate(MOST);
    columns.retain(|&column| squares[column] > least);
    let share = columns.iter().map(|&column| squares[column]).sum::<f64>() / all;
    // Not where nothing is finite, or all is zero, either.
    if share.is_nan() || share < SHARE {
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
    fn the_loss_is_the_share_of_squares_that_rounding_takes() {
        // Scales of 1 and 2: 0.25 and 0.5 are lost of the one group, 1 of the other.
        let mut row = [0f32; 2 * BYTE_GROUP];
        (row[0], row[1], row[2]) = (127.0, 3.25, -0.5);
        (row[BYTE_GROUP], row[BYTE_GROUP + 1]) = (-254.0, 5.0);
        let expected = (0.25f64.powi(2) + 0.5f64.powi(2) + 1.0)
            / (127f64.powi(2) + 3.25f64.powi(2) + 0.25 + 254f64.powi(2) + 25.0);
        assert!((loss(&row, row.len(), BYTE_GROUP, &[]) / expected - 1.0).abs() < 1e-5);
        // Rows count alike, however large they are, and those of zeros do not.
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
    fn values_of_about_the_same_size_fit_bytes_and_others_do_not() {
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

    /// What a down projection reads is about a product of two activations.
    #[test]
    fn products_of_activations_fit_bytes_if_they_are_rotated() {
        // Sums of twelve numbers without a pattern are about normal.
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
        assert!(lost > MOST_LOSS, "{lost:e}");
        let lost = loss(&input(1024).rotated().x, 1024, BYTE_GROUP, &[]);
        assert!(lost < 4e-5, "{lost:e}");
        assert_eq!(input(1024).fitting_bytes(BYTE_GROUP), Some(ByteFit::Rotated));
        // Not whole blocks.
        assert_eq!(input(1024 + 64).fitting_bytes(BYTE_GROUP), None);
    }

    #[test]
    fn outliers_do_not_hide_what_is_lost_beside_them() {
        const GROUP: usize = 256;
        let input = |every: usize, outlier: f32| {
            let value = |i: usize| if i.is_multiple_of(every) { outlier } else { (i as f32).sin() };
            let row: Vec<f32> = (0..4 * GROUP).map(value).collect();
            let shape = (1, row.len());
            Activations::of(&Tensor::from_vec(row, shape, &candle_core::Device::Cpu).unwrap())
                .unwrap()
        };
        // A third of all squares are outliers, and they are no harm.
        let several = input(32, 3.0);
        assert_eq!(several.outliers().len(), 32);
        assert!(
            several.fitting_bytes(GROUP).is_none() && several.fits_bytes_beside_outliers(GROUP)
        );
        // Nearly all of them are one, beside which the others have a few levels each way.
        let one = input(4 * GROUP, 1000.0);
        assert!(loss(&one.x, 4 * GROUP, GROUP, &[]) <= MOST_LOSS_ALONE);
        assert!(!one.fits_bytes_beside_outliers(GROUP));
        assert!(!Activations::default().fits_bytes_beside_outliers(GROUP));
    }

    #[test]
    fn outliers_are_columns_far_above_most_that_hold_much_of_what_there_is() {
        assert_eq!(outliers_of(&[&[1.0, -90.0, 1.0, 2.0, 30.0], &[1.0; 5]]), [1, 4]);
        assert_eq!(outliers_of(&[&[1.0, -3.0, 1.0, 2.0, 3.0]]), [0usize; 0]);
        // One of ten thousand is ten times the others, and one percent of what there is.
        let mut row = vec![1.0; 10_000];
        row[77] = 10.0;
        assert_eq!(outliers_of(&[&row]), [0usize; 0]);
        // More than have room: the largest.
        let mut row: Vec<f32> =
            (0..1000).map(|i| if i < 50 { 100.0 + i as f32 } else { 1.0 }).collect();
        assert_eq!(outliers_of(&[&row]), (18..50).rev().collect::<Vec<_>>());
        row[3] = f32::NAN;
        assert_eq!(outliers_of(&[&row]), [0usize; 0]);
        assert_eq!(outliers_of(&[&[0.0; 8]]), [0usize; 0]);
    }
}
