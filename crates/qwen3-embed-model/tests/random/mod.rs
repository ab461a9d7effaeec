//! Checkpoints with random weights of any shape, for what has to hold beyond the fixtures.

use std::fs;

use half::bf16;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use tempfile::TempDir;

/// Tokens of the vocabulary.
pub(crate) const VOCAB: usize = 512;

/// The shape of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) hidden: usize,
    pub(crate) ffn: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// The standard deviation of the weights and of the token embeddings.
    pub(crate) deviation: f64,
}

/// Writes a checkpoint of bf16 weights with a normal distribution and norm weights of one, as transformers
/// initializes a model. The same seed gives the same weights.
pub(crate) fn checkpoint(shape: Shape, seed: u64) -> TempDir {
    let Shape { hidden, ffn, layers, heads, kv_heads, head_dim, .. } = shape;
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "qwen3", "hidden_act": "silu", "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": head_dim, "vocab_size": VOCAB, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "attention_bias": false, "tie_word_embeddings": true,
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let mut shapes = vec![("embed_tokens.weight".to_owned(), vec![VOCAB, hidden])];
    for layer in 0..layers {
        let modules = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![q, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, q]),
            ("self_attn.q_norm", vec![head_dim]),
            ("self_attn.k_norm", vec![head_dim]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![ffn, hidden]),
            ("mlp.up_proj", vec![ffn, hidden]),
            ("mlp.down_proj", vec![hidden, ffn]),
        ];
        let named = modules.map(|(name, shape)| (format!("layers.{layer}.{name}.weight"), shape));
        shapes.extend(named);
    }
    shapes.push(("norm.weight".to_owned(), vec![hidden]));
    let mut random = SmallRng::seed_from_u64(seed);
    let mut value = |is_norm| if is_norm { 1.0 } else { shape.deviation * normal(&mut random) };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let n_values = shape.iter().product::<usize>();
            let values = (0..n_values).map(|_| bf16::from_f64(value(shape.len() == 1)));
            let bytes = values.flat_map(bf16::to_le_bytes).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    dir
}

/// A number with a standard normal distribution: the Box–Muller transform of two uniform ones.
fn normal(random: &mut SmallRng) -> f64 {
    let radius = 1.0 - random.random::<f64>();
    let angle = std::f64::consts::TAU * random.random::<f64>();
    (-2.0 * radius.ln()).sqrt() * angle.cos()
}
