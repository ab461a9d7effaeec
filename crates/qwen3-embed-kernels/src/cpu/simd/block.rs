use super::int::IntOps;

/// The dot products of weights of 4 to 6 bits with 8-bit activations: see `formats::blocks`.
///
/// Products of up to eight quads of bytes are first added to *partial sums*, which are multiplied with an 8-bit scale
/// and then added to *scaled sums*. Each instruction set chooses how it represents these sums and scales. The default
/// methods represent all of them as i32 and are correct for every set. Sets that have the instruction `maddubs` and not
/// `dpbusd` have partial sums in 16 bits. Sets with `dpbusd` have scaled sums and scales in f32, because x86-64 takes
/// three operations to multiply and add in i32, and two to convert a partial sum and to multiply and add in f32.
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
    /// `c + partial · scale`, where `c` are scaled sums. Scaled sums of zero are [`zeros`](IntOps::zeros).
    #[inline(always)]
    fn add_scaled(self, partial: Self::I, scale_words: Self::I, c: Self::I) -> Self::I {
        self.add_i32(c, self.mul_i32(partial, scale_words))
    }
    /// Scaled sums as f32.
    #[inline(always)]
    fn scaled_to_f32(self, scaled: Self::I) -> Self::V {
        self.to_f32(scaled)
    }
}
