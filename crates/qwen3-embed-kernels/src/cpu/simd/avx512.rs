use std::arch::x86_64::*;
use std::mem::transmute;

use half::{bf16, f16};

use super::amx;
use super::block::BlockOps;
use super::float::{FloatOps, dot_bf16_in_f32};
use super::int::IntOps;
use super::matrix::{MOST_MATRIX_ROWS, MatrixBlock, MatrixOps};
use super::search::SearchOps;

/// AVX-512F and AVX-512BW, with AVX-512 VNNI where `VNNI`, with AVX-512 BF16 where `BF16`, and with the tiles of AMX for
/// bf16 and bytes where `AMX`.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu) struct Avx512<const VNNI: bool, const BF16: bool, const AMX: bool>(());

impl<const VNNI: bool, const BF16: bool, const AMX: bool> Avx512<VNNI, BF16, AMX> {
    /// # Safety
    ///
    /// The CPU has AVX-512F and AVX-512BW, AVX-512 VNNI where `VNNI`, AVX-512 BF16 where `BF16`, and AMX where `AMX`, and
    /// the operating system lets this process use AMX.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn new() -> Self {
        Self(())
    }
}

// SAFETY: the caller of `Avx512::new` promises the features. Each block below calls intrinsics of AVX-512F, of
// AVX-512BW, of older sets that every CPU with AVX-512 has, such as AVX2 and FMA, of AVX-512 VNNI where `VNNI`, or of
// AVX-512 BF16 where `BF16`. Callers promise that pointers are valid, and loads and stores need no alignment.
unsafe impl<const VNNI: bool, const BF16: bool, const AMX: bool> FloatOps
    for Avx512<VNNI, BF16, AMX>
{
    type V = __m512;
    type FloatTile = [[__m512; 2]; 12];
    type WidenedTile = [[__m512; 2]; 10];
    const LANES: usize = 16;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: __m512) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> __m512 {
        // SAFETY: as above.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, x: __m512) {
        // SAFETY: as above.
        unsafe {
            if BF16 {
                let packed = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
                return _mm256_storeu_si256(p.cast(), packed);
            }
            let bits = rounded(x);
            let packed = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits));
            _mm256_storeu_si256(p.cast(), packed);
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: as above. A prefetch does not access the memory, so the pointer need not be valid.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn keep(self, x: __m512, n: usize, fill: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mask_mov_ps(_mm512_set1_ps(fill), ((1u32 << n) - 1) as __mmask16, x) }
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn exp2_int(self, n: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn pair(self, first: __m512, second: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe {
            let (first, second) = if BF16 {
                let first = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(first));
                let second = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(second));
                let second = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(second));
                (_mm512_cvtepu16_epi32(first), second)
            } else {
                let upper = _mm512_set1_epi32(-0x1_0000);
                let second = _mm512_and_si512(rounded(second), upper);
                (_mm512_srli_epi32::<16>(rounded(first)), second)
            };
            _mm512_castsi512_ps(_mm512_or_si512(first, second))
        }
    }
    #[inline(always)]
    fn first(self, pairs: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(pairs))) }
    }
    #[inline(always)]
    fn second(self, pairs: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe {
            let upper = _mm512_set1_epi32(-0x1_0000);
            _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pairs), upper))
        }
    }
    #[inline(always)]
    fn dot_bf16(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        if BF16 {
            // SAFETY: as above. Both register types are 512 bits.
            return unsafe {
                let a = transmute::<__m512, __m512bh>(a);
                let b = transmute::<__m512, __m512bh>(b);
                _mm512_dpbf16_ps(c, a, b)
            };
        }
        dot_bf16_in_f32(self, a, b, c)
    }
    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        // SAFETY: as above.
        unsafe {
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), upper_half(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    fn largest(self, x: __m512) -> f32 {
        // SAFETY: as above.
        unsafe {
            let x = _mm256_max_ps(_mm512_castps512_ps256(x), upper_half(x));
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }
}

// SAFETY: as of `FloatOps`.
unsafe impl<const VNNI: bool, const BF16: bool, const AMX: bool> IntOps
    for Avx512<VNNI, BF16, AMX>
{
    type I = __m512i;
    type IntTile = [[__m512; 2]; 6];
    type PairTile = [[__m512; 2]; 6];

    #[inline(always)]
    fn zeros(self) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn splat_pair(self, p: *const i16) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const i8) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    fn dot_pairs(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe {
            if VNNI {
                return _mm512_dpwssd_epi32(c, a, b);
            }
            _mm512_add_epi32(c, _mm512_madd_epi16(a, b))
        }
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn splat_quad(self, p: *const i8) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load_quads(self, p: *const u8) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    fn dot_quads(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe {
            if VNNI {
                return _mm512_dpbusd_epi32(c, a, b);
            }
            // Every second byte is widened to 16 bits, so that sums of products do not saturate.
            let even = _mm512_and_si512(a, _mm512_set1_epi16(0xff));
            let even = _mm512_madd_epi16(even, _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b)));
            let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(a), _mm512_srai_epi16::<8>(b));
            _mm512_add_epi32(c, _mm512_add_epi32(even, odd))
        }
    }
    #[inline(always)]
    fn mul_i32(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_mullo_epi32(a, b) }
    }
    #[inline(always)]
    fn add_i32(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn times_256(self, a: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_slli_epi32::<8>(a) }
    }
    #[inline(always)]
    fn to_f32(self, x: __m512i) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, x: __m512) {
        // SAFETY: as above.
        unsafe {
            let packed = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x));
            _mm256_storeu_si256(p.cast(), packed);
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, x: __m512) {
        // SAFETY: as above.
        unsafe {
            let packed = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x));
            _mm_storeu_si128(p.cast(), packed);
        }
    }
}

