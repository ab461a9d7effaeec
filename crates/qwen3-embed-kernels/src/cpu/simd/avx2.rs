use std::arch::asm;
use std::arch::x86_64::*;

use half::{bf16, f16};

use super::block::BlockOps;
use super::float::FloatOps;
use super::int::IntOps;
use super::matrix::{MOST_MATRIX_ROWS, MatrixOps};
use super::search::SearchOps;

/// AVX2, FMA and F16C and, where `VNNI`, AVX-VNNI. Where `MATRICES`, products are computed as by an instruction set with matrix
/// registers.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu) struct Avx2<const VNNI: bool, const MATRICES: bool>(());

impl<const VNNI: bool, const MATRICES: bool> Avx2<VNNI, MATRICES> {
    /// # Safety
    ///
    /// The CPU has AVX2, FMA and F16C and, where `VNNI`, AVX-VNNI.
    #[inline(always)]
    pub(in crate::cpu) unsafe fn new() -> Self {
        Self(())
    }
}

// SAFETY: the caller of `Avx2::new` promises the features. Each block below calls intrinsics of AVX, AVX2, FMA or F16C
// or, where `VNNI`, of AVX-VNNI. Callers promise that pointers are valid, and loads and stores need no alignment.
unsafe impl<const VNNI: bool, const MATRICES: bool> FloatOps for Avx2<VNNI, MATRICES> {
    type V = __m256;
    type FloatTile = [[__m256; 2]; 6];
    type WidenedTile = [[__m256; 2]; 6];
    const LANES: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: __m256) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const bf16) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16, x: __m256) {
        // SAFETY: as above.
        unsafe {
            let bits = _mm256_srli_epi32::<16>(rounded(x));
            let packed = _mm256_packus_epi32(bits, bits);
            let packed = _mm256_permute4x64_epi64::<0b1000>(packed);
            _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: as above. A prefetch does not access the memory, so the pointer need not be valid.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    #[expect(clippy::pointers_in_nomem_asm_block, reason = "no instruction reads the pointer")]
    fn after<T>(self, mut p: *const T, x: __m256) -> *const T {
        // SAFETY: the assembly has no instruction and leaves `p` unchanged.
        unsafe {
            asm!("/* {p} {x} */", p = inout(reg) p, x = in(xmm_reg) _mm256_castps256_ps128(x),
                options(pure, nomem, nostack, preserves_flags));
        }
        p
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn keep(self, x: __m256, n: usize, fill: f32) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lanes);
            _mm256_blendv_ps(_mm256_set1_ps(fill), x, _mm256_castsi256_ps(kept))
        }
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn round(self, x: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn exp2_int(self, n: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn pair(self, first: __m256, second: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe {
            let (first, second) = (_mm256_srli_epi32::<16>(rounded(first)), rounded(second));
            _mm256_castsi256_ps(_mm256_blend_epi16::<0b1010_1010>(first, second))
        }
    }
    #[inline(always)]
    fn first(self, pairs: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(pairs))) }
    }
    #[inline(always)]
    fn second(self, pairs: __m256) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_and_ps(pairs, _mm256_castsi256_ps(_mm256_set1_epi32(-0x1_0000))) }
    }
    #[inline(always)]
    fn sum(self, x: __m256) -> f32 {
        // SAFETY: as above.
        unsafe {
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    fn largest(self, x: __m256) -> f32 {
        // SAFETY: as above.
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }
}

// SAFETY: as of `FloatOps`.
unsafe impl<const VNNI: bool, const MATRICES: bool> IntOps for Avx2<VNNI, MATRICES> {
    type I = __m256i;
    // The integer sums need 12 of the 16 registers. The f32 sums are in memory except at the end of a group.
    type IntTile = [[__m256; 2]; 6];
    type PairTile = [[__m256; 2]; 6];

    #[inline(always)]
    fn zeros(self) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn splat_pair(self, p: *const i16) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load_pairs(self, p: *const i8) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    fn dot_pairs(self, a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe {
            if VNNI {
                return _mm256_dpwssd_avx_epi32(c, a, b);
            }
            _mm256_add_epi32(c, _mm256_madd_epi16(a, b))
        }
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn splat_quad(self, p: *const i8) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn load_quads(self, p: *const u8) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    fn dot_quads(self, a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe {
            if VNNI {
                return _mm256_dpbusd_avx_epi32(c, a, b);
            }
            // Every second byte is widened to 16 bits, so that sums of products do not saturate.
            let even = _mm256_and_si256(a, _mm256_set1_epi16(0xff));
            let even = _mm256_madd_epi16(even, _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b)));
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(a), _mm256_srai_epi16::<8>(b));
            _mm256_add_epi32(c, _mm256_add_epi32(even, odd))
        }
    }
    #[inline(always)]
    fn mul_i32(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_mullo_epi32(a, b) }
    }
    #[inline(always)]
    fn add_i32(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn times_256(self, a: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_slli_epi32::<8>(a) }
    }
    #[inline(always)]
    fn to_f32(self, x: __m256i) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn store_i16(self, p: *mut i16, x: __m256) {
        // SAFETY: as above.
        unsafe {
            let ints = _mm256_cvtps_epi32(x);
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packs_epi32(ints, ints));
            _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, x: __m256) {
        // SAFETY: as above.
        unsafe {
            let ints = _mm256_cvtps_epi32(x);
            let (low, high) = (_mm256_castsi256_si128(ints), _mm256_extracti128_si256::<1>(ints));
            let packed = _mm_packs_epi32(low, high);
            _mm_storel_epi64(p.cast(), _mm_packs_epi16(packed, packed));
        }
    }
}

