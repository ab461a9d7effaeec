//! The kernel sets, which of them this CPU can run, and which one runs.

use std::env;
use std::hint::black_box;
use std::sync::LazyLock;
use std::time::Instant;

use half::bf16;

use super::activations::{Arithmetic, RowsMut, Values};
use super::aligned::Aligned;
use super::attention::{self, AttentionKernels, Block, Pack};
use super::linear::{self, BlockCall, Call};
use super::product::{self, Bf16, Bytes, F32, Int8, Widened};
use super::quantised;
use super::rows;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Portable, Simd};

/// The kernels of one instruction set, which this processor has: there is no other way to come by a
/// table than [`Kernels::available`]. That makes it safe to call the functions in it.
#[derive(Debug)]
pub struct Kernels {
    /// The instruction set's name, which is also the set's value in [`Kernels::VARIABLE`].
    pub name: &'static str,
    /// How it multiplies fastest where the weights are bf16.
    pub bf16_weights: Arithmetic,
    /// How it multiplies fastest where the weights are in 8 bits.
    pub int8_weights: Arithmetic,
    /// f32 values in a register; a panel has twice as many columns.
    pub(super) lanes: usize,
    /// Rows of a tile.
    pub(super) rows: usize,
    pub(super) linear_f32: unsafe fn(&Call<'_, f32, f32>),
    pub(super) linear_widened: unsafe fn(&Call<'_, f32, bf16>),
    pub(super) linear_bf16: unsafe fn(&Call<'_, bf16, bf16>),
    pub(super) linear_int8: unsafe fn(&Call<'_, i16, i8>),
    pub(super) linear_bytes: unsafe fn(&Call<'_, i8, u8>),
    pub(super) linear_blocks: unsafe fn(&BlockCall<'_>, &mut Aligned<u8>),
    pub(super) quantise_int8: QuantiseInt8,
    pub(super) quantise_bytes: QuantiseBytes,
    pub(super) quantise_blocks: QuantiseBlocks,
    pub(super) attention_f32: AttentionKernels<f32>,
    pub(super) attention_bf16: AttentionKernels<bf16>,
    pub(super) rms_norm: RmsNorm,
    pub(super) qk_norm_rope: QkNormRope,
    multiply_adds: unsafe fn(usize, Arithmetic) -> f32,
}

/// Of a row, with its weight and eps, into a row of an output, which must be one of that output's rows
/// and no other task's.
type RmsNorm = unsafe fn(&[f32], &[f32], f32, &RowsMut<'_>, usize);

/// Of a row, with the places of what is written twice, into a row of an output; returns the scale.
type QuantiseInt8 = unsafe fn(Values<'_>, &[usize], &mut [i16]) -> f32;

/// Of a row, which is rotated before or not, into a row of an output.
type QuantiseBytes = unsafe fn(Values<'_>, bool, &mut [i8]);

/// Of a row, with what its values are multiplied with before, into a row of an output.
type QuantiseBlocks = unsafe fn(Values<'_>, Option<&[f32]>, &mut [i8]);

/// Of a token's heads, with their weight, eps, cosines and sines.
type QkNormRope = unsafe fn(&mut [f32], &[f32], f32, &[f32], &[f32]);

/// [`Kernels::VARIABLE`] names a kernel set that does not exist or that this CPU cannot run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is `{got}`, which is not a kernel set of this CPU: expected {}",
    Kernels::VARIABLE,
    available.join(", ")
)]
pub struct UnknownKernels {
    /// The variable's value.
    pub got: String,
    /// The values that this CPU can run.
    pub available: Vec<&'static str>,
}

impl Kernels {
    /// The environment variable that chooses the kernel set. Without it, or if it is empty, the fastest
    /// set that the CPU can run is used: the last of this table, but `avx512-bf16` only on AMD's CPUs, because
    /// Intel's take longer for bf16 products in AVX-512 than for those in f32. Each program reads it once.
    ///
    /// | value | instructions | bf16 weights | 8-bit weights |
    /// |---|---|---|---|
    /// | `portable` | none in particular | f32 products | 16-bit activations |
    /// | `avx2` | AVX2, FMA | f32 products | 16-bit activations |
    /// | `avx2-vnni` | AVX2, FMA, AVX-VNNI | f32 products | 8-bit activations |
    /// | `avx512` | AVX-512 F and BW | f32 products | 16-bit activations |
    /// | `avx512-vnni` | and AVX-512 VNNI | f32 products | 8-bit activations |
    /// | `avx512-bf16` | and AVX-512 BF16 | bf16 products | 8-bit activations |
    /// | `emulate-avx512-bf16` | those of `avx2`, or of `portable` | bf16 products | 8-bit activations |
    ///
    /// The last set rounds activations as `avx512-bf16` does, so that the arithmetic of that CPU can be
    /// tested on any other. It is slow, and is only used if the variable names it.
    pub const VARIABLE: &str = "QWEN3_EMBED_KERNELS";

    /// The sets whose instructions this CPU has, those with more instructions later.
    pub fn available() -> &'static [Kernels] {
        static AVAILABLE: LazyLock<Vec<Kernels>> = LazyLock::new(|| {
            let mut sets = vec![portable::table()];
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                sets.push(avx2::table());
                if is_x86_feature_detected!("avxvnni") {
                    sets.push(avx2_vnni::table());
                }
                if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                    sets.push(avx512::table());
                    if is_x86_feature_detected!("avx512vnni") {
                        sets.push(avx512_vnni::table());
                        if is_x86_feature_detected!("avx512bf16") {
                            sets.push(avx512_bf16::table());
                        }
                    }
                }
            }
            sets
        });
        &AVAILABLE
    }

    /// The set that computes as `avx512-bf16` does, without its instructions.
    pub fn emulated() -> &'static Kernels {
        static EMULATED: LazyLock<Kernels> = LazyLock::new(|| {
            let mut table = portable::table();
            #[cfg(target_arch = "x86_64")]
            if Kernels::available().iter().any(|set| set.name == "avx2") {
                table = avx2::table();
            }
            Kernels {
                name: "emulate-avx512-bf16",
                bf16_weights: Arithmetic::Bf16,
                int8_weights: Arithmetic::Bytes,
                ..table
            }
        });
        &EMULATED
    }

    /// Every set that this CPU can run, the emulated one included: the values that [`Kernels::VARIABLE`]
    /// may have.
    pub fn all() -> impl Iterator<Item = &'static Kernels> {
        Self::available().iter().chain([Self::emulated()])
    }

    /// The set that [`Kernels::VARIABLE`] chooses.
    ///
    /// # Errors
    ///
    /// [`UnknownKernels`] if this CPU has no such set.
    pub fn chosen() -> Result<&'static Kernels, UnknownKernels> {
        static CHOSEN: LazyLock<Result<&'static Kernels, UnknownKernels>> = LazyLock::new(|| {
            match env::var_os(Kernels::VARIABLE).filter(|name| !name.is_empty()) {
                Some(name) => Kernels::named(&name.to_string_lossy()),
                None => Ok(Kernels::fastest()),
            }
        });
        CHOSEN.clone()
    }

