//! Calibration: a few tokens pass through the layers while they are loaded, so that each linear layer is packed for the
//! activations that it receives.

use candle_core::{DType, Tensor};
use qwen3_embed_kernels::{Queries, Ragged};

use crate::forward::layer::{DecoderLayer, Projection};
use crate::forward::rope::RopeTable;
use crate::forward::token_embeddings::TokenEmbeddings;
use crate::forward::workspace::Workspace;
use crate::{Config, Result};

/// The number of tokens in the calibration text.
const N_TOKENS: usize = 64;

/// A text that passes through the layers, one after another.
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
    /// Prepares the input of the first layer.
    pub(crate) fn new(
        config: &Config,
        embed_tokens: &TokenEmbeddings,
        rope: &RopeTable,
        device: &candle_core::Device,
    ) -> Result<Self> {
        let n_tokens = N_TOKENS.min(config.max_position_embeddings);
        let batch = Ragged::from_lengths([n_tokens])?;
        let batch = if config.is_causal { batch } else { batch.bidirectional()? };
        // Tokens at equal distances in the vocabulary.
        let ids: Vec<u32> =
            (0..n_tokens).map(|i| (i * config.vocab_size / n_tokens) as u32).collect();
        let x = embed_tokens.gather(&ids, device)?;
        let [cos, sin] = rope.gather(&batch, device)?;
        Ok(Self { x, batch, cos, sin, config: config.clone(), workspace: Workspace::default() })
    }

    /// Passes the text through the next layer.
    pub(crate) fn pass<L: Projection>(&mut self, layer: &DecoderLayer<L>) -> Result<()> {
        let Self { x, batch, cos, sin, config, workspace } = self;
        let room = workspace.room(batch, config, DType::F32, x.device())?;
        layer.forward(x, [cos, sin], batch, Queries::All, &room)?;
        Ok(())
    }
}
