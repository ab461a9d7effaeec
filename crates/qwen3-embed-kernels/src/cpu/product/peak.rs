//! What a processor can do at most.

use std::hint::black_box;

use crate::cpu::activations::Arithmetic;
use crate::cpu::simd::Simd;

/// Operations of a processor that does nothing but a product's arithmetic: those of a tile of
/// registers, `n` times each. Returns a value that depends on all of them.
#[inline(always)]
pub(in crate::cpu) fn multiply_adds<S: Simd>(s: S, n: usize, arithmetic: Arithmetic) -> f32 {
    // Values that the compiler does not know, and another one in each register, so that it can
    // neither compute the result beforehand nor merge the registers.
    let start = black_box([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1]);
    let mut sums = [s.splat(0.0); 12];
    for (sum, start) in sums.iter_mut().zip(start) {
        *sum = s.splat(start);
    }
    let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(1e-3)));
    match arithmetic {
        Arithmetic::F32 => {
            for _ in 0..n {
                for sum in &mut sums {
                    *sum = s.mul_add(*sum, a, b);
                }
            }
        }
        Arithmetic::Bf16 => {
            for _ in 0..n {
                for sum in &mut sums {
                    *sum = s.dot_pairs(a, b, *sum);
                }
            }
        }
        Arithmetic::Int8 | Arithmetic::Bytes | Arithmetic::Blocks => {
            return whole_products(s, n, arithmetic);
        }
    }
    let mut total = s.splat(0.0);
    for sum in sums {
        total = s.add(total, sum);
    }
    s.sum(total)
}

/// As [`multiply_adds`], with quads of bytes or pairs of 16 bits.
#[inline(always)]
fn whole_products<S: Simd>(s: S, n: usize, arithmetic: Arithmetic) -> f32 {
    let pairs = black_box([[1i16, 2], [3, 5], [7, 11], [13, 17], [19, 23], [29, 31]]);
    let mut sums = [s.no_products(); 12];
    for (i, sum) in sums.iter_mut().enumerate() {
        // SAFETY: there is a pair at each place.
        *sum = unsafe { s.splat_pair(pairs[i % 6].as_ptr()) };
    }
    // Each sum is multiplied with its neighbour, which is another one every time.
    macro_rules! rounds {
        ($product:ident) => {
            for _ in 0..n {
                for i in 0..12 {
                    let (a, b) = (sums[i], sums[(i + 1) % 12]);
                    sums[i] = s.$product(a, b, a);
                }
            }
        };
    }
    match arithmetic {
        Arithmetic::Blocks => rounds!(add_few),
        Arithmetic::Bytes => rounds!(add_quad_products),
        _ => rounds!(add_pair_products),
    }
    let mut total = s.splat(0.0);
    for sum in sums {
        total = s.add(total, s.float(sum));
    }
    s.sum(total)
}
