use half::f16;

use super::int::IntOps;

/// The operations that compare a query with stored vectors: see `cpu::search`.
///
/// # Safety
///
/// As of [`FloatOps`](super::FloatOps).
pub(in crate::cpu) unsafe trait SearchOps: IntOps {
    /// Loads f16 values and widens them.
    ///
    /// # Safety
    /// `p` is valid for reading `LANES` values.
    unsafe fn load_f16(self, p: *const f16) -> Self::V;
    /// `c` plus the products of `2 · LANES` bytes with as many 16-bit integers. Each set chooses the lane of `c` to which
    /// a product is added.
    ///
    /// # Safety
    /// `bytes` and `words` are valid for reading `2 · LANES` values.
    #[inline(always)]
    unsafe fn add_byte_products(self, bytes: *const i8, words: *const i16, c: Self::I) -> Self::I {
        // SAFETY: the caller's promise.
        unsafe { self.dot_pairs(self.load_pairs(bytes), self.load_quads(words.cast()), c) }
    }
    /// `c` plus the number of bits in which `a` and `b` differ. Each set chooses the lane of `c` to which the number for
    /// a byte is added.
    fn add_differing_bits(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I;
    /// The sum of all lanes, which wraps around.
    fn sum_i32(self, x: Self::I) -> i32;
}
