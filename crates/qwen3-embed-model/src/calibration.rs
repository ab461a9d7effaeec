//! Which input features of a product carry outliers.
//!
//! In trained Qwen3 models a few channels are up to thousands of times as large as the others, and the
//! same ones for nearly every token. What 8 bits lose of such a channel's weights is as much larger. A
//! few tokens that pass the layers while they are loaded show which channels these are.

use candle_core::{DType, Tensor};
use qwen3_embed_kernels::{Queries, Ragged, ops};

use crate::layer::DecoderLayer;
use crate::rope::RopeTable;
use crate::weights::MappedRows;
use crate::workspace::Workspace;
use crate::{Config, Result};

/// Tokens that pass the layers.
const N_TOKENS: usize = 64;

/// Features of one product at most: as many as share a scale.
const MOST: usize = 32;

/// How many times the root mean square of half of the features an outlier's is at least.
const RATIO: f64 = 4.0;

/// Outliers are worth keeping more precisely when they hold such a share of all squares.
const SHARE: f64 = 0.2;

/// A text on its way through the layers.
pub(crate) struct Calibration {
    /// The residual stream, [T, C].
    x: Tensor,
    batch: Ragged,
    cos: Tensor,
    sin: Tensor,
    config: Config,
    workspace: Workspace,
}

impl Calibration {
    /// The text before the first layer.
    pub(crate) fn new(
        config: &Config,
        embed_tokens: &MappedRows,
        rope: &RopeTable,
        device: &candle_core::Device,
    ) -> Result<Self> {
        let n_tokens = N_TOKENS.min(config.max_position_embeddings);
        let batch = Ragged::from_lengths([n_tokens])?;
        // Tokens from everywhere in the vocabulary, the first ones among them.
        let ids: Vec<u32> =
            (0..n_tokens).map(|i| (i * config.vocab_size / n_tokens) as u32).collect();
        let shape = (n_tokens, config.hidden_size);
        let x = Tensor::from_vec(embed_tokens.gather(&ids), shape, device)?;
        let (cos, sin) = rope.gather(&batch, device)?;
        Ok(Self { x, batch, cos, sin, config: config.clone(), workspace: Workspace::default() })
    }

    /// Lets the text pass the next layer, and returns the outliers among the input features of its four
    /// products, in their order.
    pub(crate) fn pass(&mut self, layer: &DecoderLayer) -> Result<[Vec<usize>; 4]> {
        let Self { x, batch, cos, sin, config, workspace } = self;
        let room = workspace.room(batch, config, DType::F32, x.device())?;
        layer.attend(x, [cos, sin], batch, Queries::All, &room)?;
        let (qkv, o) = (outliers(&room.hidden)?, outliers(&room.attention)?);
        layer.feed_forward(x, &room)?;
        Ok([qkv, o, outliers(&room.hidden)?, outliers(&room.ffn)?])
    }
}

/// The columns of `x`, [T, I], that are outliers; none if they hold little of what there is.
fn outliers(x: &Tensor) -> Result<Vec<usize>> {
    let n_columns = x.dims()[1];
    let mut squares = vec![0f64; n_columns];
    for row in ops::to_f32(x)?.chunks_exact(n_columns) {
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
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outliers_of(rows: &[&[f32]]) -> Vec<usize> {
        let shape = (rows.len(), rows[0].len());
        outliers(&Tensor::from_vec(rows.concat(), shape, &candle_core::Device::Cpu).unwrap())
            .unwrap()
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
