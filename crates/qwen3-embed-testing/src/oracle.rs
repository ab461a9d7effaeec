//! A simple Qwen3 forward pass that consists of candle-nn's layers. Tests compare the model crate with it.
//!
//! The code is written to be read, not to be fast. It computes one text at a time, it keeps no KV cache, and it applies
//! the causal mask as a matrix. It shares no code with the model crate, not even the reading of the configuration.
//!
//! ```text
//! x = embed_tokens[tokens]                                         [T, C]
//! for each layer:
//!     h = RMSNorm(x)
//!     q, k = RoPE(RMSNorm(h·Wq)), RoPE(RMSNorm(h·Wk))              [H, T, D] and [K, T, D]
//!     v = h·Wv                                                     [K, T, D]
//!     x = x + (softmax(q·kᵀ / √D + mask)·v)·Wo
//!     h = RMSNorm(x)
//!     x = x + (SiLU(h·Wgate) ⊙ (h·Wup))·Wdown
//! hidden states = RMSNorm(x)                                       [T, C]
//! ```
//!
//! The letters have the same meaning as in the kernels crate: T tokens, H query heads, K key/value heads, D head
//! dimension, C hidden size.
//!
//! # Source
//!
//! `transformers/models/qwen3/modeling_qwen3.py` of transformers 5.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, IndexOp, Tensor};
use candle_nn::{
    Embedding, Linear, Module, RmsNorm, VarBuilder, embedding, linear_b, ops, rms_norm, rotary_emb,
};
use serde::Deserialize;
use serde_json::Value;

/// A Qwen3 checkpoint that is computed by candle-nn on the CPU.
pub struct Oracle {
    config: Config,
    embed_tokens: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Head,
}

/// The fields of `config.json` that decide the result.
#[derive(Deserialize)]
struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    vocab_size: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_parameters: Option<RopeParameters>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default = "yes")]
    is_causal: bool,
}

/// The rotary embedding's settings as transformers 5 writes them.
#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: f64,
}

struct Layer {
    input_layernorm: RmsNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    post_attention_layernorm: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

/// The weight that turns a hidden state into logits.
enum Head {
    /// `score.weight` of a sequence classifier, [1, C].
    Classifier(Tensor),
    /// `lm_head.weight`, or the token embeddings if there is no such tensor: [vocabulary, C].
    LanguageModel(Tensor),
}

impl Oracle {
    /// Loads a folder with `config.json` and `model.safetensors`, or with shards and their index. The forward pass is
    /// computed in f32. The weights take four bytes per parameter.
    ///
    /// # Errors
    ///
    /// If a file or tensor is missing, or if the configuration has a setting that the oracle does not support.
    pub fn load_f32(folder: &Path) -> Result<Self> {
        Self::load(folder, DType::F32).with_context(|| folder.display().to_string())
    }

    /// Like [`load_f32`](Self::load_f32), but the forward pass is computed in f64. The weights take eight bytes per
    /// parameter.
    ///
    /// # Errors
    ///
    /// Like [`load_f32`](Self::load_f32).
    pub fn load_f64(folder: &Path) -> Result<Self> {
        Self::load(folder, DType::F64).with_context(|| folder.display().to_string())
    }

    fn load(folder: &Path, dtype: DType) -> Result<Self> {
        let config = Config::read(folder)?;
        let tensors = read_tensors(folder)?;
        let prefix = decoder_prefix(&tensors)?;
        let head_prefix = prefix.strip_suffix("model.").unwrap_or(&prefix).to_owned();
        let all = VarBuilder::from_tensors(tensors, dtype, &Device::Cpu);
        // The prefix ends with a period. The period is removed, because `pp` adds one.
        let at = |prefix: &str| match prefix.strip_suffix('.') {
            Some(prefix) => all.pp(prefix),
            None => all.clone(),
        };
        let (decoder, heads) = (at(&prefix), at(&head_prefix));
        let (c, vocab) = (config.hidden_size, config.vocab_size);
        let embed_tokens = embedding(vocab, c, decoder.pp("embed_tokens"))?;
        let head = if heads.contains_tensor("score.weight") {
            Head::Classifier(heads.get((1, c), "score.weight")?)
        } else if heads.contains_tensor("lm_head.weight") {
            Head::LanguageModel(heads.get((vocab, c), "lm_head.weight")?)
        } else {
            Head::LanguageModel(embed_tokens.embeddings().clone())
        };
        let layers = decoder.pp("layers");
        let layers = (0..config.num_hidden_layers).map(|i| Layer::load(&config, &layers.pp(i)));
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            norm: rms_norm(c, config.rms_norm_eps, decoder.pp("norm"))?,
            config,
            embed_tokens,
            head,
        })
    }

    /// The hidden states of a text's tokens after the final norm, token by token.
    ///
    /// # Errors
    ///
    /// If there is no token, or if a token is not in the vocabulary.
    pub fn hidden_states(&self, tokens: &[u32]) -> Result<Vec<Vec<f64>>> {
        Ok(self.forward(tokens)?.to_dtype(DType::F64)?.to_vec2()?)
    }

    /// The hidden state of a text's last token after the final norm: an embedding before it is normalized.
    ///
    /// # Errors
    ///
    /// Like [`hidden_states`](Self::hidden_states).
    pub fn embedding(&self, tokens: &[u32]) -> Result<Vec<f64>> {
        let hidden_states = self.forward(tokens)?;
        Ok(hidden_states.i(tokens.len() - 1)?.to_dtype(DType::F64)?.to_vec1()?)
    }

    /// A reranker's logit of a prompt: the logit of the token `yes` minus the logit of the token `no`, or the single
    /// logit of a sequence classifier.
    ///
    /// # Errors
    ///
    /// Like [`hidden_states`](Self::hidden_states).
    pub fn rerank_logit(&self, prompt: &[u32], [yes, no]: [u32; 2]) -> Result<f64> {
        let last = self.forward(prompt)?.i(prompt.len() - 1)?;
        let logit = |row: Tensor| -> Result<f64> {
            Ok((row * &last)?.sum_all()?.to_dtype(DType::F64)?.to_scalar()?)
        };
        match &self.head {
            Head::Classifier(weight) => logit(weight.i(0)?),
            Head::LanguageModel(weight) => {
                Ok(logit(weight.i(yes as usize)?)? - logit(weight.i(no as usize)?)?)
            }
        }
    }

    fn forward(&self, tokens: &[u32]) -> Result<Tensor> {
        ensure!(!tokens.is_empty(), "expected at least one token, got none");
        let mut x = self.embed_tokens.forward(&Tensor::new(tokens, &Device::Cpu)?)?;
        let rotary = self.config.rotary_tables(tokens.len(), x.dtype())?;
        let mask = self.config.mask(tokens.len(), x.dtype())?;
        for layer in &self.layers {
            x = layer.forward(&self.config, &x, &rotary, &mask)?;
        }
        // `forward_diff` sums in the type of its input; `forward` would sum in f32.
        Ok(self.norm.forward_diff(&x)?)
    }
}