    /// The set that kernels run with: the [chosen](Self::chosen) one, or the fastest if there is no such
    /// set, which is an error when a model is loaded.
    pub fn current() -> &'static Kernels {
        Self::chosen().unwrap_or_else(|_| Self::fastest())
    }

    /// The set of this name.
    fn named(name: &str) -> Result<&'static Kernels, UnknownKernels> {
        Self::all().find(|set| set.name == name).ok_or_else(|| UnknownKernels {
            got: name.to_owned(),
            available: Self::all().map(|set| set.name).collect(),
        })
    }

    /// The fastest set that this CPU can run: the last one, except that bf16 products are passed over where the
    /// CPU takes longer for them than for f32 products. It is chosen by the kind of CPU and not by a measurement,
    /// because another choice is another rounding.
    fn fastest() -> &'static Kernels {
        let mut sets = Self::available().iter().rev();
        let fastest = sets.find(|set| set.bf16_weights == Arithmetic::F32 || has_fast_bf16());
        fastest.unwrap_or(&Self::available()[0])
    }

    /// Operations that one core can do in a second with this set's instruction for
    /// such products, measured for about a tenth of a second: the limit of every kernel of the set.
    pub fn measured_peak(&self, arithmetic: Arithmetic) -> f64 {
        const ROUNDS: usize = 1 << 20;
        let depth = match arithmetic {
            Arithmetic::F32 => 1,
            Arithmetic::Bf16 | Arithmetic::Int8 => 2,
            Arithmetic::Bytes | Arithmetic::Blocks => 4,
        };
        // A multiply-add is two operations; there are twelve registers of them in a round.
        let operations = (2 * 12 * depth * self.lanes * ROUNDS) as f64;
        let mut best = 0f64;
        let begin = Instant::now();
        while begin.elapsed().as_millis() < 100 {
            let start = Instant::now();
            // SAFETY: the table's instructions are there, as for every table.
            black_box(unsafe { (self.multiply_adds)(black_box(ROUNDS), arithmetic) });
            best = best.max(operations / start.elapsed().as_secs_f64());
        }
        best
    }
}

