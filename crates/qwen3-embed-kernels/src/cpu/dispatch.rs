//! The kernel sets: which of them this CPU can run, and which one is used.
//!
//! Only this file detects which instructions the CPU has. A new kernel set needs an implementation of the operations in
//! `simd`, and a line in [`instruction_sets!`] and in [`Kernels::available`] below.

use std::env;
use std::hint::black_box;
use std::sync::LazyLock;
use std::time::Instant;

use half::bf16;

use super::arithmetic::{Arithmetic, MultiplyAdds, WideActivations};
use super::scalar::Scalar;
#[cfg(target_arch = "aarch64")]
use super::simd::Neon;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{MATRIX_ROW_BYTES, Portable, Simd, SimdOp, TileSums};

/// The kernels of one instruction set, which this CPU has.
///
/// Only the functions below return a `Kernels`, and only for instruction sets that the CPU has. So a value proves that
/// the CPU has the instructions, and running a kernel with them is safe.
#[derive(Debug)]
pub struct Kernels {
    /// The name of the set: a value of [`Kernels::VARIABLE`].
    pub name: &'static str,
    /// The fastest arithmetic for bf16 weights: [`F32`](Arithmetic::F32) or [`Bf16`](Arithmetic::Bf16).
    pub bf16_weights: Arithmetic,
    /// The fastest arithmetic for 8-bit weights: [`Int8`](Arithmetic::Int8) or [`Bytes`](Arithmetic::Bytes).
    pub int8_weights: Arithmetic,
    /// f32 values in a register. A panel has twice as many columns.
    pub(super) lanes: usize,
    /// Rows of the largest tile of a matrix multiplication.
    pub(super) tile_rows: usize,
    /// Values of `k` in a step of a matrix multiplication in bf16.
    pub(super) bf16_depth: usize,
    /// The offset of weights in the format `bytes`.
    pub(super) weight_offset: u8,
    instructions: InstructionSet,
}

/// [`Kernels::VARIABLE`] names a kernel set that does not exist or that this CPU cannot run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is `{got}`, which is not a kernel set of this CPU: expected {}",
    Kernels::VARIABLE,
    available.join(", ")
)]
pub struct UnknownKernels {
    /// The value of the variable.
    pub got: String,
    /// The names of the sets that this CPU can run.
    pub available: Vec<&'static str>,
}

impl Kernels {
    /// The environment variable that chooses the kernel set. If it is not set or empty, the fastest set that the CPU
    /// can run is used. This is the last set of the table whose instructions the CPU has, with two exceptions: the
    /// emulated sets are never chosen, and `avx512-bf16` is chosen only on CPUs of AMD, because CPUs of Intel take longer
    /// for AVX-512 products in bf16 than for products in f32. A program reads the variable once.
    ///
    /// | value | instructions | bf16 weights | 8-bit weights |
    /// |---|---|---|---|
    /// | `portable` | only those of every CPU of the architecture | f32 products | 16-bit activations |
    ///
    /// On x86-64:
    ///
    /// | value | instructions | bf16 weights | 8-bit weights |
    /// |---|---|---|---|
    /// | `avx2` | AVX2, FMA, F16C | f32 products | 16-bit activations |
    /// | `avx2-vnni` | AVX2, FMA, F16C, AVX-VNNI | f32 products | 8-bit activations |
    /// | `avx512` | AVX-512 F and BW | f32 products | 16-bit activations |
    /// | `avx512-vnni` | also AVX-512 VNNI | f32 products | 8-bit activations |
    /// | `avx512-bf16` | also AVX-512 BF16 | bf16 products | 8-bit activations |
    /// | `avx512-amx` | also AMX for bf16 and bytes, on Linux | bf16 products | 8-bit activations |
    ///
    /// On 64-bit ARM:
    ///
    /// | value | instructions | bf16 weights | 8-bit weights |
    /// |---|---|---|---|
    /// | `neon` | NEON, which every CPU has | f32 products | 16-bit activations |
    /// | `neon-dot` | also `dotprod` | f32 products | 8-bit activations |
    /// | `neon-bf16` | also `bf16` | bf16 products | 8-bit activations |
    ///
    /// On every CPU:
    ///
    /// | value | instructions | bf16 weights | 8-bit weights |
    /// |---|---|---|---|
    /// | `emulate-avx512-bf16` | as `avx2` or `neon`, or as `portable` without these | bf16 products | 8-bit activations |
    /// | `emulate-avx512-amx` | as `avx2`, on x86-64 only | bf16 products | 8-bit activations |
    ///
    /// The emulated sets round values, and order additions, as the sets `avx512-bf16` and `avx512-amx` do. So the
    /// arithmetic of these sets can be tested on other CPUs. Emulated sets are slow, and are used only if the variable
    /// names them.
    pub const VARIABLE: &str = "QWEN3_EMBED_KERNELS";

