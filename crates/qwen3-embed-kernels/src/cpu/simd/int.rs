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
    /// `c + a · b` for pairs of i16: both products of a lane are added to the lane of `c`.
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
    /// `c + a · b` for quads of bytes, unsigned in `a` and signed in `b`: all four products of a lane are added to the
    /// lane of `c`.
    ///
    /// An instruction set that has only dot products of signed bytes, such as NEON, can flip the highest bit of each
    /// byte of `a`, which subtracts 128, and add `128 · Σ b`, which is a dot product with a constant. It can override
    /// the methods of [`BlockOps`](super::BlockOps), where bytes of `a` are below 64 and need no correction.
    fn dot_quads(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I;
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
