use candle_core::{DType, Device, Tensor};
use qwen3_embed_kernels::Ragged;
use qwen3_embed_kernels::cpu::{Arithmetic, Kernels};
use qwen3_embed_kernels::ops::{self, Scratch};

use crate::{Config, Result};

/// Memory for the activations of a batch, which is reused, so that layers allocate nothing.
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

/// Unused columns at the end of each row of the inputs of matrix multiplications. Without them, rows begin at the same
/// offset in their pages, so that the twelve rows of a tile compete for the same few cache lines.
const GAP: usize = 32;

/// The type of the inputs of matrix multiplications.
pub(crate) fn product_type(arithmetic: Arithmetic) -> DType {
    match arithmetic {
        Arithmetic::Bf16 => DType::BF16,
        // The input is quantized in any case, so it is bf16 if attention is faster in bf16.
        Arithmetic::Bytes | Arithmetic::Blocks
            if Kernels::current().bf16_weights == Arithmetic::Bf16 =>
        {
            DType::BF16
        }
        Arithmetic::F32 | Arithmetic::Int8 | Arithmetic::Bytes | Arithmetic::Blocks => DType::F32,
    }
}

/// The memory of a token's activations in bytes, estimated: the workspace, the outputs of gate_proj and up_proj on
/// devices that store them, and the residual stream.
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
    /// The memory for a batch. `product` is the type of the inputs of matrix multiplications.
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