    /// The sets whose instructions this CPU has. Sets with more instructions come later.
    pub fn available() -> &'static [Kernels] {
        static AVAILABLE: LazyLock<Vec<Kernels>> = LazyLock::new(|| {
            use Arithmetic::{Bf16, Bytes, F32, Int8};
            let mut sets = vec![Kernels::new("portable", InstructionSet::Portable, F32, Int8)];
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                let mut push =
                    |name, set, bf16, int8| sets.push(Kernels::new(name, set, bf16, int8));
                push("avx2", InstructionSet::Avx2, F32, Int8);
                if is_x86_feature_detected!("avxvnni") {
                    push("avx2-vnni", InstructionSet::Avx2Vnni, F32, Bytes);
                }
                if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                    push("avx512", InstructionSet::Avx512, F32, Int8);
                    if is_x86_feature_detected!("avx512vnni") {
                        push("avx512-vnni", InstructionSet::Avx512Vnni, F32, Bytes);
                        if is_x86_feature_detected!("avx512bf16") {
                            push("avx512-bf16", InstructionSet::Avx512Bf16, Bf16, Bytes);
                            if has_amx() {
                                push("avx512-amx", InstructionSet::Avx512Amx, Bf16, Bytes);
                            }
                        }
                    }
                }
            }
            #[cfg(target_arch = "aarch64")]
            if std::arch::is_aarch64_feature_detected!("neon") {
                let mut push =
                    |name, set, bf16, int8| sets.push(Kernels::new(name, set, bf16, int8));
                push("neon", InstructionSet::Neon, F32, Int8);
                if std::arch::is_aarch64_feature_detected!("dotprod") {
                    push("neon-dot", InstructionSet::NeonDot, F32, Bytes);
                    if std::arch::is_aarch64_feature_detected!("bf16") {
                        push("neon-bf16", InstructionSet::NeonBf16, Bf16, Bytes);
                    }
                }
            }
            sets
        });
        &AVAILABLE
    }

    /// The sets that compute as `avx512-bf16` and `avx512-amx` do, without their instructions.
    pub fn emulated() -> &'static [Kernels] {
        static EMULATED: LazyLock<Vec<Kernels>> = LazyLock::new(|| {
            let (bf16, int8) = (Arithmetic::Bf16, Arithmetic::Bytes);
            let mut vectors = Kernels::available().iter();
            let base = vectors.find(|set| ["avx2", "neon"].contains(&set.name));
            let base = base.unwrap_or(&Kernels::available()[0]).instructions;
            #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut))]
            let mut sets = vec![Kernels::new("emulate-avx512-bf16", base, bf16, int8)];
            #[cfg(target_arch = "x86_64")]
            if Kernels::available().iter().any(|set| set.name == "avx2") {
                let instructions = InstructionSet::Avx2AsAmx;
                sets.push(Kernels::new("emulate-avx512-amx", instructions, bf16, int8));
            }
            sets
        });
        &EMULATED
    }

    /// All sets that this CPU can run, including the emulated sets: the possible values of [`Kernels::VARIABLE`].
    pub fn all() -> impl Iterator<Item = &'static Kernels> {
        Self::available().iter().chain(Self::emulated())
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

    /// The set that operations use: the [chosen](Self::chosen) set, or the fastest set if the variable names an unknown
    /// set. Loading a model fails in the second case.
    pub fn current() -> &'static Kernels {
        Self::chosen().unwrap_or_else(|_| Self::fastest())
    }

    fn named(name: &str) -> Result<&'static Kernels, UnknownKernels> {
        Self::all().find(|set| set.name == name).ok_or_else(|| UnknownKernels {
            got: name.to_owned(),
            available: Self::all().map(|set| set.name).collect(),
        })
    }

    /// The fastest set that this CPU can run: the last set, unless this set multiplies bf16 with AVX-512 and this CPU
    /// takes longer for such products than for f32 products. The choice depends on the vendor of the CPU and not on a
    /// measurement. With a measurement, the choice, and with it the rounding of results, could change from run to run.
    fn fastest() -> &'static Kernels {
        let is_fast = |set: &&Kernels| {
            set.bf16_weights == Arithmetic::F32 || set.has_matrices() || has_fast_bf16()
        };
        Self::available().iter().rev().find(is_fast).unwrap_or(&Self::available()[0])
    }

    /// How this set stores activations in 16 bits.
    pub(super) fn wide_activations(&self) -> WideActivations {
        match (self.int8_weights, self.bf16_weights) {
            (Arithmetic::Bytes, Arithmetic::F32) => WideActivations::TwoBytes,
            _ => WideActivations::Pairs,
        }
    }

    /// Whether the set multiplies bf16 and bytes with matrix registers.
    fn has_matrices(&self) -> bool {
        self.bf16_depth > bf16::DEPTH
    }

    /// Operations per second of one core in this arithmetic, measured for about a tenth of a second with the
    /// instructions of this set. No kernel of the set can be faster.
    pub fn measured_peak(&self, arithmetic: Arithmetic) -> f64 {
        const N_ROUNDS: usize = 1 << 20;
        // An activation of two bytes takes two products.
        let (arithmetic, share) = match (arithmetic, self.wide_activations()) {
            (Arithmetic::Int8, WideActivations::TwoBytes) => (Arithmetic::Bytes, 0.5),
            _ => (arithmetic, 1.0),
        };
        let mut best = 0f64;
        let begin = Instant::now();
        while begin.elapsed().as_millis() < 100 {
            let op = MultiplyAdds { n_rounds: black_box(N_ROUNDS), arithmetic };
            let start = Instant::now();
            let n_operations = share * self.run(op);
            best = best.max(n_operations / start.elapsed().as_secs_f64());
        }
        best
    }

    /// The set `avx512-amx`, on a CPU with AVX-512 BF16. If the CPU does not have AMX, its instructions are emulated.
    #[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
    pub(super) fn with_amx_in_tests() -> Option<&'static Self> {
        static SET: LazyLock<Option<Kernels>> = LazyLock::new(|| {
            Kernels::available().iter().find(|set| set.name == "avx512-bf16")?;
            if !has_amx() {
                super::simd::amx::emulator::install();
            }
            let (bf16, int8) = (Arithmetic::Bf16, Arithmetic::Bytes);
            Some(Kernels::new("avx512-amx", InstructionSet::Avx512Amx, bf16, int8))
        });
        SET.as_ref()
    }

    /// A kernel set. Call this function only for instructions that this CPU has.
    fn new(
        name: &'static str,
        instructions: InstructionSet,
        bf16_weights: Arithmetic,
        int8_weights: Arithmetic,
    ) -> Self {
        // SAFETY: this function is only called for instruction sets that this CPU has.
        let dimensions = unsafe { instructions.run(Dimensions) };
        let (lanes, tile_rows, bf16_depth, weight_offset) = dimensions;
        Self {
            name,
            bf16_weights,
            int8_weights,
            lanes,
            tile_rows,
            bf16_depth,
            weight_offset,
            instructions,
        }
    }

    /// Runs a kernel with the instructions of this set.
    #[inline]
    pub(super) fn run<O: SimdOp>(&self, op: O) -> O::Output {
        // SAFETY: `new` is only called for instruction sets that this CPU has.
        unsafe { self.instructions.run(op) }
    }
}

