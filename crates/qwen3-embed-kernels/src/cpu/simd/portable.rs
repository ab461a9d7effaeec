use half::{bf16, f16};

use super::block::BlockOps;
use super::float::FloatOps;
use super::int::IntOps;
use super::matrix::MatrixOps;
use super::search::SearchOps;

/// The instruction set of every CPU: arrays that the compiler may vectorize.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu) struct Portable;

impl Portable {
    #[inline(always)]
    fn map(a: [f32; 8], f: impl Fn(f32) -> f32) -> [f32; 8] {
        a.map(f)
    }

    #[inline(always)]
    fn zip(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
        std::array::from_fn(|i| f(a[i], b[i]))
    }
}

// SAFETY: no special instructions are used.
unsafe impl FloatOps for Portable {
    type V = [f32; 8];
    type FloatTile = [[Self::V; 2]; 2];
    type WidenedTile = [[Self::V; 2]; 2];
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::V {
        // SAFETY: the caller promises eight values.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: Self::V) {
        // SAFETY: the caller promises eight values.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> Self::V {
        // SAFETY: the caller promises eight values.
        unsafe { p.cast::<[bf16; 8]>().read_unaligned() }.map(bf16::to_f32)
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, x: Self::V) {
        // SAFETY: the caller promises eight values.
        unsafe { p.cast::<[bf16; 8]>().write_unaligned(x.map(bf16::from_f32)) }
    }
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        Self::zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        Self::zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        Self::zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        Self::zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        Self::zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        Self::zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn keep(self, x: Self::V, n: usize, fill: f32) -> Self::V {
        std::array::from_fn(|i| if i < n { x[i] } else { fill })
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn round(self, x: Self::V) -> Self::V {
        // Adding and taking away 1.5 · 2^23 leaves no bits for a fraction.
        Self::map(x, |x| (x + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    fn exp2_int(self, n: Self::V) -> Self::V {
        Self::map(n, |n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn pair(self, first: Self::V, second: Self::V) -> Self::V {
        Self::zip(first, second, |first, second| {
            let [first, second] = [first, second].map(|x| u32::from(bf16::from_f32(x).to_bits()));
            f32::from_bits(second << 16 | first)
        })
    }
    #[inline(always)]
    fn first(self, pairs: Self::V) -> Self::V {
        Self::map(pairs, |pair| f32::from_bits(pair.to_bits() << 16))
    }
    #[inline(always)]
    fn second(self, pairs: Self::V) -> Self::V {
        Self::map(pairs, |pair| f32::from_bits(pair.to_bits() & 0xffff_0000))
    }
    #[inline(always)]
    fn sum(self, x: Self::V) -> f32 {
        ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]))
    }
    #[inline(always)]
    fn largest(self, x: Self::V) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

// SAFETY: no special instructions are used.
unsafe impl IntOps for Portable {
    type I = [i32; 8];
    type IntTile = [[Self::V; 2]; 2];
    type PairTile = [[Self::V; 2]; 2];

    #[inline(always)]
    fn zeros(self) -> Self::I {
        [0; 8]
    }
    #[inline(always)]
    unsafe fn splat_pair(self, p: *const i16) -> Self::I {
        // SAFETY: the caller promises a pair.
        [pair(unsafe { p.cast::<[i16; 2]>().read_unaligned() }); 8]
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const i8) -> Self::I {
        // SAFETY: the caller promises eight pairs.
        let pairs = unsafe { p.cast::<[[i8; 2]; 8]>().read_unaligned() };
        pairs.map(|values| pair(values.map(i16::from)))
    }
    #[inline(always)]
    fn dot_pairs(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I {
        std::array::from_fn(|i| {
            // Products of two i16 do not overflow an i32. Their sum wraps around, as in the x86 instructions.
            let (first, second) = (i32::from(a[i] as i16), a[i] >> 16);
            let first = first * i32::from(b[i] as i16);
            c[i].wrapping_add(first).wrapping_add(second * (b[i] >> 16))
        })
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn splat_quad(self, p: *const i8) -> Self::I {
        // SAFETY: the caller promises a quad.
        [unsafe { p.cast::<i32>().read_unaligned() }; 8]
    }
    #[inline(always)]
    unsafe fn load_quads(self, p: *const u8) -> Self::I {
        // SAFETY: the caller promises eight quads.
        unsafe { p.cast::<[i32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    fn dot_quads(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I {
        std::array::from_fn(|i| {
            let products = a[i].to_ne_bytes().into_iter().zip(b[i].to_ne_bytes());
            products.fold(c[i], |sum, (a, b)| sum.wrapping_add(i32::from(a) * i32::from(b as i8)))
        })
    }
    #[inline(always)]
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_mul(b[i]))
    }
    #[inline(always)]
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn times_256(self, a: Self::I) -> Self::I {
        a.map(|a| a << 8)
    }
    #[inline(always)]
    fn to_f32(self, x: Self::I) -> Self::V {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, x: Self::V) {
        // SAFETY: the caller promises eight values.
        unsafe { p.cast::<[i16; 8]>().write_unaligned(self.round(x).map(|x| x as i16)) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, x: Self::V) {
        // SAFETY: the caller promises eight values.
        unsafe { p.cast::<[i8; 8]>().write_unaligned(self.round(x).map(|x| x as i8)) }
    }
}

impl BlockOps for Portable {}

// SAFETY: no special instructions are used.
unsafe impl SearchOps for Portable {
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> Self::V {
        // SAFETY: the caller promises eight values.
        unsafe { p.cast::<[f16; 8]>().read_unaligned() }.map(f16::to_f32)
    }
    #[inline(always)]
    fn add_differing_bits(self, a: Self::I, b: Self::I, c: Self::I) -> Self::I {
        std::array::from_fn(|i| c[i] + (a[i] ^ b[i]).count_ones().cast_signed())
    }
    #[inline(always)]
    fn sum_i32(self, x: Self::I) -> i32 {
        x.into_iter().fold(0, i32::wrapping_add)
    }
}

/// Two values in one lane, the first in the lower half.
#[inline(always)]
fn pair([first, second]: [i16; 2]) -> i32 {
    i32::from(second) << 16 | i32::from(first as u16)
}

impl MatrixOps for Portable {
    type Bf16Tile = <Self as FloatOps>::FloatTile;
    type BytesTile = <Self as IntOps>::IntTile;
    const HAS_MATRICES: bool = false;
}