/// Without VNNI, partial sums are i16: `maddubs` adds the products of two bytes in 16 bits.
impl<const VNNI: bool, const BF16: bool, const AMX: bool> BlockOps for Avx512<VNNI, BF16, AMX> {
    #[inline(always)]
    fn block_dot(self, a: __m512i, b: __m512i) -> __m512i {
        if VNNI {
            return self.dot_quads(a, b, self.zeros());
        }
        // SAFETY: as above.
        unsafe { _mm512_maddubs_epi16(a, b) }
    }
    #[inline(always)]
    fn begin_block_dot(self, pair: __m512i) -> __m512i {
        if VNNI {
            return self.dot_pairs(pair, self.splat_i32(0x1_0001), self.zeros());
        }
        pair
    }
    #[inline(always)]
    fn add_block_dot(self, a: __m512i, b: __m512i, partial: __m512i) -> __m512i {
        if VNNI {
            return self.dot_quads(a, b, partial);
        }
        // SAFETY: as above.
        unsafe { _mm512_add_epi16(partial, _mm512_maddubs_epi16(a, b)) }
    }
    #[inline(always)]
    fn scale_word(scale: i8) -> i32 {
        if VNNI {
            return scale.into();
        }
        // The scale twice, for both i16 of a lane.
        i32::from(scale) << 16 | i32::from(i16::from(scale).cast_unsigned())
    }
    #[inline(always)]
    fn add_scaled(self, partial: __m512i, scale_words: __m512i, c: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let products = if VNNI {
                _mm512_mullo_epi32(partial, scale_words)
            } else {
                _mm512_madd_epi16(partial, scale_words)
            };
            _mm512_add_epi32(c, products)
        }
    }
}

// SAFETY: as of `FloatOps`.
unsafe impl<const VNNI: bool, const BF16: bool, const AMX: bool> SearchOps
    for Avx512<VNNI, BF16, AMX>
{
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    /// The bits of half a byte are counted with a table. The counts of eight bytes are then added in 64 bits.
    #[inline(always)]
    fn add_differing_bits(self, a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_setr_epi8(
                0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
            ));
            let (bits, half) = (_mm512_xor_si512(a, b), _mm512_set1_epi8(0xf));
            let low = _mm512_and_si512(bits, half);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bits), half);
            let low = _mm512_shuffle_epi8(table, low);
            let counts = _mm512_add_epi8(low, _mm512_shuffle_epi8(table, high));
            _mm512_add_epi32(c, _mm512_sad_epu8(counts, _mm512_setzero_si512()))
        }
    }
    #[inline(always)]
    fn sum_i32(self, x: __m512i) -> i32 {
        // SAFETY: as above.
        unsafe { _mm512_reduce_add_epi32(x) }
    }
}

impl<const VNNI: bool, const BF16: bool> MatrixOps for Avx512<VNNI, BF16, false> {
    type Bf16Tile = <Self as FloatOps>::FloatTile;
    type BytesTile = <Self as IntOps>::IntTile;
    const HAS_MATRICES: bool = false;
}

impl MatrixOps for Avx512<true, true, true> {
    type Bf16Tile = [[__m512; 2]; MOST_MATRIX_ROWS];
    type BytesTile = [[__m512; 2]; MOST_MATRIX_ROWS];
    const HAS_MATRICES: bool = true;

    #[inline(always)]
    unsafe fn multiply_pairs(self, block: &MatrixBlock<bf16, bf16>, sums: &mut [[__m512; 2]]) {
        // SAFETY: the caller's promise, and that of `Avx512::new`.
        unsafe { amx::multiply_pairs(block, sums.as_mut_ptr().cast(), sums.len()) }
    }
    #[inline(always)]
    unsafe fn multiply_quads(self, block: &MatrixBlock<i8, u8>, products: &mut [[__m512i; 2]]) {
        // SAFETY: as above.
        unsafe { amx::multiply_quads(block, products.as_mut_ptr().cast(), products.len()) }
    }
    #[inline(always)]
    fn release_matrices(self) {
        // SAFETY: as above.
        unsafe { amx::release() }
    }
}

/// The upper eight lanes.
///
/// # Safety
///
/// The CPU has AVX-512F.
#[inline(always)]
unsafe fn upper_half(x: __m512) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(x))) }
}

/// Rounds f32 values to bf16: the upper halves of the result are the bits of the nearest bf16 values.
///
/// # Safety
///
/// The CPU has AVX-512F.
#[inline(always)]
unsafe fn rounded(x: __m512) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm512_castps_si512(x);
        // Half a unit of the last bit that remains, minus one if this bit is even: ties to even.
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        // The addition could turn NaN into infinity or zero. NaN is made a quiet NaN instead.
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let quiet = _mm512_set1_epi32(0x40_0000);
        _mm512_mask_or_epi32(_mm512_add_epi32(bits, half), nan, bits, quiet)
    }
}
