//! The kernel sets, and which of them this processor can run.

use std::hint::black_box;
use std::sync::LazyLock;
use std::time::Instant;

use half::bf16;

use super::attention::{self, Block};
use super::linear::{self, Call};
use super::simd::{Portable, Simd};
use super::{product, rows};

/// The kernels of one instruction set, which this processor has: there is no other way to come by a
/// table than [`Kernels::available`]. That makes it safe to call the functions in it.
#[derive(Debug)]
pub struct Kernels {
    /// The instruction set's name.
    pub name: &'static str,
    /// f32 values in a register; a panel has twice as many columns.
    pub(super) lanes: usize,
    /// Rows of a tile.
    pub(super) rows: usize,
    pub(super) linear_f32: unsafe fn(&Call<'_>, &[f32]),
    pub(super) linear_bf16: unsafe fn(&Call<'_>, &[bf16]),
    pub(super) attention: unsafe fn(&Block<'_>),
    pub(super) rms_norm: RmsNorm,
    pub(super) qk_norm_rope: QkNormRope,
    multiply_adds: unsafe fn(usize) -> f32,
}

/// Of a row, with its weight and eps, into another.
type RmsNorm = unsafe fn(&[f32], &[f32], f32, &mut [f32]);

/// Of a token's heads, with their weight, eps, cosines and sines.
type QkNormRope = unsafe fn(&mut [f32], &[f32], f32, &[f32], &[f32]);

impl Kernels {
    /// The sets that this processor can run, the fastest last.
    pub fn available() -> &'static [Kernels] {
        static AVAILABLE: LazyLock<Vec<Kernels>> = LazyLock::new(|| {
            let mut sets = vec![portable::table()];
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                sets.push(avx2::table());
            }
            sets
        });
        &AVAILABLE
    }

    /// The fastest set that this processor can run.
    pub fn best() -> &'static Kernels {
        let available = Self::available();
        &available[available.len() - 1]
    }

    /// Floating-point operations that one core can do in a second with this set's multiply-adds,
    /// measured for about a tenth of a second: the limit of every kernel of the set.
    pub fn measured_peak(&self) -> f64 {
        const ROUNDS: usize = 1 << 20;
        // A multiply-add is two operations; there are twelve registers of them in a round.
        let operations = (2 * 12 * self.lanes * ROUNDS) as f64;
        let mut best = 0f64;
        let begin = Instant::now();
        while begin.elapsed().as_millis() < 100 {
            let start = Instant::now();
            // SAFETY: the table's instructions are there, as for every table.
            black_box(unsafe { (self.multiply_adds)(black_box(ROUNDS)) });
            best = best.max(operations / start.elapsed().as_secs_f64());
        }
        best
    }
}

/// A module with the table of one instruction set: every kernel inlined into a function that enables
/// the set's features.
macro_rules! kernel_set {
    ($module:ident, $name:literal, $simd:ty, $new:expr, $(#[$feature:meta])?) => {
        mod $module {
            use super::*;

            /// The table. It must only be made where the features were detected.
            pub(super) fn table() -> Kernels {
                Kernels {
                    name: $name,
                    lanes: <$simd>::LANES,
                    rows: <$simd>::ROWS,
                    linear_f32,
                    linear_bf16,
                    attention: attend,
                    rms_norm,
                    qk_norm_rope,
                    multiply_adds,
                }
            }

            $(#[$feature])?
            unsafe fn linear_f32(call: &Call<'_>, panels: &[f32]) {
                linear::multiply($new, call, panels);
            }

            $(#[$feature])?
            unsafe fn linear_bf16(call: &Call<'_>, panels: &[bf16]) {
                linear::multiply($new, call, panels);
            }

            $(#[$feature])?
            unsafe fn multiply_adds(n: usize) -> f32 {
                product::multiply_adds($new, n)
            }

            $(#[$feature])?
            unsafe fn attend(block: &Block<'_>) {
                attention::attend($new, block);
            }

            $(#[$feature])?
            unsafe fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
                rows::rms_norm($new, x, weight, eps, out);
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

kernel_set!(portable, "portable", Portable, Portable,);

#[cfg(target_arch = "x86_64")]
kernel_set!(
    avx2,
    "AVX2 and FMA",
    super::super::simd::Avx2,
    // SAFETY: the functions of this table run only where the features were detected.
    unsafe { super::super::simd::Avx2::new() },
    #[target_feature(enable = "avx2,fma")]
);