/// [`Kernels::lanes`], [`Kernels::tile_rows`], [`Kernels::bf16_depth`] and [`Kernels::weight_offset`].
struct Dimensions;

impl SimdOp for Dimensions {
    type Output = (usize, usize, usize, u8);
    const USES_MATRICES: bool = true;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> (usize, usize, usize, u8) {
        let rows = <S::FloatTile as TileSums<S::V>>::ROWS;
        let depth =
            if S::HAS_MATRICES { MATRIX_ROW_BYTES / size_of::<bf16>() } else { bf16::DEPTH };
        (S::LANES, rows.max(<S::Bf16Tile as TileSums<S::V>>::ROWS), depth, S::WEIGHT_OFFSET)
    }
}

/// Whether the CPU multiplies pairs of bf16 values at twice the rate of f32 values. AMD's CPUs do (Zen 4: 236 and 118
/// GFLOP/s a core). Intel's CPUs multiply bf16 with AMX, and with AVX-512 BF16 at less than half of the rate of f32
/// (5th generation Xeon: 77 and 177 GFLOP/s).
#[cfg(target_arch = "x86_64")]
fn has_fast_bf16() -> bool {
    // `__cpuid` is a safe function in versions of Rust later than the minimum supported version.
    #[allow(unused_unsafe)]
    // SAFETY: every CPU of this architecture has the instruction.
    let vendor = unsafe { std::arch::x86_64::__cpuid(0) };
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

/// Whether the CPU multiplies matrices of bf16 and of bytes with AMX, and the operating system lets this process use the
/// registers for it. Linux does after a process has asked for it.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_amx() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // Bits of edx: AMX-BF16, AMX-TILE and AMX-INT8.
    const NEEDED: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    #[allow(unused_unsafe)]
    // SAFETY: every CPU of this architecture has the instruction, and every CPU with AVX-512 has this leaf.
    let leaf = unsafe { std::arch::x86_64::__cpuid_count(7, 0) };
    // SAFETY: this system call only changes which registers the process may use.
    let ask = || unsafe {
        libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0
    };
    leaf.edx & NEEDED == NEEDED && ask()
}

