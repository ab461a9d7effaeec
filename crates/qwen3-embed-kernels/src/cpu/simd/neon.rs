mod search;

use std::arch::aarch64::*;
use std::arch::asm;

use half::bf16;

use super::block::BlockOps;
use super::float::{FloatOps, dot_bf16_in_f32};
use super::int::IntOps;
use super::matrix::MatrixOps;

/// NEON with, where `DOT`, dot products of bytes and, where `BF16`, instructions for bf16.
///
/// A register of this type is two registers of the CPU. So a panel is four registers wide, and a tile of six rows has
/// its sums in 24 of the 32 registers.
///
/// Instructions that multiply with one lane of a register ("by element") need no register that has the same value in
/// every lane. [`FloatOps::WORDS`] is therefore four. Only the first of the two registers has the words of a row.
///
/// Instructions without a stable intrinsic are inline assembly.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu) struct Neon<const DOT: bool, const BF16: bool>(());

impl<const DOT: bool, const BF16: bool> Neon<DOT, BF16> {
    /// # Safety
    ///
    /// The CPU has NEON, the feature `dotprod` where `DOT`, and the feature `bf16` where `BF16`.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn new() -> Self {
        Self(())
    }
}

/// Evaluates an expression with a lane of a register as a constant: `by_lane!(WORD, LANE => call)`.
macro_rules! by_lane {
    ($word:ident, $lane:ident => $call:expr) => {
        match const { $word % 4 } {
            0 => by_lane!(@ 0, $lane, $call),
            1 => by_lane!(@ 1, $lane, $call),
            2 => by_lane!(@ 2, $lane, $call),
            _ => by_lane!(@ 3, $lane, $call),
        }
    };
    (@ $n:literal, $lane:ident, $call:expr) => {{
        const $lane: i32 = $n;
        $call
    }};
}

