//! A description of the weights and activations of a model: deviations and outliers.

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Tensor};
use qwen3_embed::Embedder;
use qwen3_embed_model::{Checkpoint, LoadOptions, Model, Precision};
use qwen3_embed_testing::vectors::{max_abs, mean};

use super::held_out::Translations;
use super::tables::Table;
use crate::checkpoint_tensors;

/// Kinds of tensors, and the part of a name that identifies them.
const KINDS: [(&str, &str); 9] = [
    ("embedding", "embed_tokens."),
    ("q", "q_proj."),
    ("k", "k_proj."),
    ("v", "v_proj."),
    ("o", "o_proj."),
    ("gate", "gate_proj."),
    ("up", "up_proj."),
    ("down", "down_proj."),
    ("norms", "norm."),
];

/// The number of texts whose activations are described.
const TEXTS: usize = 100;

/// The outliers of a tensor or of activations.
struct Outliers {
    deviation: f64,
    /// The largest absolute value.
    largest: f64,
    /// The largest row maximum divided by the median row maximum.
    rows: f64,
}

/// Describes the weights of the model in `folder`, and the residual stream for some of the texts.
pub(super) fn describe(folder: &Path, meanings: &Translations) -> Result<String> {
    Ok(format!(
        "The weights of all layers: the standard deviation, the largest absolute value, its ratio to the standard\n\
         deviation, and the largest ratio of a row's largest value to the median of all rows' largest values. A\n\
         norm has one value in each row:\n\n{}\n\
         The residual stream of {TEXTS} texts before each layer, and after the last one. A row is a token:\n\n{}",
        weights(folder)?,
        activations(folder, meanings)?
    ))
}

fn weights(folder: &Path) -> Result<Table> {
    let tensors = checkpoint_tensors::read(folder)?;
    let mut table = Table::new(1, &["weights", "deviation", "largest", "ratio", "rows"]);
    for (kind, part) in KINDS {
        let tensors = tensors.iter().filter(|(name, _)| name.contains(part));
        let matrices = tensors.map(|(_, tensor)| rows(tensor)).collect::<Result<Vec<_>>>()?;
        // The values of all layers together, and the rows of each layer by themselves.
        let together: Vec<Vec<f32>> = matrices.concat();
        let mut outliers = Outliers::of(&together);
        outliers.rows = matrices.iter().map(|rows| Outliers::of(rows).rows).fold(0.0, f64::max);
        table.push(outliers.row(kind));
    }
    Ok(table)
}

fn activations(folder: &Path, meanings: &Translations) -> Result<Table> {
    let texts: Vec<&String> =
        meanings.texts.iter().step_by(meanings.texts.len().div_ceil(TEXTS)).collect();
    let tokens = Embedder::builder(folder).build()?.tokenize(&texts)?;
    let options = LoadOptions { precision: Precision::F32, ..LoadOptions::default() };
    let model = Model::load_with(&Checkpoint::open(folder)?, &options)?;
    let (n_layers, hidden_size) = (model.config().num_hidden_layers, model.config().hidden_size);
    let mut table = Table::new(1, &["input of", "deviation", "largest", "ratio", "rows"]);
    model.forward_traced(&tokens, &mut |layer_idx, values| {
        let rows: Vec<Vec<f32>> = values.chunks_exact(hidden_size).map(<[f32]>::to_vec).collect();
        let name = if layer_idx == n_layers {
            "the last norm".to_owned()
        } else {
            format!("layer {layer_idx}")
        };
        table.push(Outliers::of(&rows).row(&name));
    })?;
    Ok(table)
}

impl Outliers {
    fn of(rows: &[Vec<f32>]) -> Self {
        let values: Vec<f64> = rows.iter().flatten().map(|&value| value.into()).collect();
        let center = mean(&values);
        let squares: Vec<f64> = values.iter().map(|value| (value - center).powi(2)).collect();
        let mut maxima: Vec<f64> = rows.iter().map(|row| max_abs(row)).collect();
        maxima.sort_unstable_by(f64::total_cmp);
        let largest = max_abs(&values);
        let median = maxima[maxima.len() / 2];
        Self { deviation: mean(&squares).sqrt(), largest, rows: largest / median }
    }

    fn row(&self, name: &str) -> Vec<String> {
        vec![
            name.to_owned(),
            format!("{:.4}", self.deviation),
            format!("{:.3}", self.largest),
            format!("{:.1}", self.largest / self.deviation),
            format!("{:.1}", self.rows),
        ]
    }
}

/// The rows of a matrix. Each value of a vector is a row.
fn rows(tensor: &Tensor) -> Result<Vec<Vec<f32>>> {
    let rows = tensor.dim(0)?;
    Ok(tensor.to_dtype(DType::F32)?.reshape((rows, ()))?.to_vec2()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_of_a_known_matrix() {
        let outliers = Outliers::of(&[vec![1.0, -1.0], vec![1.0, -1.0], vec![3.0, -3.0]]);
        assert!((outliers.deviation - (22f64 / 6.0).sqrt()).abs() < 1e-12);
        assert_eq!((outliers.largest, outliers.rows), (3.0, 3.0));
    }
}