/// Whether the CPU multiplies bf16 pairs at twice the rate of f32 values. AMD's do (Zen 4: 236 and 118 GFLOP/s a core).
/// Intel's have AMX for it, and AVX-512 BF16 at less than half of the rate of f32 (5th generation Xeon: 77 and 177).
#[cfg(target_arch = "x86_64")]
fn has_fast_bf16() -> bool {
    // Newer versions of Rust than the oldest that is supported call it safe.
    #[allow(unused_unsafe)]
    // SAFETY: every CPU of this architecture has the instruction.
    let vendor = unsafe { std::arch::x86_64::__cpuid(0) };
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

/// No other CPU has a set with bf16 products.
#[cfg(not(target_arch = "x86_64"))]
fn has_fast_bf16() -> bool {
    false
}

/// A module with the table of one instruction set: every kernel inlined into a function that enables
/// the set's features.
macro_rules! kernel_set {
    ($module:ident, $name:literal, $simd:ty, $new:expr, $bf16:ident, $int8:ident, $(#[$feature:meta])?) => {
        mod $module {
            use super::*;

            /// The table. It must only be made where the features were detected.
            pub(super) fn table() -> Kernels {
                Kernels {
                    name: $name,
                    bf16_weights: Arithmetic::$bf16,
                    int8_weights: Arithmetic::$int8,
                    lanes: <$simd>::LANES,
                    rows: <$simd>::ROWS,
                    linear_f32,
                    linear_widened,
                    linear_bf16,
                    linear_int8,
                    linear_bytes,
                    linear_blocks,
                    quantise_int8,
                    quantise_bytes,
                    quantise_blocks,
                    attention_f32: AttentionKernels { pack: pack_f32, attend: attend_f32 },
                    attention_bf16: AttentionKernels { pack: pack_bf16, attend: attend_bf16 },
                    rms_norm,
                    qk_norm_rope,
                    multiply_adds,
                }
            }

            $(#[$feature])?
            unsafe fn linear_f32(call: &Call<'_, f32, f32>) {
                linear::multiply(F32($new), call);
            }

            $(#[$feature])?
            unsafe fn linear_widened(call: &Call<'_, f32, bf16>) {
                linear::multiply(Widened($new), call);
            }

            $(#[$feature])?
            unsafe fn linear_bf16(call: &Call<'_, bf16, bf16>) {
                linear::multiply(Bf16($new), call);
            }

            $(#[$feature])?
            unsafe fn linear_int8(call: &Call<'_, i16, i8>) {
                linear::multiply(Int8($new), call);
            }

            $(#[$feature])?
            unsafe fn linear_bytes(call: &Call<'_, i8, u8>) {
                linear::multiply(Bytes($new), call);
            }

            $(#[$feature])?
            unsafe fn linear_blocks(call: &BlockCall<'_>, unpacked: &mut Aligned<u8>) {
                linear::multiply_blocks($new, call, unpacked);
            }

            $(#[$feature])?
            unsafe fn quantise_int8(x: Values<'_>, precise: &[usize], out: &mut [i16]) -> f32 {
                quantised::quantise_int8($new, x, precise, out)
            }

            $(#[$feature])?
            unsafe fn quantise_bytes(x: Values<'_>, is_rotated: bool, out: &mut [i8]) {
                quantised::quantise_bytes($new, x, is_rotated, out);
            }

            $(#[$feature])?
            unsafe fn quantise_blocks(x: Values<'_>, columns: Option<&[f32]>, out: &mut [i8]) {
                quantised::quantise_blocks($new, x, columns, out);
            }

            $(#[$feature])?
            unsafe fn pack_f32(pack: &mut Pack<'_, f32>) {
                attention::pack($new, pack);
            }

            $(#[$feature])?
            unsafe fn pack_bf16(pack: &mut Pack<'_, bf16>) {
                attention::pack($new, pack);
            }

            $(#[$feature])?
            unsafe fn attend_f32(block: &Block<'_, f32>) {
                attention::attend(F32($new), block);
            }

            $(#[$feature])?
            unsafe fn attend_bf16(block: &Block<'_, bf16>) {
                attention::attend(Bf16($new), block);
            }

            $(#[$feature])?
            unsafe fn multiply_adds(n: usize, arithmetic: Arithmetic) -> f32 {
                product::multiply_adds($new, n, arithmetic)
            }

            $(#[$feature])?
            unsafe fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &RowsMut<'_>, row: usize) {
                let s = $new;
                // SAFETY: the caller's promise.
                unsafe { rows::rms_norm(s, x, weight, eps, out, row) }
            }

            $(#[$feature])?
            unsafe fn qk_norm_rope(
                heads: &mut [f32],
                weight: &[f32],
                eps: f32,
                cos: &[f32],
                sin: &[f32],
            ) {
                rows::qk_norm_rope($new, heads, weight, eps, cos, sin);
            }
        }
    };
}

kernel_set!(portable, "portable", Portable, Portable, F32, Int8,);

#[cfg(target_arch = "x86_64")]
kernel_set!(
    avx2,
    "avx2",
    Avx2<false>,
    // SAFETY: the functions of this table run only where the features were detected.
    unsafe { Avx2::<false>::new() },
    F32,
    Int8,
    #[target_feature(enable = "avx2,fma")]
);

#[cfg(target_arch = "x86_64")]
kernel_set!(
    avx2_vnni,
    "avx2-vnni",
    Avx2<true>,
    // SAFETY: as above.
    unsafe { Avx2::<true>::new() },
    F32,
    Bytes,
    #[target_feature(enable = "avx2,fma,avxvnni")]
);

#[cfg(target_arch = "x86_64")]
kernel_set!(
    avx512,
    "avx512",
    Avx512<false, false>,
    // SAFETY: as above.
    unsafe { Avx512::<false, false>::new() },
    F32,
    Int8,
    #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
);

#[cfg(target_arch = "x86_64")]
kernel_set!(
    avx512_vnni,
    "avx512-vnni",
    Avx512<true, false>,
    // SAFETY: as above.
    unsafe { Avx512::<true, false>::new() },
    F32,
    Bytes,
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma")]
);

#[cfg(target_arch = "x86_64")]
kernel_set!(
    avx512_bf16,
    "avx512-bf16",
    Avx512<true, true>,
    // SAFETY: as above.
    unsafe { Avx512::<true, true>::new() },
    Bf16,
    Bytes,
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16,avx512vnni,avx2,fma")]
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_is_found_by_its_name() {
        for set in Kernels::all() {
            assert!(std::ptr::eq(Kernels::named(set.name).unwrap(), set));
        }
    }

    #[test]
    fn fastest_set_has_bf16_products_only_where_they_are_fast() {
        let (fastest, last) = (Kernels::fastest(), Kernels::available().last().unwrap());
        let passed_over = last.bf16_weights == Arithmetic::Bf16 && !has_fast_bf16();
        assert_eq!(fastest.name == last.name, !passed_over);
        assert!(has_fast_bf16() || fastest.bf16_weights == Arithmetic::F32);
        let int8 = (fastest.int8_weights, last.int8_weights);
        assert_eq!(int8.0, int8.1, "{} and {}", fastest.name, last.name);
    }

    #[test]
    fn unknown_set_is_an_error_that_lists_the_sets_of_this_cpu() {
        let error = Kernels::named("avx1024").unwrap_err();
        let names: Vec<_> = Kernels::all().map(|set| set.name).collect();
        let expected = format!(
            "QWEN3_EMBED_KERNELS is `avx1024`, which is not a kernel set of this CPU: expected {}",
            names.join(", ")
        );
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn emulated_set_rounds_as_avx512_bf16_does() {
        let emulated = Kernels::emulated();
        assert_eq!(emulated.bf16_weights, Arithmetic::Bf16);
        assert_eq!(emulated.int8_weights, Arithmetic::Bytes);
        assert!(Kernels::available().iter().all(|set| set.name != emulated.name));
    }
}
