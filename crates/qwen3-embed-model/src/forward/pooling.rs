use qwen3_embed_kernels::Ragged;

/// How a text's vector is computed from the hidden states h₁ … hₙ of its n tokens after the final norm.
///
/// # Source
///
/// `Pooling` of sentence-transformers, and Muennighoff, *SGPT* (2022), equation 2, for the weighted
/// mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Pooling {
    /// hₙ, as in all published models.
    #[default]
    LastToken,
    /// h₁
    FirstToken,
    /// ∑ hᵢ / n
    Mean,
    /// ∑ hᵢ / √n
    MeanSqrtLength,
    /// ∑ i · hᵢ / ∑ i
    WeightedMean,
    /// The largest value of each dimension.
    Max,
}

impl Pooling {
    /// Pools the hidden states of all tokens in a batch without sharing, [T, C]. Returns the vector of each text,
    /// row-major [N, C].
    pub(crate) fn pool(self, hidden: &[f32], batch: &Ragged, n_columns: usize) -> Vec<f32> {
        let mut pooled = Vec::with_capacity(batch.n_segments() * n_columns);
        for segment in 0..batch.n_segments() {
            let rows = batch.path(segment).map(|row| &hidden[row * n_columns..][..n_columns]);
            let n = batch.positions_of(segment).len() as f64;
            match self {
                Self::LastToken => pooled.extend(rows.last().into_iter().flatten()),
                Self::FirstToken => pooled.extend(rows.take(1).flatten()),
                Self::Max => pooled.extend(largest(rows, n_columns)),
                Self::Mean => pooled.extend(sum(rows, n_columns, |_| 1.0 / n)),
                Self::MeanSqrtLength => pooled.extend(sum(rows, n_columns, |_| 1.0 / n.sqrt())),
                Self::WeightedMean => {
                    let total = n * (n + 1.0) / 2.0;
                    pooled.extend(sum(rows, n_columns, |i| (i + 1) as f64 / total));
                }
            }
        }
        pooled
    }
}

/// The weighted sum of rows, in f64. `weight` takes the index of a row.
fn sum<'a>(
    rows: impl Iterator<Item = &'a [f32]>,
    n_columns: usize,
    weight: impl Fn(usize) -> f64,
) -> impl Iterator<Item = f32> {
    let mut sums = vec![0f64; n_columns];
    for (i, row) in rows.enumerate() {
        let weight = weight(i);
        sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) * weight);
    }
    sums.into_iter().map(|sum| sum as f32)
}

/// The largest value of each column, or NaN if the column contains NaN.
fn largest<'a>(rows: impl Iterator<Item = &'a [f32]>, n_columns: usize) -> Vec<f32> {
    let mut largest = vec![f32::NEG_INFINITY; n_columns];
    for row in rows {
        let columns = largest.iter_mut().zip(row);
        columns.for_each(|(largest, &x)| {
            if x > *largest || x.is_nan() {
                *largest = x;
            }
        });
    }
    largest
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// The pooled value of one column of a text, and the sum of the magnitudes of its terms, from the definition.
    fn pooled(pooling: Pooling, column: &[f64]) -> [f64; 2] {
        let n = column.len() as f64;
        let ranks = || (1..).map(f64::from);
        let sum = |terms: &[f64]| [terms.iter().sum(), terms.iter().map(|term| term.abs()).sum()];
        let exact = |value: f64| [value, 0.0];
        match pooling {
            Pooling::LastToken => exact(column[column.len() - 1]),
            Pooling::FirstToken => exact(column[0]),
            Pooling::Mean => sum(column).map(|sum: f64| sum / n),
            Pooling::MeanSqrtLength => sum(column).map(|sum: f64| sum / n.sqrt()),
            Pooling::WeightedMean => {
                let terms: Vec<f64> = column.iter().zip(ranks()).map(|(x, i)| i * x).collect();
                let total: f64 = ranks().take(column.len()).sum();
                sum(&terms).map(|sum: f64| sum / total)
            }
            Pooling::Max => exact(column.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn every_pooling_is_its_definition_in_f64(
            lengths in vec(1usize..40, 0..6),
            n_columns in 1usize..5,
            exponents in vec(-30i32..30, 1..9),
            values in vec(-1f32..1.0, 6 * 40 * 5),
        ) {
            let batch = Ragged::from_lengths(lengths.iter().copied()).unwrap();
            // Values of different magnitudes, whose sums stay in the range of f32.
            let magnitudes = exponents.iter().cycle().map(|&exponent| 10f32.powi(exponent));
            let n_values = batch.n_tokens() * n_columns;
            let hidden: Vec<f32> =
                values.iter().zip(magnitudes).map(|(v, m)| v * m).take(n_values).collect();
            for pooling in [
                Pooling::LastToken,
                Pooling::FirstToken,
                Pooling::Mean,
                Pooling::MeanSqrtLength,
                Pooling::WeightedMean,
                Pooling::Max,
            ] {
                let got = pooling.pool(&hidden, &batch, n_columns);
                prop_assert_eq!(got.len(), lengths.len() * n_columns);
                let mut rows = hidden.chunks_exact(n_columns);
                for (&length, got) in lengths.iter().zip(got.chunks_exact(n_columns)) {
                    let text: Vec<&[f32]> = rows.by_ref().take(length).collect();
                    for (column, &got) in got.iter().enumerate() {
                        let values: Vec<f64> =
                            text.iter().map(|row| f64::from(row[column])).collect();
                        let [expected, magnitude] = pooled(pooling, &values);
                        // Both sums are rounded in f64, once for each term, its weight and the total. The result is
                        // rounded to f32, whose smallest value is 2^−149.
                        let n_roundings = 2.0 * (length + 4) as f64;
                        let bound = n_roundings * f64::EPSILON * magnitude
                            + expected.abs() * f64::from(f32::EPSILON) / 2.0
                            + 2f64.powi(-150);
                        let error = (f64::from(got) - expected).abs();
                        prop_assert!(error <= bound, "{pooling:?}: {got}, expected {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn pools_each_text_over_its_own_tokens() {
        let batch = Ragged::from_lengths([4, 1]).unwrap();
        let hidden = [[1.0, 8.0], [2.0, -8.0], [3.0, 0.0], [-2.0, 4.0], [5.0, 6.0]].concat();
        for (pooling, first) in [
            (Pooling::LastToken, [-2.0, 4.0]),
            (Pooling::FirstToken, [1.0, 8.0]),
            (Pooling::Mean, [1.0, 1.0]),
            (Pooling::MeanSqrtLength, [2.0, 2.0]),
            (Pooling::WeightedMean, [0.6, 0.8]),
            (Pooling::Max, [3.0, 8.0]),
        ] {
            let pooled = pooling.pool(&hidden, &batch, 2);
            assert_eq!(pooled, [first, [5.0, 6.0]].concat(), "{pooling:?}");
        }
    }

    #[test]
    fn keeps_nan() {
        let batch = Ragged::from_lengths([3]).unwrap();
        for pooling in [Pooling::Mean, Pooling::WeightedMean, Pooling::Max] {
            assert!(pooling.pool(&[1.0, f32::NAN, 2.0], &batch, 1)[0].is_nan(), "{pooling:?}");
        }
    }
}
