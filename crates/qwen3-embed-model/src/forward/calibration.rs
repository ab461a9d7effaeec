//! What the inputs of products are like: which features carry outliers, and what 8 bits would lose.
//!
//! In trained Qwen3 models a few channels are up to thousands of times as large as the others, and the
//! same ones for nearly every token. What 8 bits lose of such a channel's weights is as much larger. A
//! few tokens that pass the layers while they are loaded show which channels these are, and whether
//! activations may be in 8 bits too.

use candle_core::{DType, Tensor};
use qwen3_embed_kernels::{Queries, Ragged};

use crate::forward::layer::{DecoderLayer, Projection};
use crate::forward::rope::RopeTable;
use crate::forward::token_embeddings::TokenEmbeddings;
use crate::forward::workspace::Workspace;
use crate::{Config, Result};

/// Tokens that pass the layers.
const N_TOKENS: usize = 64;

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
        embed_tokens: &TokenEmbeddings,
        rope: &RopeTable,
        device: &candle_core::Device,
    ) -> Result<Self> {
        let n_tokens = N_TOKENS.min(config.max_position_embeddings);
        let batch = Ragged::from_lengths([n_tokens])?;
        let batch = if config.is_causal { batch } else { batch.bidirectional()? };
        // Tokens from everywhere in the vocabulary, the first ones among them.
        let ids: Vec<u32> =
            (0..n_tokens).map(|i| (i * config.vocab_size / n_tokens) as u32).collect();
        let x = embed_tokens.gather(&ids, device)?;
        let (cos, sin) = rope.gather(&batch, device)?;
        Ok(Self { x, batch, cos, sin, config: config.clone(), workspace: Workspace::default() })
    }

    /// Lets the text pass the next layer.
    pub(crate) fn pass<L: Projection>(&mut self, layer: &DecoderLayer<L>) -> Result<()> {
        let Self { x, batch, cos, sin, config, workspace } = self;
        let room = workspace.room(batch, config, DType::F32, x.device())?;
        layer.forward(x, [cos, sin], batch, Queries::All, &room)?;
        Ok(())
    }
}
