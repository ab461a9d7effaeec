use super::float::{FloatOps, TileSums};

/// Vector registers of integers, and their dot products.
///
/// # Safety
///
/// As of [`FloatOps`].
pub(in crate::cpu) unsafe trait IntOps: FloatOps {
    /// A register of `LANES` i32, `LANES` pairs of i16, or `LANES` quads of bytes.
    type I: Copy;
    /// The f32 sums of the largest tile of an integer kernel, which keeps as many integer sums in registers.
    type IntTile: TileSums<Self::V>;
    /// The same for the kernel that widens 8-bit weights, which needs more registers besides the sums.
    type PairTile: TileSums<Self::V>;
    /// The number that is added to an 8-bit weight of the format `bytes` before it is stored: 128 if the instruction
    /// for dot products of bytes multiplies unsigned with signed bytes, and 0 if it multiplies signed bytes.
    const WEIGHT_OFFSET: u8 = 128;

    /// [`after`](FloatOps::after) for integers.
    #[inline(always)]
    fn after_products<T>(self, p: *const T, x: Self::I) -> *const T {
        let _ = x;
        p
    }
    /// Zero in every lane.
    fn zeros(self) -> Self::I;
    /// The integer in every lane.
    fn splat_i32(self, x: i32) -> Self::I;
    /// The pair at `p` in every lane.
    ///
    /// # Safety
    /// `p` is valid for reading two values.
    unsafe fn splat_pair(self, p: *const i16) -> Self::I;
    /// Loads the next [`WORDS`](FloatOps::WORDS) pairs of a row.
    ///
    /// # Safety
    /// `p` is valid for reading as many pairs.
    #[inline(always)]
    unsafe fn load_pair_words(self, p: *const i16) -> Self::I {
        // SAFETY: the caller's promise.
        unsafe { self.splat_pair(p) }
    }
    /// Loads `LANES` pairs of i8 and widens them to pairs of i16, for [`dot_pairs_word`](Self::dot_pairs_word).
    ///
    /// # Safety
    /// `p` is valid for reading `2 · LANES` values.
    unsafe fn load_pairs(self, p: *const i8) -> Self::I;
    /// Loads `LANES` pairs of i16, for [`dot_pairs_word`](Self::dot_pairs_word).
    ///
    /// # Safety
    /// `p` is valid for reading `2 · LANES` values.
    #[inline(always)]
    unsafe fn load_wide_pairs(self, p: *const i16) -> Self::I {
        // SAFETY: the caller's promise.
        unsafe { self.load_quads(p.cast()) }
    }
    /// `c + a · b` for pairs of i16: both products of a lane are added to the lane of `c`.
    fn dot_pairs(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I;
    /// [`dot_pairs`](Self::dot_pairs) with word `WORD % WORDS` of `a`, which [`load_pair_words`](Self::load_pair_words)
    /// has loaded, and with `b`, which [`load_pairs`](Self::load_pairs) or [`load_wide_pairs`](Self::load_wide_pairs)
    /// has loaded. A set may choose another order of the values in `b`.
    #[inline(always)]
    fn dot_pairs_word<const WORD: usize>(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I {
        self.dot_pairs(a, b, c)
    }
    /// The four bytes at `p` in every lane.
    ///
    /// # Safety
    /// `p` is valid for reading four values.
    unsafe fn splat_quad(self, p: *const i8) -> Self::I;
    /// Loads the next [`WORDS`](FloatOps::WORDS) quads of a row.
    ///
    /// # Safety
    /// `p` is valid for reading as many quads.
    #[inline(always)]
    unsafe fn load_quad_words(self, p: *const i8) -> Self::I {
        // SAFETY: the caller's promise.
        unsafe { self.splat_quad(p) }
    }
    /// Loads `LANES` quads of bytes.
    ///
    /// # Safety
    /// `p` is valid for reading `4 · LANES` values.
    unsafe fn load_quads(self, p: *const u8) -> Self::I;
    /// `c + a · b` for quads of bytes: all four products of a lane are added to the lane of `c`. Bytes of `b` are
    /// signed. Bytes of `a` are unsigned if [`WEIGHT_OFFSET`](Self::WEIGHT_OFFSET) is 128, and signed if it is 0. They
    /// are signed and unsigned alike where they are below 128, as in [`BlockOps`](super::BlockOps). No signed byte of `a`
    /// is −128.
    fn dot_quads(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I;
    /// [`dot_quads`](Self::dot_quads) with word `WORD % WORDS` of `b`, which [`load_quad_words`](Self::load_quad_words)
    /// has loaded.
    #[inline(always)]
    fn dot_quads_word<const WORD: usize>(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I {
        self.dot_quads(a, b, c)
    }
    /// `a · b` for i32, which wraps around.
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a + b` for i32, which wraps around.
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I;
    /// `256 · a` for i32, which wraps around.
    fn times_256(self, a: Self::I) -> Self::I;
    /// Converts the i32 of each lane to f32.
    fn to_f32(self, x: Self::I) -> Self::V;
    /// Stores the nearest integers, ties to even. They must be in the range of i16.
    ///
    /// # Safety
    /// `p` is valid for writing `LANES` values.
    unsafe fn store_i16(self, p: *mut i16, x: Self::V);
    /// Stores the nearest integers, ties to even. They must be in the range of i8.
    ///
    /// # Safety
    /// `p` is valid for writing `LANES` values.
    unsafe fn store_i8(self, p: *mut i8, x: Self::V);
}