/// Without VNNI, partial sums are i16: `maddubs` adds the products of two bytes in 16 bits.
impl<const VNNI: bool, const MATRICES: bool> BlockOps for Avx2<VNNI, MATRICES> {
    #[inline(always)]
    fn block_dot(self, a: __m256i, b: __m256i) -> __m256i {
        if VNNI {
            return self.dot_quads(a, b, self.zeros());
        }
        // SAFETY: as above.
        unsafe { _mm256_maddubs_epi16(a, b) }
    }
    #[inline(always)]
    fn begin_block_dot(self, pair: __m256i) -> __m256i {
        if VNNI {
            return self.dot_pairs(pair, self.splat_i32(0x1_0001), self.zeros());
        }
        pair
    }
    #[inline(always)]
    fn add_block_dot(self, a: __m256i, b: __m256i, partial: __m256i) -> __m256i {
        if VNNI {
            return self.dot_quads(a, b, partial);
        }
        // SAFETY: as above.
        unsafe { _mm256_add_epi16(partial, _mm256_maddubs_epi16(a, b)) }
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
    fn add_scaled(self, partial: __m256i, scale_words: __m256i, c: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let products = if VNNI {
                _mm256_mullo_epi32(partial, scale_words)
            } else {
                _mm256_madd_epi16(partial, scale_words)
            };
            _mm256_add_epi32(c, products)
        }
    }
}

// SAFETY: as of `FloatOps`.
unsafe impl<const VNNI: bool, const MATRICES: bool> SearchOps for Avx2<VNNI, MATRICES> {
    #[inline(always)]
    unsafe fn load_f16(self, p: *const f16) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    /// The bits of half a byte are counted with a table. The counts of eight bytes are then added in 64 bits.
    #[inline(always)]
    fn add_differing_bits(self, a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_setr_epi8(
                0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
            ));
            let (bits, half) = (_mm256_xor_si256(a, b), _mm256_set1_epi8(0xf));
            let low = _mm256_and_si256(bits, half);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bits), half);
            let low = _mm256_shuffle_epi8(table, low);
            let counts = _mm256_add_epi8(low, _mm256_shuffle_epi8(table, high));
            _mm256_add_epi32(c, _mm256_sad_epu8(counts, _mm256_setzero_si256()))
        }
    }
    #[inline(always)]
    fn sum_i32(self, x: __m256i) -> i32 {
        // SAFETY: as above.
        unsafe {
            let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let x = _mm_add_epi32(x, _mm_unpackhi_epi64(x, x));
            _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32::<1>(x)))
        }
    }
}

impl<const VNNI: bool> MatrixOps for Avx2<VNNI, false> {
    type Bf16Tile = <Self as FloatOps>::FloatTile;
    type BytesTile = <Self as IntOps>::IntTile;
    const HAS_MATRICES: bool = false;
}

/// Tiles of as many rows as with AMX.
impl<const VNNI: bool> MatrixOps for Avx2<VNNI, true> {
    type Bf16Tile = [[__m256; 2]; MOST_MATRIX_ROWS];
    type BytesTile = [[__m256; 2]; MOST_MATRIX_ROWS];
    const HAS_MATRICES: bool = true;
}

/// Rounds f32 values to bf16: the upper halves of the result are the bits of the nearest bf16 values.
///
/// # Safety
///
/// The CPU has AVX2.
#[inline(always)]
unsafe fn rounded(x: __m256) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm256_castps_si256(x);
        // Half a unit of the last bit that remains, minus one if this bit is even: ties to even.
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        // The addition could turn NaN into infinity or zero. NaN is made a quiet NaN instead.
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        _mm256_blendv_epi8(_mm256_add_epi32(bits, half), quiet, nan)
    }
}
