use std::arch::aarch64::*;
use std::arch::asm;

use half::f16;

use super::Neon;
use crate::cpu::simd::SearchOps;

// SAFETY: as of `FloatOps`. Each block below uses instructions of NEON.
unsafe impl<const DOT: bool, const BF16: bool> SearchOps for Neon<DOT, BF16> {
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> Self::V {
        // SAFETY: as above.
        unsafe {
            let halves = vld1q_u16(p.cast());
            let (low, high): (float32x4_t, float32x4_t);
            asm!("fcvtl {low:v}.4s, {halves:v}.4h", "fcvtl2 {high:v}.4s, {halves:v}.8h",
                low = out(vreg) low, high = lateout(vreg) high, halves = in(vreg) halves,
                options(pure, nomem, nostack, preserves_flags));
            [low, high]
        }
    }
    #[inline(always)]
    unsafe fn add_byte_products(self, bytes: *const i8, words: *const i16, c: Self::I) -> Self::I {
        // SAFETY: as above.
        unsafe {
            let bytes = vld1q_s8(bytes);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            let words = [vld1q_s16(words), vld1q_s16(words.add(8))];
            let first = vmlal_s16(c[0], vget_low_s16(low), vget_low_s16(words[0]));
            let second = vmlal_high_s16(c[1], low, words[0]);
            [
                vmlal_s16(first, vget_low_s16(high), vget_low_s16(words[1])),
                vmlal_high_s16(second, high, words[1]),
            ]
        }
    }
    #[inline(always)]
    fn add_differing_bits(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I {
        // SAFETY: as above.
        unsafe { [differing_bits(a[0], b[0], c[0]), differing_bits(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn sum_i32(self, x: Self::I) -> i32 {
        // SAFETY: as above.
        unsafe { vaddvq_s32(vaddq_s32(x[0], x[1])) }
    }
}

/// `c` plus the number of bits in which `a` and `b` differ.
///
/// # Safety
///
/// The CPU has NEON.
#[inline(always)]
unsafe fn differing_bits(a: int32x4_t, b: int32x4_t, c: int32x4_t) -> int32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        let counts = vcntq_u8(vreinterpretq_u8_s32(veorq_s32(a, b)));
        vreinterpretq_s32_u32(vpadalq_u16(vreinterpretq_u32_s32(c), vpaddlq_u8(counts)))
    }
}
