use candle_core::{DType, Device, Tensor};
use qwen3_embed_kernels::ops::AttentionScratch;

use crate::{Config, Result};

/// Room for the activations of a call, kept for the next one: a layer allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    buffers: Option<Buffers>,
    scratch: AttentionScratch,
}

/// Tensors of as many rows as the largest batch so far.
#[derive(Debug)]
struct Buffers {
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
    /// [T, (H + 2K) · D]
    pub(crate) qkv: Tensor,
    /// [T, H · D]
    pub(crate) attention: Tensor,
    /// SwiGLU's result, [T, F].
    pub(crate) ffn: Tensor,
    pub(crate) scratch: &'a AttentionScratch,
}

impl Workspace {
    /// Room for a batch of `n_rows` tokens.
    pub(crate) fn room(
        &mut self,
        n_rows: usize,
        config: &Config,
        device: &Device,
    ) -> Result<Room<'_>> {
        let large_enough = self.buffers.take().filter(|buffers| buffers.n_rows >= n_rows);
        let buffers = match large_enough {
            Some(buffers) => buffers,
            None => Buffers::new(n_rows, config, device)?,
        };
        let buffers = self.buffers.insert(buffers);
        let rows = |tensor: &Tensor| tensor.narrow(0, 0, n_rows);
        Ok(Room {
            hidden: rows(&buffers.hidden)?,
            qkv: rows(&buffers.qkv)?,
            attention: rows(&buffers.attention)?,
            ffn: rows(&buffers.ffn)?,
            scratch: &self.scratch,
        })
    }
}

impl Buffers {
    fn new(n_rows: usize, config: &Config, device: &Device) -> Result<Self> {
        let heads = config.heads();
        let buffer = |columns: usize| Tensor::zeros((n_rows, columns), DType::F32, device);
        Ok(Self {
            n_rows,
            hidden: buffer(config.hidden_size)?,
            qkv: buffer(heads.qkv_columns())?,
            attention: buffer(heads.q_columns())?,
            ffn: buffer(config.intermediate_size)?,
        })
    }
}
