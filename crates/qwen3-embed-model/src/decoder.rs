use std::path::Path;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Tensor};
use qwen3_embed_kernels::cpu::{Arithmetic, Kernels};
use qwen3_embed_kernels::{Ragged, ops};

use crate::calibration::Calibration;
use crate::layer::{DecoderLayer, LayerLoader};
use crate::rope::RopeTable;
use crate::weights::{MappedRows, Precision, Weights, read_file};
use crate::workspace::Workspace;
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
    precision: Precision,
    arithmetic: Arithmetic,
    device: candle_core::Device,
    /// Room for activations, one for each call that has run at the same time as others.
    workspaces: Mutex<Vec<Workspace>>,
}

/// Sees the residual stream as it passes: called with `i` and the input of layer `i`, then with the
/// number of layers and the output of the last. Values are row-major [T, C].
pub type Trace<'a> = &'a mut dyn FnMut(usize, &[f32]);

impl Model {
    /// Loads the checkpoint at `path`. In a folder: `config.json` and `model.safetensors`, or the
    /// shards that `model.safetensors.index.json` lists. Anything else is read as a GGUF file, which
    /// holds all of it.
    ///
    /// The files are memory-mapped. Token embeddings are read from the map as they are needed, so
    /// the files must not be truncated or rewritten in place while the model lives; replacing them
    /// by renaming, as package managers and git do, is safe.
    ///
    /// # Errors
    ///
    /// A missing or damaged file, a configuration that is not supported, or a tensor that does not
    /// fit it: each variant of [`Error`] names the file and what is wrong in it.
    pub fn load(path: &Path, device: Device, precision: Precision) -> Result<Self> {
        Self::load_for(path, device, precision, None)
    }

    /// [`load`](Self::load), to multiply so, be it fast on this processor or not: tests see the arithmetic
    /// of other processors. It must be one that weights of this precision have.
    #[doc(hidden)]
    pub fn load_for(
        path: &Path,
        device: Device,
        precision: Precision,
        arithmetic: Option<Arithmetic>,
    ) -> Result<Self> {
        let device = device.open()?;
        let (config, weights) = open(path)?;
        let precision = precision.for_weights(weights.has_few_bits());
        let arithmetic = arithmetic.unwrap_or_else(|| precision.arithmetic());
        let shape = [config.vocab_size, config.hidden_size];
        let embed_tokens = weights.rows("embed_tokens.weight", shape)?;
        let norm = weights.vector("norm.weight", config.hidden_size)?;
        let norm = Tensor::from_vec(norm, config.hidden_size, &device)?;
        let rope =
            RopeTable::new(config.head_dim, config.rope_theta, config.max_position_embeddings);
        let rounds = arithmetic == Arithmetic::Bytes || !weights.are_q8_0();
        let rounds = rounds && precision == Precision::Int8;
        let calibration = rounds.then(|| Calibration::new(&config, &embed_tokens, &rope, &device));
        let mut calibration = calibration.transpose()?;
        let mut layers = Vec::new();
        for layer_idx in 0..config.num_hidden_layers {
            let (weights, config, device) = (&weights, &config, &device);
            let loader = LayerLoader { weights, config, layer_idx, precision, arithmetic, device };
            layers.push(loader.load(calibration.as_mut())?);
        }
        Ok(Self {
            config,
            embed_tokens,
            layers,
            norm,
            rope,
            precision,
            arithmetic,
            device,
            workspaces: Mutex::default(),
        })
    }

    /// How the weights are kept and multiplied: what [`Precision::Auto`] has become.
    pub fn precision(&self) -> Precision {
        self.precision
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
        let mut workspace = self.workspace();
        let pooled = self.forward_batch(&batch, &ids, &mut workspace, &mut trace);
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
        let pooled = pooled?;
        check_finite(&pooled, self.config.hidden_size)?;
        Ok(pooled)
    }

    /// A workspace that no other call uses.
    fn workspace(&self) -> Workspace {
        let mut free = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        free.pop().unwrap_or_default()
    }

    fn forward_batch(
        &self,
        batch: &Ragged,
        ids: &[u32],
        workspace: &mut Workspace,
        trace: &mut Option<Trace<'_>>,
    ) -> Result<Vec<f32>> {
        let shape = (batch.n_tokens(), self.config.hidden_size);
        let x = Tensor::from_vec(self.embed_tokens.gather(ids), shape, &self.device)?;
        let (cos, sin) = self.rope.gather(batch, &self.device)?;
        let mut show = |layer_idx: usize| -> Result<()> {
            if let Some(trace) = trace {
                trace(layer_idx, &ops::to_f32(&x)?);
            }
            Ok(())
        };
        let room =
            workspace.room(batch.n_tokens(), &self.config, self.product_type(), &self.device)?;
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            show(layer_idx)?;
            layer.forward(&x, [&cos, &sin], batch, &room)?;
        }
        show(self.layers.len())?;
        let last = ops::gather_rows(&x, &batch.last_rows())?;
        let pooled = last.zeros_like()?;
        ops::rms_norm(&last, &self.norm, self.config.rms_norm_eps, &pooled)?;
        Ok(ops::to_f32(&pooled)?)
    }

    /// The type of the activations that products read.
    fn product_type(&self) -> DType {
        match self.arithmetic {
            Arithmetic::Bf16 => DType::BF16,
            // What is brought into fewer bits anyway comes from bf16 where attention is faster in it.
            Arithmetic::Bytes if Kernels::best().bf16_weights == Arithmetic::Bf16 => DType::BF16,
            Arithmetic::F32 | Arithmetic::Int8 | Arithmetic::Bytes => DType::F32,
        }
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

/// The configuration and the weights of a checkpoint's folder or of a GGUF file.
fn open(path: &Path) -> Result<(Config, Weights)> {
    if !path.is_dir() {
        return Weights::open_gguf(path);
    }
    let config_path = path.join("config.json");
    let config = Config::from_json(&read_file(&config_path)?, &config_path)?;
    Ok((config, Weights::open(path)?))
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
