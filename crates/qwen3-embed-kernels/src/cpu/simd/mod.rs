//! The vector operations that kernels are written in, and what they are on each instruction set.
//!
//! A kernel is one generic function over [`Simd`]. It is compiled for an instruction set by being
//! inlined into a function that enables that set's features, see `dispatch`; hence every method
//! here is `#[inline(always)]`.

use half::bf16;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

pub(super) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(super) use {avx2::Avx2, avx512::Avx512};

/// A set of vector registers of f32.
///
/// # Safety
///
/// A value of the type is proof that the processor has the instructions: whoever makes one must
/// have checked. Methods that take pointers need them valid for `LANES` elements, at any alignment.
pub(super) unsafe trait Simd: Copy + Send + Sync {
    /// A register of `LANES` values.
    type V: Copy;
    /// A register of `LANES` i32, or of as many pairs of i16.
    type I: Copy;
    const LANES: usize;
    /// Rows of a product whose sums, two registers each, fit in the registers together.
    const ROWS: usize;
    /// Rows of a product that has sums in whole numbers beside those in f32, two registers of each.
    const WHOLE_ROWS: usize;

    fn splat(self, x: f32) -> Self::V;
    /// # Safety
    /// `p` is valid for reading `LANES` values.
    unsafe fn load(self, p: *const f32) -> Self::V;
    /// # Safety
    /// `p` is valid for writing `LANES` values.
    unsafe fn store(self, p: *mut f32, x: Self::V);
    /// # Safety
    /// `p` is valid for reading `LANES` values.
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V;
    /// Writes the nearest bf16 values, ties to even. What is subnormal may become zero.
    ///
    /// # Safety
    /// `p` is valid for writing `LANES` values.
    unsafe fn store_bf16(self, p: *mut bf16, x: Self::V);
    /// Brings the line at `p` to the second-level cache, if that is a place in memory.
    fn prefetch(self, p: *const u8);
    /// `p`, which the compiler is to know only after it knows `x`: what is read there is not read
    /// earlier, when there may be no register for it.
    #[inline(always)]
    fn after<T>(self, p: *const T, x: Self::V) -> *const T {
        let _ = x;
        p
    }
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` if either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger; `b` if either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The first `n` lanes of `x`, and `fill` in the others.
    fn keep(self, x: Self::V, n: usize, fill: f32) -> Self::V;
    /// `a · b + c`, rounded once where the processor can.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The nearest whole numbers.
    fn round(self, x: Self::V) -> Self::V;
    /// `2^n` for whole numbers `n` from −126 to 127.
    fn exp2_whole(self, n: Self::V) -> Self::V;
    /// Pairs of the nearest bf16 values, ties to even: of `first` in the lower half of each lane, of
    /// `second` in the upper.
    fn pair(self, first: Self::V, second: Self::V) -> Self::V;
    /// Each lane of `pairs` holds two bf16 values: the first of them, in the lower half.
    fn first(self, pairs: Self::V) -> Self::V;
    /// The second value of each pair, in the upper half.
    fn second(self, pairs: Self::V) -> Self::V;
    /// Zeros.
    fn no_products(self) -> Self::I;
    /// The pair at `p` in every lane.
    ///
    /// # Safety
    /// `p` is valid for reading two values.
    unsafe fn splat_pair(self, p: *const i16) -> Self::I;
    /// `LANES` pairs, widened.
    ///
    /// # Safety
    /// `p` is valid for reading `2 · LANES` values.
    unsafe fn load_pairs(self, p: *const i8) -> Self::I;
    /// `c + a · b` of pairs of i16: both products of a lane are added to it.
    fn add_pair_products(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I;
    /// The number in every lane.
    fn splat_i32(self, x: i32) -> Self::I;
    /// The quad at `p` in every lane.
    ///
    /// # Safety
    /// `p` is valid for reading four values.
    unsafe fn splat_quad(self, p: *const i8) -> Self::I;
    /// `LANES` quads.
    ///
    /// # Safety
    /// `p` is valid for reading `4 · LANES` values.
    unsafe fn load_quads(self, p: *const u8) -> Self::I;
    /// `c + a · b` of quads of bytes, those of `a` without and those of `b` with a sign: all four products
    /// of a lane are added to it.
    fn add_quad_products(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I;
    /// What [`add_few`](Self::add_few) makes of zeros.
    #[inline(always)]
    fn few(self, a: Self::I, b: Self::I) -> Self::I {
        self.add_few(a, b, self.no_products())
    }
    /// Sums for [`add_few`](Self::add_few) that begin with a pair of i16.
    #[inline(always)]
    fn begin_few(self, pair: Self::I) -> Self::I {
        self.add_pair_products(pair, self.splat_i32(0x1_0001), self.no_products())
    }
    /// `c + a · b` of quads of bytes, as [`add_quad_products`](Self::add_quad_products), of `a` up to 63. The
    /// sums of the first two products of a lane and of the last two may have 16 bits each, and wrap around.
    #[inline(always)]
    fn add_few(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I {
        self.add_quad_products(a, b, c)
    }
    /// What [`add_scaled`](Self::add_scaled) multiplies with.
    #[inline(always)]
    fn scale_word(scale: i8) -> i32 {
        scale.into()
    }
    /// `c + few · scale`, of sums of [`add_few`](Self::add_few).
    fn add_scaled(self, few: Self::I, scale_words: Self::I, c: Self::I) -> Self::I;
    /// The i32 of each lane as f32.
    fn float(self, x: Self::I) -> Self::V;
    /// Writes the nearest whole numbers, ties to even, which i16 must be able to hold.
    ///
    /// # Safety
    /// `p` is valid for writing `LANES` values.
    unsafe fn store_i16(self, p: *mut i16, x: Self::V);
    /// As [`store_i16`](Self::store_i16), for i8.
    ///
    /// # Safety
    /// `p` is valid for writing `LANES` values.
    unsafe fn store_i8(self, p: *mut i8, x: Self::V);
    /// The sum of all lanes, in a fixed order.
    fn sum(self, x: Self::V) -> f32;
    /// The largest lane.
    fn largest(self, x: Self::V) -> f32;

    /// `c + a · b` of pairs of bf16 values: both products of a lane are added to it in f32, the second
    /// first. What is subnormal may count as zero.
    #[inline(always)]
    fn dot_pairs(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        dot_pairs_in_f32(self, a, b, c)
    }

    /// `exp(x)` within 2 ulp for `x` from −87 to 88; beyond, `exp` of the nearer bound. NaN for NaN.
    ///
    /// # Source
    ///
    /// Range reduction by a two-part ln 2 and the degree-5 polynomial of Cephes' `expf`.
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        // NaN is the second operand, which is what is returned then.
        let x = self.max(self.splat(-87.0), self.min(self.splat(88.0), x));
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let r = self.mul_add(n, self.splat(-0.693_359_4), x);
        let r = self.mul_add(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = self.mul_add(p, r, self.splat(c));
        }
        let p = self.mul_add(self.mul(p, r), r, self.add(r, self.splat(1.0)));
        self.mul(p, self.exp2_whole(n))
    }
}

/// [`Simd::dot_pairs`] without an instruction for it.
#[inline(always)]
fn dot_pairs_in_f32<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
    let c = s.mul_add(s.second(a), s.second(b), c);
    s.mul_add(s.first(a), s.first(b), c)
}
