use super::int::IntOps;

/// The dot products of weights of 4 to 6 bits with 8-bit activations: see `formats::blocks`.
///
/// Products of up to eight quads of bytes are first added to *partial sums*, and then to i32 sums after a
/// multiplication with an 8-bit scale. Each instruction set chooses how it represents partial sums and scales. The
/// default methods represent both as i32 and are correct for every set. Sets that have the instruction `maddubs` and
/// not `dpbusd` sum products of bytes in 16 bits, and override all methods.
pub(in crate::cpu) trait BlockOps: IntOps {
    /// The first partial sums: `a · b` for quads of bytes. The bytes in `a` are unsigned and below 64, the bytes in `b`
    /// are signed.
    #[inline(always)]
    fn block_dot(self, a: Self::I, b: Self::I) -> Self::I {
        self.add_block_dot(a, b, self.zeros())
    }
    /// `partial + a · b`, with operands as of [`block_dot`](Self::block_dot). In each lane, two sums must fit in 16
    /// bits at the end: the sum of the first two products of all quads, and the sum of the last two products of all
    /// quads.
    #[inline(always)]
    fn add_block_dot(self, a: Self::I, b: Self::I, partial: Self::I) -> Self::I {
        self.dot_quads(a, b, partial)
    }
    /// [`add_block_dot`](Self::add_block_dot) with word `WORD % WORDS` of `b`, which
    /// [`load_quad_words`](IntOps::load_quad_words) has loaded.
    #[inline(always)]
    fn add_block_dot_word<const WORD: usize>(
        self,
        a: Self::I,
        b: Self::I,
        partial: Self::I,
    ) -> Self::I {
        if const { Self::WORDS == 1 } {
            return self.add_block_dot(a, b, partial);
        }
        self.dot_quads_word::<WORD>(a, b, partial)
    }
    /// Partial sums that begin with a pair of i16. The first i16 is added to the first two products of each quad, the
    /// second i16 to the last two products.
    #[inline(always)]
    fn begin_block_dot(self, pair: Self::I) -> Self::I {
        self.dot_pairs(pair, self.splat_i32(0x1_0001), self.zeros())
    }
    /// The representation of a scale in [`add_scaled`](Self::add_scaled).
    #[inline(always)]
    fn scale_word(scale: i8) -> i32 {
        scale.into()
    }
    /// `c + partial · scale`, in i32.
    #[inline(always)]
    fn add_scaled(self, partial: Self::I, scale_words: Self::I, c: Self::I) -> Self::I {
        self.add_i32(c, self.mul_i32(partial, scale_words))
    }
}
