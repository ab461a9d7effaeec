use candle_core::{DType, Device, Tensor};
use qwen3_embed_kernels::Ragged;
use qwen3_embed_kernels::cpu::{Arithmetic, Kernels};
use qwen3_embed_kernels::ops::{self, Scratch};

use crate::{Config, Result};

/// Room for the activations of a call, kept for the next one: a layer allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    buffers: Option<Buffers>,
    scratch: Scratch,
}

/// Tensors of as many rows as the largest batch so far, `qkv` of as many as it had with given ones.
#[derive(Debug)]
struct Buffers {
    n_tokens: usize,
    n_rows: usize,
    hidden: Tensor,
    qkv: Tensor,
    attention: Tensor,
    ffn: Tensor,
}

/// Room for the activations of one batch.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    /// A norm's result, [T, C].
    pub(crate) hidden: Tensor,
    /// [P + T, (H + 2K) · D]
    pub(crate) qkv: Tensor,
    /// [T, H · D]
    pub(crate) attention: Tensor,
    /// SwiGLU's result, [T, F].
    pub(crate) ffn: Tensor,
    pub(crate) scratch: &'a Scratch,
}

/// Columns between one row and the next of what a product reads. Without them rows begin at the same
/// place of a page, and the twelve of a tile would contend for the same few lines of the cache.
const GAP: usize = 32;

/// The type of the activations that products read.
pub(crate) fn product_type(arithmetic: Arithmetic) -> DType {
    match arithmetic {
        Arithmetic::Bf16 => DType::BF16,
        // These products quantize their input in any case: they read bf16 where attention is faster in it.
        Arithmetic::Bytes | Arithmetic::Blocks
            if Kernels::current().bf16_weights == Arithmetic::Bf16 =>
        {
            DType::BF16
        }
        Arithmetic::F32 | Arithmetic::Int8 | Arithmetic::Bytes | Arithmetic::Blocks => DType::F32,
    }
}

/// Bytes that the activations of a token take, about: those of the workspace, gates and ups where they are
/// not multiplied at once, and the residual stream.
pub(crate) fn bytes_per_token(config: &Config, product: DType, device: &Device) -> usize {
    let heads = config.heads();
    let of_products =
        config.hidden_size + heads.q_columns() + 3 * config.intermediate_size + 3 * GAP;
    let of_attention = ops::attention_type(device, product).size_in_bytes();
    of_products * product.size_in_bytes()
        + heads.qkv_columns() * of_attention
        + (2 * config.hidden_size + config.head_dim) * DType::F32.size_in_bytes()
}

impl Workspace {
    /// Room for a batch, where products read values of type `product`.
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
    /// The room for the first `n_tokens` of the tokens, all rows of queries, keys and values.
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
