use super::float::{FloatOps, TileSums};

/// Vector registers of integers, and their dot products.
///
/// # Safety
///
/// As of [`FloatOps`].
pub(in crate::cpu) unsafe trait IntOps: FloatOps {
    /// A register of `LANES` i32, or of as many pairs of i16 or quads of bytes.
    type I: Copy;
    /// The sums of a tile of a product that also keeps integer sums in registers, as many of them.
    type IntTile: TileSums<Self::V>;

    /// Zero in every lane.
    fn zeros(self) -> Self::I;
    /// The integer in every lane.
    fn splat_i32(self, x: i32) -> Self::I;
    /// The pair at `p` in every lane.
    ///
    /// # Safety
    /// `p` is valid for reading two values.
    unsafe fn splat_pair(self, p: *const i16) -> Self::I;
    /// Loads `LANES` pairs of i8 and widens them to pairs of i16.
    ///
    /// # Safety
    /// `p` is valid for reading `2 · LANES` values.
    unsafe fn load_pairs(self, p: *const i8) -> Self::I;
    /// `c + a · b` for pairs of i16: both products of a lane are added to it.
    fn dot_pairs(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I;
    /// The four bytes at `p` in every lane.
    ///
    /// # Safety
    /// `p` is valid for reading four values.
    unsafe fn splat_quad(self, p: *const i8) -> Self::I;
    /// Loads `LANES` quads of bytes.
    ///
    /// # Safety
    /// `p` is valid for reading `4 · LANES` values.
    unsafe fn load_quads(self, p: *const u8) -> Self::I;
    /// `c + a · b` for quads of bytes, unsigned in `a` and signed in `b`: all four products of a lane are added to it.
    ///
    /// A set that has dot products of signed bytes only, like NEON, flips the sign bits of `a` and adds `128 · Σ b`, a
    /// dot product with ones. Such a set overrides [`BlockOps`](super::BlockOps), whose `a` has no sign bits.
    fn dot_quads(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I;
    /// `a · b` for i32, which wraps around.
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a + b` for i32, which wraps around.
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I;
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
