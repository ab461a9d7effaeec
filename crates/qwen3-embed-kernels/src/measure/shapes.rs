use crate::cpu::Heads;

/// The shapes of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerShapes {
    /// Width of the residual stream, C.
    pub hidden_size: usize,
    /// Width of the MLP, F.
    pub intermediate_size: usize,
    /// The heads of attention.
    pub heads: Heads,
}
