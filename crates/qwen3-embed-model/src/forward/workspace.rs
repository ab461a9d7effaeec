use candle_core::{DType, Device, Tensor};
use qwen3_embed_kernels::Ragged;
use qwen3_embed_kernels::ops::{self, Scratch};

use crate::numerics::Numerics;
use crate::{Config, Result};

/// Buffers for the activations of a call. They are kept for the next call, so that layers do not allocate.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    buffers: Option<Buffers>,
    scratch: Scratch,
}

/// Tensors with as many rows as the largest batch so far; `qkv` also has rows for its given tokens.
#[derive(Debug)]
struct Buffers {
    n_tokens: usize,
    n_rows: usize,
    hidden: Tensor,
    qkv: Tensor,
    attention: Tensor,
    ffn: Tensor,
}

/// The buffers of one batch.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    /// The result of a norm, [T, C].
    pub(crate) hidden: Tensor,
    /// [P + T, (H + 2K) · D]
    pub(crate) qkv: Tensor,
    /// [T, H · D]
    pub(crate) attention: Tensor,
    /// The result of SwiGLU, [T, F].
    pub(crate) ffn: Tensor,
    pub(crate) scratch: &'a Scratch,
}

/// Columns between the end of a row of activations and the beginning of the next row. Without a gap, rows would begin at
/// the same offset of a page, and the rows of a tile would contend for a few lines of the cache.
const GAP: usize = 32;

/// Bytes of the activations of a token, an estimate: the buffers of a workspace, the scratch buffers of operations, the
/// residual stream before and after the final norm, and the rotary tables. `info` and batches on a device use it.
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
    /// The buffers for a batch, where linear layers read activations of type `product`.
    pub(crate) fn room(
        &mut self,
        batch: &Ragged,
        config: &Config,
        product: DType,
        device: &Device,
    ) -> Result<Room<'_>> {
        let (n_tokens, n_rows) = (batch.n_tokens(), batch.n_rows());
        let is_enough =
            |buffers: &Buffers| buffers.n_tokens >= n_tokens && buffers.n_rows >= n_rows;
        let buffers = match self.buffers.take().filter(is_enough) {
            Some(buffers) => buffers,
            None => Buffers::new(n_tokens, n_rows, config, product, device)?,
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
    /// The buffers for the first `n_tokens` tokens, with all rows of queries, keys and values.
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
    fn new(
        n_tokens: usize,
        n_rows: usize,
        config: &Config,
        product: DType,
        device: &Device,
    ) -> Result<Self> {
        let heads = config.heads();
        let input = |columns| Tensor::zeros((n_tokens, columns + GAP), product, device);
        Ok(Self {
            n_tokens,
            n_rows,
            hidden: input(config.hidden_size)?,
            qkv: Tensor::zeros(
                (n_rows, heads.qkv_columns()),
                ops::attention_type(device, product),
                device,
            )?,
            attention: input(heads.q_columns())?,
            ffn: input(config.intermediate_size)?,
        })
    }
}
