use std::cell::RefCell;

use super::cuda::CudaScratch;
use crate::cpu::{AttentionScratch, QuantizeBuffer};

/// Buffers of operations. Keep them from call to call, so that calls do not allocate.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(super) attention: RefCell<AttentionScratch>,
    /// Activations that were quantized for a linear layer.
    pub(super) activations: RefCell<QuantizeBuffer>,
    pub(super) cuda: RefCell<CudaScratch>,
}
