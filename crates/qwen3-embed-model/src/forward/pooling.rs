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
    use super::*;

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
