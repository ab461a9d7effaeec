use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use half::bf16;
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};
use rayon::prelude::*;
use safetensors::{Dtype, View};
use serde_json::json;

use crate::workspace::root;

/// Write a checkpoint with random weights and the shapes of a published model
///
/// The weights are bf16. Like trained weights, they have outlier channels. The same seed gives the same files.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Size of the model
    #[arg(long, value_enum)]
    size: Size,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of the weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Which outlier channels the weights have
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = Outliers::All)]
    outliers: Outliers,
    /// The tokenizer.json to copy to the checkpoint [default: fixtures/tokenizer.json, which is small]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Outliers {
    /// No outlier channels
    None,
    /// A few norm weights are 50 times the others. The matching columns of the projections after the norm are divided
    /// by 50, so the model computes the same function
    Norms,
    /// A few channels of the residual stream are 30 times the others. In one of them, token 0 has 5,000 times the
    /// values of the others (a massive activation)
    Residual,
    /// Both `norms` and `residual`
    All,
}

#[derive(Clone, Copy, ValueEnum)]
enum Size {
    #[value(name = "0.6b")]
    B0_6,
    #[value(name = "4b")]
    B4,
    #[value(name = "8b")]
    B8,
    /// A few million parameters
    Tiny,
}

/// The hyperparameters in which the sizes differ.
struct Shape {
    hidden: usize,
    ffn: usize,
    layers: usize,
    heads: usize,
    vocab: usize,
    positions: usize,
    tied: bool,
    shards: usize,
}

const HEAD_DIM: usize = 128;
const KV_HEADS: usize = 8;
/// Outliers among norm weights: first channel, step, and factor.
const NORM_OUTLIERS: (usize, usize, f32) = (3, 128, 50.0);
/// Outliers in the residual stream: first channel, step, and factor.
const RESIDUAL_OUTLIERS: (usize, usize, f32) = (11, 256, 30.0);
/// Value of token 0 in the first outlier channel of the residual stream.
const MASSIVE: f32 = 5000.0 * DEVIATION;
/// Standard deviation of the weights.
const DEVIATION: f32 = 0.02;

impl Size {
    fn shape(self) -> Shape {
        let (hidden, ffn, layers, heads) = match self {
            Self::B0_6 => (1024, 3072, 28, 16),
            Self::B4 => (2560, 9728, 36, 32),
            Self::B8 => (4096, 12288, 36, 32),
            Self::Tiny => (256, 768, 4, 8),
        };
        let (vocab, positions) = match self {
            Self::B0_6 | Self::Tiny => (151_669, 32_768),
            Self::B4 | Self::B8 => (151_665, 40_960),
        };
        let shards = match self {
            Self::B0_6 | Self::Tiny => 1,
            Self::B4 => 2,
            Self::B8 => 4,
        };
        let tied = !matches!(self, Self::B8);
        let vocab = if matches!(self, Self::Tiny) { 2048 } else { vocab };
        Shape { hidden, ffn, layers, heads, vocab, positions, tied, shards }
    }
}

/// Runs `cargo xtask random-checkpoint`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let shape = args.size.shape();
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let config = serde_json::to_string_pretty(&shape.config(args.seed))?;
    fs::write(args.out.join("config.json"), config + "\n")?;
    let tokenizer =
        args.tokenizer.clone().unwrap_or_else(|| root().join("fixtures/tokenizer.json"));
    // `fs::copy` would copy the permissions too, and a read-only copy could not be overwritten later.
    let json = fs::read(&tokenizer).with_context(|| tokenizer.display().to_string())?;
    fs::write(args.out.join("tokenizer.json"), json)?;
    let tensors = shape.tensors(args.seed, args.outliers);
    let bytes: usize = tensors.iter().map(|(_, tensor)| tensor.data_len()).sum();
    write_shards(&args.out, tensors, shape.shards)?;
    println!("{}: {:.2} GB of random weights", args.out.display(), bytes as f64 / 1e9);
    Ok(())
}