impl Layer {
    fn load(config: &Config, layer: &VarBuilder<'_>) -> Result<Self> {
        let (c, f, d) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let (q, kv) = (config.num_attention_heads * d, config.num_key_value_heads * d);
        let (attention, mlp) = (layer.pp("self_attn"), layer.pp("mlp"));
        let linear = |[inputs, outputs]: [usize; 2], name: &str| {
            linear_b(inputs, outputs, config.attention_bias, attention.pp(name))
        };
        let norm = |size, at: VarBuilder<'_>| rms_norm(size, config.rms_norm_eps, at);
        Ok(Self {
            input_layernorm: norm(c, layer.pp("input_layernorm"))?,
            q_proj: linear([c, q], "q_proj")?,
            k_proj: linear([c, kv], "k_proj")?,
            v_proj: linear([c, kv], "v_proj")?,
            o_proj: linear([q, c], "o_proj")?,
            q_norm: norm(d, attention.pp("q_norm"))?,
            k_norm: norm(d, attention.pp("k_norm"))?,
            post_attention_layernorm: norm(c, layer.pp("post_attention_layernorm"))?,
            gate_proj: linear_b(c, f, false, mlp.pp("gate_proj"))?,
            up_proj: linear_b(c, f, false, mlp.pp("up_proj"))?,
            down_proj: linear_b(f, c, false, mlp.pp("down_proj"))?,
        })
    }

    /// The residual stream after the layer, [T, C].
    fn forward(
        &self,
        config: &Config,
        x: &Tensor,
        rotary: &[Tensor; 2],
        mask: &Tensor,
    ) -> Result<Tensor> {
        let h = self.input_layernorm.forward_diff(x)?;
        let x = (x + self.attention(config, &h, rotary, mask)?)?;
        let h = self.post_attention_layernorm.forward_diff(&x)?;
        let gates = self.gate_proj.forward(&h)?.silu()?;
        Ok((&x + self.down_proj.forward(&(gates * self.up_proj.forward(&h)?)?)?)?)
    }

