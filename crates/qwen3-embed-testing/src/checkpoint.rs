//! Checkpoints of any shape with random weights.
#![expect(clippy::unwrap_used, reason = "a test that cannot write its checkpoint fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixtures::{Tensor, Tensors, write_tensors};

/// The description of a checkpoint with random weights. Fields that `config.json` also has have the same names as
/// there.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomCheckpoint {
    /// Width of the residual stream, C.
    pub hidden_size: usize,
    /// Width of the MLP, F.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads, H.
    pub num_attention_heads: usize,
    /// Number of key/value heads, K.
    pub num_key_value_heads: usize,
    /// Width of a head, D.
    pub head_dim: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// The maximum length of a text, in tokens.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Whether the attention's projections have a bias.
    pub attention_bias: bool,
    /// Whether a token attends only to itself and to the tokens before it.
    pub is_causal: bool,
    /// Whether the token embeddings are also the head of the language model. If not, the checkpoint has a tensor
    /// `lm_head.weight`.
    pub tie_word_embeddings: bool,
    /// The type of the weights: f32, f16 or bf16.
    pub dtype: Dtype,
    /// The standard deviation of token embeddings, weights and biases.
    pub deviation: f64,
    /// Weights of norms have a uniform distribution from `1 - norm_spread` to `1 + norm_spread`.
    pub norm_spread: f64,
    /// The prefix of the names of the decoder's tensors: `model.` or empty.
    pub prefix: &'static str,
    /// The number of safetensors files.
    pub n_shards: usize,
}

/// Two layers with bf16 weights. The weights have the distribution with which transformers initializes a model.
impl Default for RandomCheckpoint {
    fn default() -> Self {
        Self {
            hidden_size: 64,
            intermediate_size: 192,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 32,
            vocab_size: 512,
            max_position_embeddings: 4096,
            rope_theta: 1e6,
            attention_bias: false,
            is_causal: true,
            tie_word_embeddings: true,
            dtype: Dtype::BF16,
            deviation: 0.02,
            norm_spread: 0.0,
            prefix: "",
            n_shards: 1,
        }
    }
}

impl RandomCheckpoint {
    /// A random description. The weights are large enough for each part of a layer to change the result.
    pub fn random(rng: &mut SmallRng) -> Self {
        let num_key_value_heads = rng.random_range(1..=4);
        let hidden_size = rng.random_range(8..=160);
        let prefix = if rng.random() { "model." } else { "" };
        Self {
            hidden_size,
            intermediate_size: rng.random_range(8..=256),
            num_hidden_layers: rng.random_range(1..=4),
            num_attention_heads: num_key_value_heads * rng.random_range(1..=4),
            num_key_value_heads,
            head_dim: [2, 6, 8, 16, 24, 32, 48, 64, 80, 128][rng.random_range(0..10)],
            vocab_size: rng.random_range(16..=600),
            max_position_embeddings: 4096,
            rope_theta: 10f64.powf(rng.random_range(2.0..7.0)),
            attention_bias: rng.random(),
            is_causal: rng.random_bool(0.75),
            tie_word_embeddings: rng.random(),
            dtype: [Dtype::F32, Dtype::F16, Dtype::BF16][rng.random_range(0..3)],
            deviation: 1.0 / (hidden_size as f64).sqrt(),
            norm_spread: 0.5,
            prefix,
            n_shards: rng.random_range(1..=3),
        }
    }