/// Writes `model.safetensors`, or several shards with an index.
fn write_shards(dir: &Path, tensors: Vec<(String, RandomTensor)>, shards: usize) -> Result<()> {
    if shards == 1 {
        let path = dir.join("model.safetensors");
        return Ok(safetensors::serialize_to_file(tensors, None, &path)?);
    }
    let total: usize = tensors.iter().map(|(_, tensor)| tensor.data_len()).sum();
    let mut weight_map = serde_json::Map::new();
    let mut tensors = tensors.into_iter().peekable();
    let mut written = 0;
    for shard in 1..=shards {
        let file = format!("model-{shard:05}-of-{shards:05}.safetensors");
        let mut part = Vec::new();
        while let Some((name, tensor)) = tensors.next_if(|_| written < total * shard / shards) {
            written += tensor.data_len();
            weight_map.insert(name.clone(), json!(file));
            part.push((name, tensor));
        }
        safetensors::serialize_to_file(part, None, &dir.join(&file))?;
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    fs::write(
        dir.join("model.safetensors.index.json"),
        serde_json::to_string_pretty(&index)? + "\n",
    )?;
    Ok(())
}

impl Shape {
    fn config(&self, seed: u64) -> serde_json::Value {
        json!({
            "_name_or_path": format!("random weights, seed {seed}"),
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": 151_643,
            "eos_token_id": 151_643,
            "head_dim": HEAD_DIM,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.ffn,
            "max_position_embeddings": self.positions,
            "max_window_layers": self.layers,
            "model_type": "qwen3",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": KV_HEADS,
            "rms_norm_eps": 1e-6,
            "rope_scaling": null,
            "rope_theta": 1_000_000,
            "sliding_window": null,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
            "use_cache": true,
            "use_sliding_window": false,
            "vocab_size": self.vocab,
        })
    }

    /// The tensors of an embedding checkpoint. Their names have no prefix `model.`.
    fn tensors(&self, seed: u64, outliers: Outliers) -> Vec<(String, RandomTensor)> {
        let (c, f) = (self.hidden, self.ffn);
        let (q, kv) = (self.heads * HEAD_DIM, KV_HEADS * HEAD_DIM);
        let mut tensors: Vec<(String, RandomTensor)> = Vec::new();
        let mut add = |name: String, shape: &[usize], kind: Kind| {
            let seed = seed.wrapping_mul(1 << 20).wrapping_add(tensors.len() as u64);
            tensors.push((name, RandomTensor { shape: shape.to_vec(), kind, outliers, seed }));
        };
        add("embed_tokens.weight".into(), &[self.vocab, c], Kind::TokenEmbedding);
        for i in 0..self.layers {
            let name = |module: &str| format!("layers.{i}.{module}.weight");
            add(name("input_layernorm"), &[c], Kind::LayerNorm);
            add(name("self_attn.q_proj"), &[q, c], Kind::AfterNorm);
            add(name("self_attn.k_proj"), &[kv, c], Kind::AfterNorm);
            add(name("self_attn.v_proj"), &[kv, c], Kind::AfterNorm);
            add(name("self_attn.q_norm"), &[HEAD_DIM], Kind::HeadNorm);
            add(name("self_attn.k_norm"), &[HEAD_DIM], Kind::HeadNorm);
            add(name("self_attn.o_proj"), &[c, q], Kind::IntoResidual);
            add(name("post_attention_layernorm"), &[c], Kind::LayerNorm);
            add(name("mlp.gate_proj"), &[f, c], Kind::AfterNorm);
            add(name("mlp.up_proj"), &[f, c], Kind::AfterNorm);
            add(name("mlp.down_proj"), &[c, f], Kind::IntoResidual);
        }
        add("norm.weight".into(), &[c], Kind::HeadNorm);
        tensors
    }
}

/// The role of a tensor in the model, which decides where its outliers are.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// `[vocab, C]`: has residual outliers in its columns.
    TokenEmbedding,
    /// `[C]`: has norm outliers.
    LayerNorm,
    /// `[D]`, or `[C]` for the final norm: has no outliers.
    HeadNorm,
    /// `[O, C]`: a projection whose input is the output of a norm. Its columns compensate the norm outliers.
    AfterNorm,
    /// `[C, I]`: a projection whose output is added to the residual stream. It has residual outliers in its rows.
    IntoResidual,
}

/// A tensor whose bytes are generated when they are written.
struct RandomTensor {
    shape: Vec<usize>,
    kind: Kind,
    outliers: Outliers,
    seed: u64,
}

/// Number of elements that one random number generator generates.
const CHUNK: usize = 1 << 16;

