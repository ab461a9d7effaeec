/// Input features that share a scale of the activations in [`Arithmetic::Blocks`](crate::cpu::Arithmetic::Blocks).
pub const BLOCK: usize = 256;

/// Input features of a block that share a minimum.
pub(super) const GROUP: usize = 32;

/// Groups in a block.
pub(super) const GROUPS: usize = BLOCK / GROUP;

/// How weights of 4, 5 or 6 bits are stored: as unsigned integers `q`, with f32 scales `d` and `m` for each block of
/// [`BLOCK`] values and integer scales `s` and `n` for each group of a block. `−m · n` is the smallest weight of a
/// group, its minimum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bits {
    /// A weight is `d·s · q − m·n`, with `q` below 16 and `s` below 128, in groups of 32.
    Four,
    /// A weight is `d·s · q − m·n`, with `q` below 32 and `s` below 128, in groups of 32.
    Five,
    /// A weight is `d·s · (q − 32)`, with `q` below 64, in groups of 16.
    Six,
}

impl Bits {
    /// Values that share a scale `s`.
    pub fn group(self) -> usize {
        if self.has_minima() { 32 } else { 16 }
    }

    /// Whether the weights have minima, which are stored as `m` and `n`.
    pub(super) fn has_minima(self) -> bool {
        self != Self::Six
    }

    /// Bits of a value beyond the lowest four.
    pub(super) fn upper(self) -> usize {
        match self {
            Self::Four => 0,
            Self::Five => 1,
            Self::Six => 2,
        }
    }

    /// Bytes of a block of [`BLOCK`] values in one column of a packed weight.
    pub fn packed_size(self) -> usize {
        self.parts().iter().sum()
    }

    /// Bytes of each part of a block of one column: the lowest four bits of the values, their other bits, `s`, `n`, `d`
    /// and `m`. A block of a panel has the parts one after the other, each for all columns.
    pub(super) fn parts(self) -> [usize; 6] {
        let (n_scales, has_minima) = (BLOCK / self.group(), usize::from(self.has_minima()));
        let values = [BLOCK * 4 / 8, BLOCK * self.upper() / 8];
        [values[0], values[1], n_scales, has_minima * n_scales, 4, has_minima * 4]
    }

    /// The parts of a block of a panel.
    pub(super) fn split(self, columns: usize, block: &[u8]) -> [&[u8]; 6] {
        let mut rest = block;
        self.parts().map(|size| {
            let (part, after) = rest.split_at(size * columns);
            rest = after;
            part
        })
    }

    /// Quads of values whose products are summed before the sum is scaled. A quad is four neighboring values.
    pub(super) fn quads(self) -> usize {
        match self {
            Self::Four => 8,
            Self::Five | Self::Six => 4,
        }
    }
}
