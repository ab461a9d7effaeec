use std::cell::RefCell;

use candle_core::{DType, Device};

use super::cuda::CudaScratch;
use crate::cpu::{Arithmetic, AttentionScratch, Heads, QuantizeBuffer};

/// Buffers of operations. Keep them from call to call, so that calls do not allocate.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) attention: RefCell<AttentionScratch>,
    /// Activations that were quantized for a linear layer.
    pub(super) activations: RefCell<QuantizeBuffer>,
    pub(super) cuda: RefCell<CudaScratch>,
}

impl Scratch {
    /// An estimate of the bytes of these buffers for each token of a batch, in a model with these heads and this
    /// feed-forward size, whose linear layers read activations of this type.
    pub fn bytes_per_token(
        device: &Device,
        heads: Heads,
        ffn_size: usize,
        activations: DType,
        arithmetic: Arithmetic,
    ) -> usize {
        if !device.is_cpu() {
            // Gates and ups are stored, because SwiGLU is a kernel of its own on a CUDA device.
            return 2 * ffn_size * activations.size_in_bytes();
        }
        // Packed keys and values.
        let key_values = heads.qkv_columns() - heads.q_columns();
        // The widest input of a linear layer, quantized to 16 bits and to 8 bits.
        let quantized = if arithmetic.is_integer() { ffn_size.max(heads.q_columns()) } else { 0 };
        key_values * activations.size_in_bytes() + quantized * (size_of::<i16>() + size_of::<i8>())
    }
}
