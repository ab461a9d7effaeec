use candle_core::{DType, Device, Tensor};
use qwen3_embed_kernels::Ragged;
use qwen3_embed_kernels::ops::{self, Scratch};

use crate::numerics::Numerics;
use crate::{Config, Result};

/// Memory for the activations of a batch. It is reused for later batches, so layers allocate no memory.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    buffers: Option<Buffers>,
    scratch: Scratch,
}

/// Tensors with as many rows as the largest batch so far has tokens. `qkv` has rows for given tokens, too.
#[derive(Debug)]
struct Buffers {
    n_tokens: usize,
    n_rows: usize,
    hidden: Tensor,
    qkv: Tensor,
    attention: Tensor,
    ffn: Tensor,
}

/// The parts of a [`Workspace`] that one batch uses.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    /// The output of a norm, [T, C].
    pub(crate) hidden: Tensor,
    /// Queries, keys and values, [P + T, (H + 2K) · D], with P given rows before the computed ones.
    pub(crate) qkv: Tensor,
    /// The output of attention, [T, H · D].
    pub(crate) attention: Tensor,
    /// The output of SwiGLU, [T, F].
    pub(crate) ffn: Tensor,
    pub(crate) scratch: &'a Scratch,
}

/// Unused columns at the end of each row of the inputs of matrix multiplications. Without them, rows would begin at the
/// same offset in their memory pages, and the twelve rows of a tile would compete for the same few sets of the CPU
/// cache.
const GAP: usize = 32;

/// The memory of a token's activations in bytes, estimated: the workspace, the scratch buffers of operations, the
/// residual stream before and after the final norm, and the rotary tables.
///
/// [`Summary::memory`](crate::Summary::memory) and the error of a batch that does not fit use this estimate.
pub(crate) fn bytes_per_token(config: &Config, numerics: Numerics, device: &Device) -> usize {
    let Numerics { arithmetic, activations, .. } = numerics;
    let (heads, c, f) = (config.heads(), config.hidden_size, config.intermediate_size);
    let inputs = c + heads.q_columns() + f + 3 * GAP;
    let attention = ops::attention_type(device, activations);
    inputs * activations.size_in_bytes()
        + heads.qkv_columns() * attention.size_in_bytes()
        + (2 * c + config.head_dim) * DType::F32.size_in_bytes()
        + Scratch::bytes_per_token(device, heads, f, activations, arithmetic)
}

impl Workspace {
    /// Whether a batch needs no more memory than the workspace has.
    pub(crate) fn has_room(&self, batch: &Ragged) -> bool {
        self.buffers.as_ref().is_some_and(|buffers| buffers.fit(batch))
    }

    /// The memory for a batch. `activations` is the type of the inputs of linear layers.
    pub(crate) fn room(
        &mut self,
        batch: &Ragged,
        config: &Config,
        activations: DType,
        device: &Device,
    ) -> Result<Room<'_>> {
        let (n_tokens, n_rows) = (batch.n_tokens(), batch.n_rows());
        let buffers = match self.buffers.take().filter(|buffers| buffers.fit(batch)) {
            Some(buffers) => buffers,
            None => Buffers::new(n_tokens, n_rows, config, activations, device)?,
        };
        let buffers = self.buffers.insert(buffers);
        let heads = config.heads();
        let room =
            |tensor: &Tensor, rows, columns| tensor.narrow(0, 0, rows)?.narrow(1, 0, columns);
        Ok(Room {
            hidden: room(&buffers.hidden, n_tokens, config.hidden_size)?,
            qkv: room(&buffers.qkv, n_rows, heads.qkv_columns())?,
            attention: room(&buffers.attention, n_tokens, heads.q_columns())?,
            ffn: room(&buffers.ffn, n_tokens, config.intermediate_size)?,
            scratch: &self.scratch,
        })
    }
}

impl Room<'_> {
    /// The same memory for the first `n_tokens` tokens only, with all rows of queries, keys and values.
    pub(crate) fn first(&self, n_tokens: usize) -> Result<Self> {
        let first = |tensor: &Tensor| tensor.narrow(0, 0, n_tokens);
        Ok(Self {
            hidden: first(&self.hidden)?,
            qkv: self.qkv.clone(),
            attention: first(&self.attention)?,
            ffn: first(&self.ffn)?,
            scratch: self.scratch,
        })
    }
}

impl Buffers {
    fn fit(&self, batch: &Ragged) -> bool {
        self.n_tokens >= batch.n_tokens() && self.n_rows >= batch.n_rows()
    }

    fn new(
        n_tokens: usize,
        n_rows: usize,
        config: &Config,
        activations: DType,
        device: &Device,
    ) -> Result<Self> {
        let heads = config.heads();
        let input = |columns| Tensor::zeros((n_tokens, columns + GAP), activations, device);
        Ok(Self {
            n_tokens,
            n_rows,
            hidden: input(config.hidden_size)?,
            qkv: Tensor::zeros(
                (n_rows, heads.qkv_columns()),
                ops::attention_type(device, activations),
                device,
            )?,
            attention: input(heads.q_columns())?,
            ffn: input(config.intermediate_size)?,
        })
    }
}
