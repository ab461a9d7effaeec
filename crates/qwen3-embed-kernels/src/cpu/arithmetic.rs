/// How a matrix multiplication multiplies: the types of its activations and weights, and of their sums.
///
/// Integer products are summed exactly within a group of input features that share a scale. Everything else is
/// summed in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// f32 activations times weights in f32, or in bf16 that are widened to f32 in registers.
    F32,
    /// bf16 activations times bf16 weights.
    Bf16,
    /// 16-bit integer activations with one scale for each row, times 8-bit integer weights with one scale for each
    /// group of 32 input features of an output.
    Int8,
    /// 8-bit integer activations times 8-bit integer weights, both with one scale for each group of
    /// [`BYTE_GROUP`](super::BYTE_GROUP) input features. On CPUs without an instruction that multiplies bytes, this
    /// is slower than [`Int8`](Self::Int8).
    Bytes,
    /// 8-bit integer activations with one scale for each block of [`BLOCK`](super::BLOCK) input features, times
    /// 4-bit to 6-bit integer weights: see [`Bits`](super::Bits).
    Blocks,
}

impl Arithmetic {
    /// All values, in the order of their declaration.
    pub const ALL: [Self; 5] = [Self::F32, Self::Bf16, Self::Int8, Self::Bytes, Self::Blocks];

    /// Whether activations are quantized to integers.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::Int8 | Self::Bytes | Self::Blocks)
    }
}