    /// Grouped-query attention: H / K neighboring query heads use the same key/value head.
    fn attention(
        &self,
        config: &Config,
        h: &Tensor,
        [cos, sin]: &[Tensor; 2],
        mask: &Tensor,
    ) -> Result<Tensor> {
        let (t, d) = (h.dim(0)?, config.head_dim);
        let (n_heads, n_kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        // [T, heads · D] becomes [heads, T, D].
        let heads = |x: Tensor| x.reshape((t, (), d))?.transpose(0, 1)?.contiguous();
        let rope = |x: Tensor| rotary_emb::rope(&x.unsqueeze(0)?, cos, sin)?.squeeze(0);
        let repeat = |x: Tensor| {
            let groups = (n_kv_heads, n_heads / n_kv_heads, t, d);
            x.unsqueeze(1)?.broadcast_as(groups)?.reshape((n_heads, t, d))
        };
        let q = rope(self.q_norm.forward_diff(&heads(self.q_proj.forward(h)?)?)?)?;
        let k = rope(self.k_norm.forward_diff(&heads(self.k_proj.forward(h)?)?)?)?;
        let (k, v) = (repeat(k)?, repeat(heads(self.v_proj.forward(h)?)?)?);
        let scores = (q.matmul(&k.transpose(1, 2)?)? / (d as f64).sqrt())?;
        let weights = ops::softmax_last_dim(&scores.broadcast_add(mask)?)?;
        let values = weights.matmul(&v)?.transpose(0, 1)?.reshape((t, n_heads * d))?;
        Ok(self.o_proj.forward(&values)?)
    }
}

impl Config {
    fn read(folder: &Path) -> Result<Self> {
        let config: Value = read_json(&folder.join("config.json"))?;
        // Settings that change the result and that the oracle does not support are errors.
        let is_plain_rope = |rope: &Value| {
            let rope_type = rope.get("rope_type").or(rope.get("type"));
            rope_type.is_none_or(|rope_type| rope_type == "default")
        };
        ensure!(
            config["hidden_act"] == "silu",
            "`hidden_act` is {}; expected \"silu\"",
            config["hidden_act"]
        );
        ensure!(is_plain_rope(&config["rope_scaling"]), "the rotary frequencies are scaled");
        ensure!(is_plain_rope(&config["rope_parameters"]), "the rotary frequencies are scaled");
        ensure!(config["use_sliding_window"] != true, "attention has a sliding window");
        ensure!(config["quantization_config"].is_null(), "the weights are quantized");
        Ok(serde_json::from_value(config)?)
    }

    /// Cosines and sines of the rotary angles, [T, D / 2] each. They are computed in f64.
    fn rotary_tables(&self, n_tokens: usize, dtype: DType) -> Result<[Tensor; 2]> {
        let theta = self.rope_parameters.as_ref().map(|rope| rope.rope_theta).or(self.rope_theta);
        let theta = theta.context("no `rope_theta`")?;
        let frequencies: Vec<f64> = (0..self.head_dim / 2)
            .map(|i| theta.powf(-2.0 * i as f64 / self.head_dim as f64))
            .collect();
        let angles: Vec<f64> = (0..n_tokens)
            .flat_map(|position| frequencies.iter().map(move |f| position as f64 * f))
            .collect();
        let angles = Tensor::from_vec(angles, (n_tokens, self.head_dim / 2), &Device::Cpu)?;
        Ok([angles.cos()?.to_dtype(dtype)?, angles.sin()?.to_dtype(dtype)?])
    }

    /// The matrix that is added to the scores, [T, T]: −∞ where a query must not attend to a key, 0 elsewhere.
    fn mask(&self, n_tokens: usize, dtype: DType) -> Result<Tensor> {
        let zeros = Tensor::zeros((n_tokens, n_tokens), dtype, &Device::Cpu)?;
        if !self.is_causal {
            return Ok(zeros);
        }
        // Rows are queries and columns are keys, so a query attends to the keys of the lower triangle.
        let visible = Tensor::tril2(n_tokens, DType::U8, &Device::Cpu)?;
        let hidden = Tensor::full(f64::NEG_INFINITY, (n_tokens, n_tokens), &Device::Cpu)?;
        Ok(visible.where_cond(&zeros, &hidden.to_dtype(dtype)?)?)
    }
}

fn yes() -> bool {
    true
}

/// The ids of the tokens `yes` and `no` in the vocabulary of a folder's `tokenizer.json`.
///
/// # Errors
///
/// If the file cannot be read or lacks one of the tokens.
pub fn answers(folder: &Path) -> Result<[u32; 2]> {
    let path = folder.join("tokenizer.json");
    let tokenizer = read_json(&path)?;
    let id = |answer: &str| -> Result<u32> {
        let id = tokenizer["model"]["vocab"][answer].as_u64();
        let id = id.with_context(|| format!("{}: no token `{answer}`", path.display()))?;
        Ok(u32::try_from(id)?)
    };
    Ok([id("yes")?, id("no")?])
}

/// All tensors of a checkpoint, in the types in which they are stored.
fn read_tensors(folder: &Path) -> Result<HashMap<String, Tensor>> {
    let index = folder.join("model.safetensors.index.json");
    let files: BTreeSet<String> = if index.is_file() {
        let index: Value = read_json(&index)?;
        let weight_map: HashMap<String, String> =
            serde_json::from_value(index["weight_map"].clone())?;
        weight_map.into_values().collect()
    } else {
        BTreeSet::from(["model.safetensors".to_owned()])
    };
    let mut tensors = HashMap::new();
    for file in files {
        tensors.extend(candle_core::safetensors::load(folder.join(file), &Device::Cpu)?);
    }
    Ok(tensors)
}

/// The prefix of the names of the decoder's tensors, such as `model.`. It is taken from the name of the token
/// embeddings.
fn decoder_prefix(tensors: &HashMap<String, Tensor>) -> Result<String> {
    let prefixes = tensors.keys().filter_map(|name| name.strip_suffix("embed_tokens.weight"));
    match &prefixes.collect::<Vec<_>>()[..] {
        [prefix] => Ok((*prefix).to_owned()),
        prefixes => bail!("expected one tensor `embed_tokens.weight`, got {}", prefixes.len()),
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let json = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&json).with_context(|| path.display().to_string())
}