    /// Writes `config.json` and the weights into a temporary folder. The same seed gives the same weights.
    pub fn write(&self, seed: u64) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), self.config().to_string()).unwrap();
        let mut rng = SmallRng::seed_from_u64(seed);
        let tensors = self.shapes().into_iter();
        let tensors = tensors.map(|(name, shape)| {
            let is_norm = name.ends_with("norm.weight");
            let tensor = self.tensor(is_norm, shape, &mut rng);
            (name, tensor)
        });
        self.write_shards(dir.path(), tensors.collect());
        dir
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": 1e-6,
            "rope_theta": self.rope_theta,
            "attention_bias": self.attention_bias,
            "is_causal": self.is_causal,
            "tie_word_embeddings": self.tie_word_embeddings,
        })
    }

    /// Names and shapes of all tensors.
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (c, f, d) = (self.hidden_size, self.intermediate_size, self.head_dim);
        let (q, kv) = (self.num_attention_heads * d, self.num_key_value_heads * d);
        let mut shapes = vec![("embed_tokens.weight".to_owned(), vec![self.vocab_size, c])];
        for layer_idx in 0..self.num_hidden_layers {
            let mut add = |name: &str, shape: &[usize]| {
                shapes.push((format!("layers.{layer_idx}.{name}"), shape.to_vec()));
            };
            add("input_layernorm.weight", &[c]);
            let projections =
                [("q_proj", q, c), ("k_proj", kv, c), ("v_proj", kv, c), ("o_proj", c, q)];
            for (name, outputs, inputs) in projections {
                add(&format!("self_attn.{name}.weight"), &[outputs, inputs]);
                if self.attention_bias {
                    add(&format!("self_attn.{name}.bias"), &[outputs]);
                }
            }
            add("self_attn.q_norm.weight", &[d]);
            add("self_attn.k_norm.weight", &[d]);
            add("post_attention_layernorm.weight", &[c]);
            add("mlp.gate_proj.weight", &[f, c]);
            add("mlp.up_proj.weight", &[f, c]);
            add("mlp.down_proj.weight", &[c, f]);
        }
        shapes.push(("norm.weight".to_owned(), vec![c]));
        shapes.iter_mut().for_each(|(name, _)| name.insert_str(0, self.prefix));
        if !self.tie_word_embeddings {
            shapes.push(("lm_head.weight".to_owned(), vec![self.vocab_size, c]));
        }
        shapes
    }

    fn tensor(&self, is_norm: bool, shape: Vec<usize>, rng: &mut SmallRng) -> Tensor {
        let mut value = || match is_norm {
            true if self.norm_spread == 0.0 => 1.0,
            true => 1.0 + self.norm_spread * rng.random_range(-1.0..1.0),
            false => self.deviation * normal(rng),
        };
        let n_values = shape.iter().product();
        let values: Vec<f64> = (0..n_values).map(|_| value()).collect();
        let data = match self.dtype {
            Dtype::F32 => values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|&v| f16::from_f64(v).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f64(v).to_le_bytes()).collect(),
            dtype => unimplemented!("weights in {dtype:?}"),
        };
        Tensor { dtype: self.dtype, shape, data }
    }

    /// Writes `model.safetensors`, or several shards and their index.
    fn write_shards(&self, dir: &Path, tensors: Tensors) {
        if self.n_shards == 1 {
            return write_tensors(&dir.join("model.safetensors"), &tensors);
        }
        let mut shards = vec![Tensors::new(); self.n_shards];
        let mut weight_map = BTreeMap::new();
        for (i, (name, tensor)) in tensors.into_iter().enumerate() {
            let shard = i % self.n_shards;
            weight_map.insert(name.clone(), self.shard_name(shard));
            shards[shard].insert(name, tensor);
        }
        for (i, shard) in shards.iter().enumerate() {
            write_tensors(&dir.join(self.shard_name(i)), shard);
        }
        let index = json!({ "weight_map": weight_map });
        fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    fn shard_name(&self, i: usize) -> String {
        format!("model-{:05}-of-{:05}.safetensors", i + 1, self.n_shards)
    }
}

/// A number with a standard normal distribution: the Box–Muller transform of two uniform numbers.
fn normal(rng: &mut SmallRng) -> f64 {
    let radius = 1.0 - rng.random::<f64>();
    let angle = std::f64::consts::TAU * rng.random::<f64>();
    (-2.0 * radius.ln()).sqrt() * angle.cos()
}
