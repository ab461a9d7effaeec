use std::path::Path;

use candle_core::Tensor;
use qwen3_embed_kernels::{Ragged, ops};

use crate::rope::RopeTable;
use crate::weights::{MappedRows, Precision, Weights, read_file};
use crate::{Config, Device, Error, Result};

/// A Qwen3 decoder that pools the last token.
///
/// It is a stack of layers, each `x += attention(norm(x))` and then `x += mlp(norm(x))`, over a
/// ragged batch: the tokens of all texts end to end. The residual stream is f32.
///
/// # Source
///
/// `Qwen3Model` of transformers; *Qwen3 Embedding* (2025).
#[derive(Debug)]
pub struct Model {
    config: Config,
    embed_tokens: MappedRows,
    layers: Vec<DecoderLayer>,
    norm: Tensor,
    rope: RopeTable,
    device: candle_core::Device,
}

/// Sees the residual stream as it passes: called with `i` and the input of layer `i`, then with the
/// number of layers and the output of the last. Values are row-major [T, C].
pub type Trace<'a> = &'a mut dyn FnMut(usize, &[f32]);

impl Model {
    /// Loads the checkpoint in `dir`: `config.json` and `model.safetensors`, or the shards that
    /// `model.safetensors.index.json` lists.
    ///
    /// The files are memory-mapped. Token embeddings are read from the map as they are needed, so
    /// the files must not be truncated or rewritten in place while the model lives; replacing them
    /// by renaming, as package managers and git do, is safe.
    ///
    /// # Errors
    ///
    /// A missing or damaged file, a configuration that is not supported, or a tensor that does not
    /// fit it: each variant of [`Error`] names the file and what is wrong in it.
    pub fn load(dir: &Path, device: Device, precision: Precision) -> Result<Self> {
        let device = device.open()?;
        let config_path = dir.join("config.json");
        let config = Config::from_json(&read_file(&config_path)?, &config_path)?;
        let weights = Weights::open(dir)?;
        let shape = [config.vocab_size, config.hidden_size];
        let embed_tokens = weights.rows("embed_tokens.weight", shape)?;
        let norm = weights.f32("norm.weight", &[config.hidden_size], &device)?;
        let mut layers = Vec::new();
        for layer_idx in 0..config.num_hidden_layers {
            let loader = LayerLoader {
                weights: &weights,
                config: &config,
                layer_idx,
                precision,
                device: &device,
            };
            layers.push(loader.load()?);
        }
        let rope =
            RopeTable::new(config.head_dim, config.rope_theta, config.max_position_embeddings);
        Ok(Self { config, embed_tokens, layers, norm, rope, device })
    }

    /// The model's hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The hidden state of each text's last token after the final norm, row-major [N, C]: neither
    /// truncated nor normalised.
    ///
    /// A text's row is the same, bit for bit, whatever else is in the batch.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyText`], [`Error::TooManyTokens`] or [`Error::TokenOutOfRange`] before anything
    /// is computed; [`Error::NotFinite`] if the result is not finite.
    pub fn forward(&self, texts: &[impl AsRef<[u32]>]) -> Result<Vec<f32>> {
        self.run(texts, None)
    }

    /// [`forward`](Self::forward), showing the residual stream to `trace` before and after every
    /// layer: for comparing with another implementation layer by layer.
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_traced(
        &self,
        texts: &[impl AsRef<[u32]>],
        trace: Trace<'_>,
    ) -> Result<Vec<f32>> {
        self.run(texts, Some(trace))
    }

    fn run(&self, texts: &[impl AsRef<[u32]>], mut trace: Option<Trace<'_>>) -> Result<Vec<f32>> {
        self.check_tokens(texts)?;
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let batch = Ragged::from_lengths(texts.iter().map(|text| text.as_ref().len()))?;
        let ids: Vec<u32> = texts.iter().flat_map(|text| text.as_ref()).copied().collect();
        let shape = (batch.n_tokens(), self.config.hidden_size);
        let mut x = Tensor::from_vec(self.embed_tokens.gather(&ids), shape, &self.device)?;
        let (cos, sin) = self.rope.gather(&batch, &self.device)?;
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            if let Some(trace) = &mut trace {
                trace(layer_idx, &ops::to_f32(&x)?);
            }
            x = layer.forward(&x, &cos, &sin, &batch)?;
        }
        if let Some(trace) = &mut trace {
            trace(self.layers.len(), &ops::to_f32(&x)?);
        }
        let last = ops::gather_rows(&x, &batch.last_rows())?;
        let pooled = ops::to_f32(&ops::rms_norm(&last, &self.norm, self.config.rms_norm_eps)?)?;
        check_finite(&pooled, self.config.hidden_size)?;
        Ok(pooled)
    }

    /// Checks every text's tokens as [`forward`](Self::forward) does, without computing anything.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyText`], [`Error::TooManyTokens`] or [`Error::TokenOutOfRange`].
    pub fn check_tokens(&self, texts: &[impl AsRef<[u32]>]) -> Result<()> {
        let vocab_size = self.config.vocab_size;
        let limit = self.config.max_position_embeddings;
        for (text, tokens) in texts.iter().enumerate() {
            let tokens = tokens.as_ref();
            if tokens.is_empty() {
                return Err(Error::EmptyText { text });
            }
            if tokens.len() > limit {
                return Err(Error::TooManyTokens { text, n_tokens: tokens.len(), limit });
            }
            if let Some(position) = tokens.iter().position(|&id| id as usize >= vocab_size) {
                let id = tokens[position];
                return Err(Error::TokenOutOfRange { text, position, id, vocab_size });
            }
        }
        Ok(())
    }
}