/// AMX is used on Linux only.
#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn has_amx() -> bool {
    false
}

/// CPUs of other architectures are not assumed to. The instructions of `neon-bf16` have the rate of f32 products.
#[cfg(not(target_arch = "x86_64"))]
fn has_fast_bf16() -> bool {
    false
}

/// Defines the enum `InstructionSet`. Each line has a name, an architecture, a type of `simd` and an expression that
/// constructs it, and target features. A kernel is compiled for a set by being inlined into a function that enables the
/// features. A line with `else` is a set with matrix registers, and names the set that runs the kernels that do not use
/// them. AMX is not among the features, because its instructions are written in assembly.
macro_rules! instruction_sets {
    ($($set:ident: $arch:literal, $simd:ty, $new:expr, #[$feature:meta] $(else $other:ident)?;)*) => {
        #[derive(Debug, Clone, Copy)]
        enum InstructionSet {
            Portable,
            $(
                #[cfg(target_arch = $arch)]
                $set,
            )*
        }

        impl InstructionSet {
            /// Runs a kernel.
            ///
            /// # Safety
            ///
            /// The CPU has the instructions.
            #[inline]
            unsafe fn run<O: SimdOp>(self, op: O) -> O::Output {
                match self {
                    Self::Portable => op.run(Portable),
                    $(
                        #[cfg(target_arch = $arch)]
                        Self::$set => {
                            #[expect(non_snake_case, reason = "a disassembly shows the set")]
                            #[$feature]
                            unsafe fn $set<O: SimdOp>(op: O) -> O::Output {
                                // SAFETY: this function is only called where the CPU has the features.
                                op.run::<$simd>(unsafe { $new })
                            }
                            $(
                                if !O::USES_MATRICES {
                                    // SAFETY: the set has all instructions of the other set.
                                    return unsafe { Self::$other.run(op) };
                                }
                            )?
                            // SAFETY: the caller's promise.
                            unsafe { $set(op) }
                        }
                    )*
                }
            }
        }
    };
}

instruction_sets! {
    Avx2: "x86_64", Avx2<false, false>, Avx2::new(), #[target_feature(enable = "avx2,fma,f16c")];
    Avx2AsAmx: "x86_64", Avx2<false, true>, Avx2::new(),
        #[target_feature(enable = "avx2,fma,f16c")] else Avx2;
    Avx2Vnni: "x86_64", Avx2<true, false>, Avx2::new(),
        #[target_feature(enable = "avx2,fma,f16c,avxvnni")];
    Avx512: "x86_64", Avx512<false, false, false>, Avx512::new(),
        #[target_feature(enable = "avx512f,avx512bw,avx2,fma")];
    Avx512Vnni: "x86_64", Avx512<true, false, false>, Avx512::new(),
        #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma")];
    Avx512Bf16: "x86_64", Avx512<true, true, false>, Avx512::new(),
        #[target_feature(enable = "avx512f,avx512bw,avx512bf16,avx512vnni,avx2,fma")];
    Avx512Amx: "x86_64", Avx512<true, true, true>, Avx512::new(),
        #[target_feature(enable = "avx512f,avx512bw,avx512bf16,avx512vnni,avx2,fma")]
        else Avx512Bf16;
    Neon: "aarch64", Neon<false, false>, Neon::new(), #[target_feature(enable = "neon")];
    NeonDot: "aarch64", Neon<true, false>, Neon::new(), #[target_feature(enable = "neon,dotprod")];
    NeonBf16: "aarch64", Neon<true, true>, Neon::new(),
        #[target_feature(enable = "neon,dotprod,bf16")];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_set_by_its_name() {
        for set in Kernels::all() {
            assert!(std::ptr::eq(Kernels::named(set.name).unwrap(), set));
        }
    }

    #[test]
    fn chooses_bf16_products_only_on_cpus_where_they_are_fast() {
        let (fastest, last) = (Kernels::fastest(), Kernels::available().last().unwrap());
        let is_fast = has_fast_bf16() || last.has_matrices();
        let passed_over = last.bf16_weights == Arithmetic::Bf16 && !is_fast;
        assert_eq!(fastest.name == last.name, !passed_over);
        assert!(is_fast || fastest.bf16_weights == Arithmetic::F32);
        let int8 = (fastest.int8_weights, last.int8_weights);
        assert_eq!(int8.0, int8.1, "{} and {}", fastest.name, last.name);
    }

    #[test]
    fn error_for_unknown_set_lists_the_sets_of_this_cpu() {
        let error = Kernels::named("avx1024").unwrap_err();
        let names: Vec<_> = Kernels::all().map(|set| set.name).collect();
        let expected = format!(
            "QWEN3_EMBED_KERNELS is `avx1024`, which is not a kernel set of this CPU: expected {}",
            names.join(", ")
        );
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn emulated_sets_have_the_arithmetic_of_avx512_bf16() {
        for emulated in Kernels::emulated() {
            assert_eq!(emulated.bf16_weights, Arithmetic::Bf16);
            assert_eq!(emulated.int8_weights, Arithmetic::Bytes);
            assert!(Kernels::available().iter().all(|set| set.name != emulated.name));
        }
    }
}