impl RandomTensor {
    fn fill(&self, chunk: usize, out: &mut [u8]) {
        let mut rng = SmallRng::seed_from_u64(self.seed ^ ((chunk as u64) << 40));
        let columns = *self.shape.last().unwrap_or(&1);
        let is_norm = matches!(self.kind, Kind::LayerNorm | Kind::HeadNorm);
        for (i, bytes) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let at = chunk * CHUNK + i;
            let value =
                if is_norm { rng.random_range(0.5..1.5) } else { DEVIATION * normal(&mut rng) };
            let value = self.with_outliers(at / columns, at % columns, value);
            *bytes = bf16::from_f32(value).to_le_bytes();
        }
    }

    /// `value`, or the outlier that replaces it.
    fn with_outliers(&self, row: usize, column: usize, value: f32) -> f32 {
        let scale = |which, channel: usize, (first, step, scale): (usize, usize, f32)| {
            let has = self.outliers == which || self.outliers == Outliers::All;
            if has && channel % step == first { scale } else { 1.0 }
        };
        let norms = |channel| scale(Outliers::Norms, channel, NORM_OUTLIERS);
        let residual = |channel| scale(Outliers::Residual, channel, RESIDUAL_OUTLIERS);
        match self.kind {
            Kind::TokenEmbedding => match residual(column) {
                scale if scale > 1.0 && (row, column) == (0, RESIDUAL_OUTLIERS.0) => MASSIVE,
                scale => value * scale,
            },
            Kind::LayerNorm => value * norms(column),
            Kind::AfterNorm => value / norms(column),
            Kind::IntoResidual => value * residual(row),
            Kind::HeadNorm => value,
        }
    }
}

/// An approximately normal random value with mean 0 and variance 1, from the sum of four uniform values.
fn normal(rng: &mut SmallRng) -> f32 {
    let bits = rng.next_u64();
    let sum: u32 = (0..4).map(|i| (bits >> (16 * i)) as u32 & 0xffff).sum();
    // The sum of four uniform values in 0..1 has mean 2 and variance 1/3.
    (sum as f32 / 65_536.0 - 2.0) * 3f32.sqrt()
}

impl View for RandomTensor {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0u8; self.data_len()];
        let chunks = bytes.par_chunks_mut(2 * CHUNK).enumerate();
        chunks.for_each(|(chunk, out)| self.fill(chunk, out));
        bytes.into()
    }

    fn data_len(&self) -> usize {
        2 * self.shape.iter().product::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use qwen3_embed::Embedder;

    use super::*;

    #[test]
    fn random_checkpoint_embeds_and_depends_on_seed() {
        let dir = tempfile::tempdir().unwrap();
        let args = |out: &Path, seed| Args {
            size: Size::Tiny,
            out: out.into(),
            seed,
            outliers: Outliers::All,
            tokenizer: None,
        };
        let embed = |name: &str, seed| {
            let out = dir.path().join(name);
            run(&args(&out, seed)).unwrap();
            let embedder = Embedder::builder(out.as_path()).build().unwrap();
            embedder.embed_documents(&["the same text"]).unwrap()
        };
        let first = embed("a", 1);
        assert_eq!(first, embed("b", 1));
        let other = embed("c", 2);
        assert!(first.similarity(&other).unwrap().get(0, 0) < 0.9);
        assert_eq!(first.dimensions(), 256);
    }

    #[test]
    fn shards_hold_every_tensor_once() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Size::Tiny.shape();
        fs::write(dir.path().join("config.json"), shape.config(0).to_string()).unwrap();
        fs::copy(root().join("fixtures/tokenizer.json"), dir.path().join("tokenizer.json"))
            .unwrap();
        write_shards(dir.path(), shape.tensors(0, Outliers::None), 3).unwrap();
        let files = fs::read_dir(dir.path()).unwrap();
        let shards = files.filter(|file| {
            file.as_ref().unwrap().path().extension().is_some_and(|e| e == "safetensors")
        });
        assert_eq!(shards.count(), 3);
        Embedder::builder(dir.path()).build().unwrap();
    }

    #[test]
    fn random_values_have_the_stated_mean_and_spread() {
        let mut rng = SmallRng::seed_from_u64(1);
        let values: Vec<f64> = (0..100_000).map(|_| normal(&mut rng).into()).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