fn check_finite(rows: &[f32], n_columns: usize) -> Result<()> {
    match rows.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::NotFinite {
            text: at / n_columns,
            dimension: at % n_columns,
            value: rows[at],
        }),
    }
}

/// One decoder layer. Names are the checkpoint's.
#[derive(Debug)]
struct DecoderLayer {
    input_layernorm: Tensor,
    /// q_proj, k_proj and v_proj as one product, [(H + 2K) · D, C].
    qkv_proj: ops::Linear,
    q_norm: Tensor,
    k_norm: Tensor,
    o_proj: ops::Linear,
    post_attention_layernorm: Tensor,
    /// gate_proj and up_proj as one product, [2F, C].
    gate_up_proj: ops::Linear,
    down_proj: ops::Linear,
    heads: Heads,
    eps: f64,
}

/// Columns of the packed QKV projection.
#[derive(Debug, Clone, Copy)]
struct Heads {
    /// H · D
    q_size: usize,
    /// K · D
    kv_size: usize,
    head_dim: usize,
}

impl DecoderLayer {
    /// The residual stream [T, C] after this layer.
    fn forward(&self, x: &Tensor, cos: &Tensor, sin: &Tensor, batch: &Ragged) -> Result<Tensor> {
        let h = ops::rms_norm(x, &self.input_layernorm, self.eps)?;
        let x = (x + self.attention(&h, cos, sin, batch)?)?;
        let h = ops::rms_norm(&x, &self.post_attention_layernorm, self.eps)?;
        Ok((&x + self.mlp(&h)?)?)
    }

    fn attention(&self, h: &Tensor, cos: &Tensor, sin: &Tensor, batch: &Ragged) -> Result<Tensor> {
        let Heads { q_size, kv_size, head_dim } = self.heads;
        let qkv = self.qkv_proj.forward(h)?;
        let q = qkv.narrow(1, 0, q_size)?;
        let k = qkv.narrow(1, q_size, kv_size)?;
        let v = qkv.narrow(1, q_size + kv_size, kv_size)?;
        let q = ops::qk_norm_rope(&q, &self.q_norm, self.eps, cos, sin)?;
        let k = ops::qk_norm_rope(&k, &self.k_norm, self.eps, cos, sin)?;
        let v = v.reshape((batch.n_tokens(), kv_size / head_dim, head_dim))?;
        Ok(self.o_proj.forward(&ops::causal_attention(&q, &k, &v, batch)?)?)
    }

    fn mlp(&self, h: &Tensor) -> Result<Tensor> {
        Ok(self.down_proj.forward(&ops::swiglu(&self.gate_up_proj.forward(h)?)?)?)
    }
}

/// Reads one layer's weights.
struct LayerLoader<'a> {
    weights: &'a Weights,
    config: &'a Config,
    layer_idx: usize,
    precision: Precision,
    device: &'a candle_core::Device,
}

impl LayerLoader<'_> {
    fn load(&self) -> Result<DecoderLayer> {
        let c = self.config.hidden_size;
        let f = self.config.intermediate_size;
        let d = self.config.head_dim;
        let q_size = self.config.num_attention_heads * d;
        let kv_size = self.config.num_key_value_heads * d;
        let qkv = [
            ("self_attn.q_proj", q_size),
            ("self_attn.k_proj", kv_size),
            ("self_attn.v_proj", kv_size),
        ];
        Ok(DecoderLayer {
            input_layernorm: self.vector("input_layernorm", c)?,
            qkv_proj: self.linear(&qkv, c, self.config.attention_bias)?,
            q_norm: self.vector("self_attn.q_norm", d)?,
            k_norm: self.vector("self_attn.k_norm", d)?,
            o_proj: self.linear(&[("self_attn.o_proj", c)], q_size, self.config.attention_bias)?,
            post_attention_layernorm: self.vector("post_attention_layernorm", c)?,
            gate_up_proj: self.linear(&[("mlp.gate_proj", f), ("mlp.up_proj", f)], c, false)?,
            down_proj: self.linear(&[("mlp.down_proj", c)], f, false)?,
            heads: Heads { q_size, kv_size, head_dim: d },
            eps: self.config.rms_norm_eps,
        })
    }

    fn name(&self, module: &str, what: &str) -> String {
        format!("layers.{}.{module}.{what}", self.layer_idx)
    }

    fn vector(&self, module: &str, length: usize) -> Result<Tensor> {
        self.weights.f32(&self.name(module, "weight"), &[length], self.device)
    }

    /// Modules of [rows, columns] as one linear layer.
    fn linear(
        &self,
        modules: &[(&str, usize)],
        n_columns: usize,
        has_bias: bool,
    ) -> Result<ops::Linear> {
        let parts: Vec<_> =
            modules.iter().map(|&(module, rows)| (self.name(module, "weight"), rows)).collect();
        let weight = self.weights.stacked(&parts, n_columns, self.precision, self.device)?;
        let mut biases = Vec::new();
        for &(module, rows) in modules {
            let name = self.name(module, "bias");
            if has_bias {
                biases.push(self.weights.f32(&name, &[rows], self.device)?);
            } else if self.weights.contains(&name) {
                return Err(Error::UnexpectedTensor { path: self.weights.path_of(&name), name });
            }
        }
        let bias = if biases.is_empty() { None } else { Some(Tensor::cat(&biases, 0)?) };
        Ok(ops::Linear::new(weight, bias)?)
    }
}