// SAFETY: the caller of `Neon::new` promises the features. Each block below uses instructions of NEON or, where `BF16`,
// of the feature `bf16`. Callers promise that pointers are valid, and loads and stores need no alignment.
unsafe impl<const DOT: bool, const BF16: bool> FloatOps for Neon<DOT, BF16> {
    type V = [float32x4_t; 2];
    type FloatTile = [[Self::V; 2]; 6];
    type WidenedTile = [[Self::V; 2]; 5];
    const LANES: usize = 8;
    const WORDS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: as above.
        unsafe { [vdupq_n_f32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: as above.
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4))] }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: Self::V) {
        // SAFETY: as above.
        unsafe {
            vst1q_f32(p, x[0]);
            vst1q_f32(p.add(4), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_words(self, p: *const f32) -> Self::V {
        // SAFETY: as above.
        unsafe { [vld1q_f32(p); 2] }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V {
        // SAFETY: as above.
        unsafe {
            let bits = vld1q_u16(p.cast());
            let halves = [vshll_n_u16::<16>(vget_low_u16(bits)), vshll_high_n_u16::<16>(bits)];
            [vreinterpretq_f32_u32(halves[0]), vreinterpretq_f32_u32(halves[1])]
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, x: Self::V) {
        // SAFETY: as above.
        unsafe { vst1q_u16(p.cast(), vcombine_u16(self.rounded(x[0]), self.rounded(x[1]))) }
    }
    #[inline(always)]
    #[expect(clippy::pointers_in_nomem_asm_block, reason = "a prefetch does not read memory")]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch does not access the memory, so the pointer need not be valid.
        unsafe {
            asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(nomem, nostack, preserves_flags))
        }
    }
    #[inline(always)]
    #[expect(clippy::pointers_in_nomem_asm_block, reason = "no instruction reads the pointer")]
    fn after<T>(self, mut p: *const T, x: Self::V) -> *const T {
        // SAFETY: the assembly has no instruction and leaves `p` unchanged.
        unsafe {
            asm!("/* {p} {x0:v} {x1:v} */", p = inout(reg) p, x0 = in(vreg) x[0],
                x1 = in(vreg) x[1], options(pure, nomem, nostack, preserves_flags));
        }
        p
    }
    #[inline(always)]
    fn opaque<T>(self, mut p: *const T) -> *const T {
        // SAFETY: the assembly has no instruction and leaves `p` unchanged.
        unsafe {
            asm!("/* {p} */", p = inout(reg) p, options(pure, nomem, nostack, preserves_flags))
        }
        p
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe { [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe { [vsubq_f32(a[0], b[0]), vsubq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe { [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe { [vdivq_f32(a[0], b[0]), vdivq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe { [vminq_f32(a[0], b[0]), vminq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe { [vmaxq_f32(a[0], b[0]), vmaxq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    fn keep(self, x: Self::V, n: usize, fill: f32) -> Self::V {
        // SAFETY: as above. The array has the values of two registers.
        unsafe {
            let lanes: [u32; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
            let (n, fill) = (vdupq_n_u32(n as u32), vdupq_n_f32(fill));
            let kept = [
                vcltq_u32(vld1q_u32(lanes.as_ptr()), n),
                vcltq_u32(vld1q_u32(lanes[4..].as_ptr()), n),
            ];
            [vbslq_f32(kept[0], x[0], fill), vbslq_f32(kept[1], x[1], fill)]
        }
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe { [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])] }
    }
    #[inline(always)]
    fn mul_add_word<const WORD: usize>(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe {
            by_lane!(WORD, LANE => [
                vfmaq_laneq_f32::<LANE>(c[0], b[0], a[0]),
                vfmaq_laneq_f32::<LANE>(c[1], b[1], a[0]),
            ])
        }
    }
    #[inline(always)]
    fn round(self, x: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe { [vrndnq_f32(x[0]), vrndnq_f32(x[1])] }
    }
    #[inline(always)]
    fn exp2_int(self, n: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe {
            let bias = vdupq_n_s32(127);
            let biased =
                [vaddq_s32(vcvtnq_s32_f32(n[0]), bias), vaddq_s32(vcvtnq_s32_f32(n[1]), bias)];
            [
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased[0])),
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased[1])),
            ]
        }
    }
    #[inline(always)]
    fn pair(self, first: Self::V, second: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe {
            let first = vcombine_u16(self.rounded(first[0]), self.rounded(first[1]));
            let second = vcombine_u16(self.rounded(second[0]), self.rounded(second[1]));
            [
                vreinterpretq_f32_u16(vzip1q_u16(first, second)),
                vreinterpretq_f32_u16(vzip2q_u16(first, second)),
            ]
        }
    }
    #[inline(always)]
    fn first(self, pairs: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe {
            let bits = [vreinterpretq_u32_f32(pairs[0]), vreinterpretq_u32_f32(pairs[1])];
            [
                vreinterpretq_f32_u32(vshlq_n_u32::<16>(bits[0])),
                vreinterpretq_f32_u32(vshlq_n_u32::<16>(bits[1])),
            ]
        }
    }
    #[inline(always)]
    fn second(self, pairs: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe {
            let upper = vdupq_n_u32(0xffff_0000);
            let bits = [vreinterpretq_u32_f32(pairs[0]), vreinterpretq_u32_f32(pairs[1])];
            [
                vreinterpretq_f32_u32(vandq_u32(bits[0], upper)),
                vreinterpretq_f32_u32(vandq_u32(bits[1], upper)),
            ]
        }
    }
    #[inline(always)]
    fn sum(self, x: Self::V) -> f32 {
        // SAFETY: as above.
        unsafe { vaddvq_f32(vaddq_f32(x[0], x[1])) }
    }
    #[inline(always)]
    fn largest(self, x: Self::V) -> f32 {
        // SAFETY: as above.
        unsafe { vmaxvq_f32(vmaxq_f32(x[0], x[1])) }
    }
    /// The instructions for both products of a lane, `bfmlalt` and `bfmlalb`, round as fused multiply-adds in f32 do.
    /// `bfdot`, which computes both products, has another order and another rounding.
    #[inline(always)]
    fn dot_bf16(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        if !BF16 {
            return dot_bf16_in_f32(self, a, b, c);
        }
        // SAFETY: as above.
        unsafe { [bfmlal(c[0], a[0], b[0]), bfmlal(c[1], a[1], b[1])] }
    }
    #[inline(always)]
    fn dot_bf16_word<const WORD: usize>(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe {
            if !BF16 {
                let words = by_lane!(WORD, LANE => vdupq_laneq_f32::<LANE>(a[0]));
                return dot_bf16_in_f32(self, [words; 2], b, c);
            }
            by_lane!(WORD, LANE => [
                bfmlal_word::<LANE>(c[0], b[0], a[0]),
                bfmlal_word::<LANE>(c[1], b[1], a[0]),
            ])
        }
    }
}

impl<const DOT: bool, const BF16: bool> Neon<DOT, BF16> {
    /// Rounds to bf16, ties to even.
    #[inline(always)]
    fn rounded(self, x: float32x4_t) -> uint16x4_t {
        // SAFETY: as above.
        unsafe {
            if BF16 {
                let rounded: uint16x4_t;
                asm!("bfcvtn {rounded:v}.4h, {x:v}.4s", rounded = lateout(vreg) rounded,
                    x = in(vreg) x, options(pure, nomem, nostack, preserves_flags));
                return rounded;
            }
            let bits = vreinterpretq_u32_f32(x);
            // Half a unit of the last bit that remains, minus one if this bit is even: ties to even.
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let half = vaddq_u32(odd, vdupq_n_u32(0x7fff));
            // The addition could turn NaN into infinity or zero. NaN is made a quiet NaN instead.
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
            let bits = vbslq_u32(vceqq_f32(x, x), vaddq_u32(bits, half), quiet);
            vshrn_n_u32::<16>(bits)
        }
    }
}

/// `c + a · b` for pairs of bf16 values. The second product is added first.
///
/// # Safety
///
/// The CPU has the feature `bf16`.
#[inline(always)]
unsafe fn bfmlal(mut c: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("bfmlalt {c:v}.4s, {a:v}.8h, {b:v}.8h", "bfmlalb {c:v}.4s, {a:v}.8h, {b:v}.8h",
            c = inout(vreg) c, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    c
}

/// `c + a · b` for pairs of bf16 values, where `b` is the pair `WORD` of `words`. The second product is added first.
///
/// # Safety
///
/// The CPU has the feature `bf16`.
#[inline(always)]
unsafe fn bfmlal_word<const WORD: i32>(
    mut c: float32x4_t,
    a: float32x4_t,
    words: float32x4_t,
) -> float32x4_t {
    // SAFETY: the caller's promise. The instructions can name only the first 16 registers as `words`.
    unsafe {
        asm!("bfmlalt {c:v}.4s, {a:v}.8h, {words:v}.h[{second}]",
            "bfmlalb {c:v}.4s, {a:v}.8h, {words:v}.h[{first}]",
            c = inout(vreg) c, a = in(vreg) a, words = in(vreg_low16) words,
            first = const 2 * WORD, second = const 2 * WORD + 1,
            options(pure, nomem, nostack, preserves_flags));
    }
    c
}

// SAFETY: as of `FloatOps`, with the feature `dotprod` where `DOT`.
unsafe impl<const DOT: bool, const BF16: bool> IntOps for Neon<DOT, BF16> {
    /// Pairs that [`IntOps::load_pairs`] and [`IntOps::load_wide_pairs`] have loaded are separated: the first register
    /// has the first values of all pairs, the second register has the second values.
    type I = [int32x4_t; 2];
    type IntTile = [[Self::V; 2]; 6];
    type PairTile = [[Self::V; 2]; 5];
    // Products are of signed bytes.
    const WEIGHT_OFFSET: u8 = 0;

    #[inline(always)]
    fn after_products<T>(self, p: *const T, x: Self::I) -> *const T {
        // SAFETY: as above.
        unsafe { self.after(p, [vreinterpretq_f32_s32(x[0]), vreinterpretq_f32_s32(x[1])]) }
    }
    #[inline(always)]
    fn zeros(self) -> Self::I {
        // SAFETY: as above.
        unsafe { [vdupq_n_s32(0); 2] }
    }
    #[inline(always)]
    unsafe fn splat_pair(self, p: *const i16) -> Self::I {
        // SAFETY: as above.
        unsafe { [vdupq_n_s32(p.cast::<i32>().read_unaligned()); 2] }
    }
    #[inline(always)]
    unsafe fn load_pair_words(self, p: *const i16) -> Self::I {
        // SAFETY: as above.
        unsafe { [vreinterpretq_s32_s16(vld1q_s16(p)); 2] }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const i8) -> Self::I {
        // SAFETY: as above.
        unsafe {
            // The second value of a pair is the upper byte of 16 bits.
            let pairs = vreinterpretq_s16_s8(vld1q_s8(p));
            [
                vreinterpretq_s32_s16(vshrq_n_s16::<8>(vshlq_n_s16::<8>(pairs))),
                vreinterpretq_s32_s16(vshrq_n_s16::<8>(pairs)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_wide_pairs(self, p: *const i16) -> Self::I {
        // SAFETY: as above.
        unsafe {
            let pairs = vld2q_s16(p);
            [vreinterpretq_s32_s16(pairs.0), vreinterpretq_s32_s16(pairs.1)]
        }
    }
    #[inline(always)]
    fn dot_pairs(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I {
        // SAFETY: as above.
        unsafe {
            let ([a0, a1], [b0, b1]) = (separated(a), separated(b));
            let low = vmlal_s16(c[0], vget_low_s16(a0), vget_low_s16(b0));
            let high = vmlal_high_s16(c[1], a0, b0);
            [vmlal_s16(low, vget_low_s16(a1), vget_low_s16(b1)), vmlal_high_s16(high, a1, b1)]
        }
    }
    #[inline(always)]
    fn dot_pairs_word<const WORD: usize>(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I {
        // SAFETY: as above.
        unsafe {
            let a = vreinterpretq_s16_s32(a[0]);
            let (b0, b1) = (vreinterpretq_s16_s32(b[0]), vreinterpretq_s16_s32(b[1]));
            macro_rules! products {
                ($first:literal, $second:literal) => {{
                    let low = vmlal_laneq_s16::<$first>(c[0], vget_low_s16(b0), a);
                    let high = vmlal_high_laneq_s16::<$first>(c[1], b0, a);
                    [
                        vmlal_laneq_s16::<$second>(low, vget_low_s16(b1), a),
                        vmlal_high_laneq_s16::<$second>(high, b1, a),
                    ]
                }};
            }
            match const { WORD % 4 } {
                0 => products!(0, 1),
                1 => products!(2, 3),
                2 => products!(4, 5),
                _ => products!(6, 7),
            }
        }
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        // SAFETY: as above.
        unsafe { [vdupq_n_s32(x); 2] }
    }
    #[inline(always)]
    unsafe fn splat_quad(self, p: *const i8) -> Self::I {
        // SAFETY: as above.
        unsafe { [vdupq_n_s32(p.cast::<i32>().read_unaligned()); 2] }
    }
    #[inline(always)]
    unsafe fn load_quad_words(self, p: *const i8) -> Self::I {
        // SAFETY: as above.
        unsafe { [vreinterpretq_s32_s8(vld1q_s8(p)); 2] }
    }
    #[inline(always)]
    unsafe fn load_quads(self, p: *const u8) -> Self::I {
        // SAFETY: as above.
        unsafe { [vreinterpretq_s32_u8(vld1q_u8(p)), vreinterpretq_s32_u8(vld1q_u8(p.add(16)))] }
    }
    #[inline(always)]
    fn dot_quads(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I {
        // SAFETY: as above.
        unsafe { [dot::<DOT>(a[0], b[0], c[0]), dot::<DOT>(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn dot_quads_word<const WORD: usize>(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I {
        // SAFETY: as above.
        unsafe {
            by_lane!(WORD, LANE => {
                if DOT {
                    [dot_word::<LANE>(a[0], b[0], c[0]), dot_word::<LANE>(a[1], b[0], c[1])]
                } else {
                    self.dot_quads(a, [vdupq_laneq_s32::<LANE>(b[0]); 2], c)
                }
            })
        }
    }
    #[inline(always)]
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as above.
        unsafe { [vmulq_s32(a[0], b[0]), vmulq_s32(a[1], b[1])] }
    }
    #[inline(always)]
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: as above.
        unsafe { [vaddq_s32(a[0], b[0]), vaddq_s32(a[1], b[1])] }
    }
    #[inline(always)]
    fn times_256(self, a: Self::I) -> Self::I {
        // SAFETY: as above.
        unsafe { [vshlq_n_s32::<8>(a[0]), vshlq_n_s32::<8>(a[1])] }
    }
    #[inline(always)]
    fn to_f32(self, x: Self::I) -> Self::V {
        // SAFETY: as above.
        unsafe { [vcvtq_f32_s32(x[0]), vcvtq_f32_s32(x[1])] }
    }
    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, x: Self::V) {
        // SAFETY: as above.
        unsafe { vst1q_s16(p, narrowed(x)) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, x: Self::V) {
        // SAFETY: as above.
        unsafe { vst1_s8(p, vmovn_s16(narrowed(x))) }
    }
}

impl<const DOT: bool, const BF16: bool> MatrixOps for Neon<DOT, BF16> {
    type Bf16Tile = <Self as FloatOps>::FloatTile;
    type BytesTile = <Self as IntOps>::IntTile;
    const HAS_MATRICES: bool = false;
}

impl<const DOT: bool, const BF16: bool> BlockOps for Neon<DOT, BF16> {
    #[inline(always)]
    fn begin_block_dot(self, pair: Self::I) -> Self::I {
        // SAFETY: as above.
        unsafe {
            [
                vpaddlq_s16(vreinterpretq_s16_s32(pair[0])),
                vpaddlq_s16(vreinterpretq_s16_s32(pair[1])),
            ]
        }
    }
}

/// The first values of all pairs of i16, and the second values.
///
/// # Safety
///
/// The CPU has NEON.
#[inline(always)]
unsafe fn separated(pairs: [int32x4_t; 2]) -> [int16x8_t; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let (low, high) = (vreinterpretq_s16_s32(pairs[0]), vreinterpretq_s16_s32(pairs[1]));
        [vuzp1q_s16(low, high), vuzp2q_s16(low, high)]
    }
}

/// `c + a · b` for quads of signed bytes.
///
/// # Safety
///
/// The CPU has NEON, and the feature `dotprod` where `DOT`.
#[inline(always)]
unsafe fn dot<const DOT: bool>(a: int32x4_t, b: int32x4_t, mut c: int32x4_t) -> int32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        if DOT {
            asm!("sdot {c:v}.4s, {a:v}.16b, {b:v}.16b", c = inout(vreg) c, a = in(vreg) a,
                b = in(vreg) b, options(pure, nomem, nostack, preserves_flags));
            return c;
        }
        let (a, b) = (vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
        let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
        // The sum of two products fits in 16 bits, because no weight is -128.
        vpadalq_s16(c, vpaddq_s16(low, vmull_high_s8(a, b)))
    }
}

/// `c + a · b` for quads of signed bytes, where `b` is the quad `WORD` of `words`.
///
/// # Safety
///
/// The CPU has the feature `dotprod`.
#[inline(always)]
unsafe fn dot_word<const WORD: i32>(a: int32x4_t, words: int32x4_t, mut c: int32x4_t) -> int32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("sdot {c:v}.4s, {a:v}.16b, {words:v}.4b[{word}]", c = inout(vreg) c, a = in(vreg) a,
            words = in(vreg) words, word = const WORD,
            options(pure, nomem, nostack, preserves_flags));
    }
    c
}

/// The nearest integers, in 16 bits.
///
/// # Safety
///
/// The CPU has NEON.
#[inline(always)]
unsafe fn narrowed(x: [float32x4_t; 2]) -> int16x8_t {
    // SAFETY: the caller's promise.
    unsafe { vcombine_s16(vmovn_s32(vcvtnq_s32_f32(x[0])), vmovn_s32(vcvtnq_s32_f32(x[1]))) }
}
