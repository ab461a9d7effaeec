//! Products with weights in 8 bits, of every kernel set, against the f64 reference.
//!
//! Rounding a weight to a multiple of its group's scale is off by at most half of that, which is the
//! group's largest magnitude over 254; rounding an activation, by its row's largest over 65,534. These
//! errors times what they are multiplied with, and the roundings of the sums in f32, bound the result's.
#![allow(clippy::unwrap_used)]

use qwen3_embed_kernels::cpu::{Epilogue, Kernels, Layout, PackedWeight, Quantised, Rows, RowsMut};
use qwen3_embed_kernels::reference;
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// Values that share a scale.
const GROUP: usize = 32;

/// Relative error of `n` roundings in f32.
fn gamma(n: usize) -> f64 {
    let nu = n as f64 * f64::from(f32::EPSILON) / 2.0;
    nu / (1.0 - nu)
}

fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-2.0..2.0)).collect()
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

fn largest(values: &[f32]) -> f64 {
    values.iter().fold(0f64, |largest, v| largest.max(f64::from(v.abs())))
}

fn pack(weight: &[f32], n_in: usize, layout: Layout, precise: &[usize]) -> PackedWeight {
    let n_out = weight.len() / n_in;
    PackedWeight::pack_int8(n_out, n_in, layout, precise, |o, row| {
        row.copy_from_slice(&weight[o * n_in..][..n_in]);
    })
}

/// The product of rows that begin one element into their allocation, with a gap of NaN behind each.
fn multiply(weight: &PackedWeight, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let (n_in, n_out) = (weight.n_in(), weight.n_columns());
    let n_rows = x.len() / n_in;
    let stride = n_in + 3;
    let mut padded = vec![f32::NAN; 1 + n_rows * stride];
    for (out, row) in padded[1..].chunks_exact_mut(stride).zip(x.chunks_exact(n_in)) {
        out[..n_in].copy_from_slice(row);
    }
    let mut out = vec![f32::NAN; n_rows * n_out];
    let mut quantised = Quantised::default();
    // What an earlier and larger product left must not matter.
    let ones = vec![f32::NAN; (n_rows + 3) * n_in];
    quantised.quantise(weight, Rows::new(ones.as_slice(), [n_rows + 3, n_in], n_in));
    let x = quantised.quantise(weight, Rows::new(&padded[1..], [n_rows, n_in], stride));
    let rows = &mut RowsMut::new(out.as_mut_slice(), [n_rows, n_out], n_out);
    weight.multiply(x, bias, rows, Epilogue::Store);
    out
}

fn assert_close(got: &[f32], expected: &[f64], bound: impl Fn(usize) -> f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let (error, bound) = ((f64::from(got) - expected).abs(), bound(i));
        assert!(error <= bound, "{what}, {i}: {got} for {expected}, {error:e} > {bound:e}");
    }
}

/// Shapes [T, I, O] around the edges of tiles, groups and panels.
fn shapes() -> Vec<[usize; 3]> {
    let mut shapes = Vec::new();
    for rows in [1, 2, 3, 5, 6, 7, 11, 12, 13, 25] {
        for n_out in [1, 7, 8, 15, 16, 17, 33, 130] {
            shapes.push([rows, 70, n_out]);
        }
    }
    shapes.extend([[3, 1, 5], [3, 31, 5], [3, 32, 5], [3, 33, 5], [200, 64, 48], [2, 1024, 40]]);
    shapes
}

/// Whole numbers that need no rounding: each row's largest activation is 32,767 and each group's
/// largest weight 127 times a power of two, so that all scales are powers of two.
#[test]
fn what_quantisation_keeps_is_multiplied_exactly() {
    for [rows, n_in, n_out] in shapes() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut x: Vec<f32> =
            (0..rows * n_in).map(|_| rng.random_range(-32767i32..=32767) as f32).collect();
        x.chunks_exact_mut(n_in).for_each(|row| row[0] = -32767.0);
        let mut weight = Vec::new();
        for _ in 0..n_out {
            for start in (0..n_in).step_by(GROUP) {
                let scale = f64::from(rng.random_range(-20..20)).exp2() as f32;
                let n = GROUP.min(n_in - start);
                let at = rng.random_range(0..n);
                weight.extend((0..n).map(|i| {
                    scale * if i == at { 127.0 } else { rng.random_range(-127i32..=127) as f32 }
                }));
            }
        }
        let bias = random(3, n_out);
        let (x64, w64) = (widened(&x), widened(&weight));
        let expected = reference::linear(&x64, &w64, Some(&widened(&bias)), n_in);
        let sizes = |v: &[f64]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
        let sums =
            reference::linear(&sizes(&x64), &sizes(&w64), Some(&sizes(&widened(&bias))), n_in);
        // Each group's sum is rounded once when it becomes f32, and once when it is added.
        let roundings = gamma(2 * n_in.div_ceil(GROUP) + 2);
        for kernels in Kernels::available() {
            let packed = pack(&weight, n_in, Layout::Plain, &[]).repacked(kernels);
            let got = multiply(&packed, &x, Some(&bias));
            let what = format!("{}, {rows} × {n_in} × {n_out}", kernels.name);
            assert_close(&got, &expected, |i| roundings * sums[i], &what);
            // The same weights from integers and scales.
            let packed = from_q8(&weight, n_in).repacked(kernels);
            assert_eq!(multiply(&packed, &x, Some(&bias)), got, "{what}");
        }
    }
}

/// A weight whose groups' scales are powers of two, from its integers and scales.
fn from_q8(weight: &[f32], n_in: usize) -> PackedWeight {
    PackedWeight::pack_q8(weight.len() / n_in, n_in, Layout::Plain, |o, values, scales| {
        let row = &weight[o * n_in..][..n_in];
        for ((row, values), scale) in
            row.chunks(GROUP).zip(values.chunks_mut(GROUP)).zip(scales.iter_mut())
        {
            *scale = (largest(row) / 127.0) as f32;
            values.iter_mut().zip(row).for_each(|(value, w)| *value = (w / *scale) as i8);
        }
    })
}

/// The largest error that rounding the operands makes of each element, and the roundings of the sums.
fn bounds(x: &[f32], weight: &[f32], n_in: usize, precise: &[usize]) -> Vec<f64> {
    let mut bounds = Vec::new();
    for x in x.chunks_exact(n_in) {
        let dx = largest(x) / 65_534.0;
        for w in weight.chunks_exact(n_in) {
            let mut bound = 0.0;
            let mut sum = 0.0;
            for (k, (&x, &w_k)) in x.iter().zip(w).enumerate() {
                let group = &w[k / GROUP * GROUP..n_in.min((k / GROUP + 1) * GROUP)];
                let first = largest(group) / 254.0;
                // What is left is at most that, and is rounded to a multiple of its largest over 127.
                let dw = if precise.contains(&k) { first / 254.0 } else { first };
                let (x, w) = (f64::from(x.abs()), f64::from(w_k.abs()));
                bound += x * dw + dx * (w + dw);
                sum += (x + dx) * (w + first + dw);
            }
            bounds.push(bound + gamma(2 * n_in.div_ceil(GROUP) + 8) * sum);
        }
    }
    bounds
}

#[test]
fn random_weights_are_within_what_rounding_them_costs() {
    for [rows, n_in, n_out] in shapes() {
        let (x, weight) = (random(1, rows * n_in), random(2, n_out * n_in));
        let expected = reference::linear(&widened(&x), &widened(&weight), None, n_in);
        for precise in [vec![], vec![n_in - 1], (0..n_in.min(40)).rev().collect()] {
            let bounds = bounds(&x, &weight, n_in, &precise);
            for kernels in Kernels::available() {
                let packed = pack(&weight, n_in, Layout::Plain, &precise).repacked(kernels);
                let what = format!("{}, {rows} × {n_in} × {n_out}", kernels.name);
                assert_close(&multiply(&packed, &x, None), &expected, |i| bounds[i], &what);
            }
        }
    }
}

/// Features with all of the activations' weight: a thousand times closer when they are kept so.
#[test]
fn precise_features_have_sixteen_bits() {
    let n_in = 300;
    let precise = [7, 40, 41, 299];
    let mut x = vec![0f32; n_in];
    precise.iter().zip(random(1, 4)).for_each(|(&k, value)| x[k] = 100.0 * value);
    let weight = random(2, 64 * n_in);
    let expected = reference::linear(&widened(&x), &widened(&weight), None, n_in);
    for kernels in Kernels::available() {
        let error = |precise: &[usize]| {
            let packed = pack(&weight, n_in, Layout::Plain, precise).repacked(kernels);
            let got = multiply(&packed, &x, None);
            let errors = got.iter().zip(&expected).map(|(&g, e)| (f64::from(g) - e).abs());
            errors.fold(0.0, f64::max)
        };
        let (plain, kept) = (error(&[]), error(&precise));
        assert!(kept < plain / 50.0, "{}: {kept:e}, without {plain:e}", kernels.name);
    }
}

#[test]
fn gates_and_ups_share_panels() {
    for [rows, n_in, ffn] in [[1, 9, 1], [3, 40, 7], [13, 33, 17], [6, 64, 100]] {
        let (x, weight) = (random(1, rows * n_in), random(2, 2 * ffn * n_in));
        let gate_up = reference::linear(&widened(&x), &widened(&weight), None, n_in);
        let expected = reference::swiglu(&gate_up, ffn);
        let bounds = bounds(&x, &weight, n_in, &[]);
        for kernels in Kernels::available() {
            let packed = pack(&weight, n_in, Layout::SwiGlu, &[]).repacked(kernels);
            // SiLU's slope is at most 1.1, and an exponential and what is around it eight roundings.
            let bound = |i: usize| {
                let at = i / ffn * 2 * ffn + i % ffn;
                let (gate, up) = (gate_up[at].abs(), gate_up[at + ffn].abs());
                let (d_gate, d_up) = (bounds[at], bounds[at + ffn]);
                1.1 * d_gate * (up + d_up) + gate * d_up + gamma(8) * gate * up
            };
            assert_close(&multiply(&packed, &x, None), &expected, bound, kernels.name);
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_other_rows() {
    let (n_in, n_out) = (70, 90);
    let (x, weight) = (random(1, 400 * n_in), random(2, n_out * n_in));
    for kernels in Kernels::available() {
        let packed = pack(&weight, n_in, Layout::Plain, &[3]).repacked(kernels);
        let all = multiply(&packed, &x, None);
        for rows in [0..1, 1..3, 0..6, 5..18, 3..200, 100..393] {
            let got = multiply(&packed, &x[rows.start * n_in..rows.end * n_in], None);
            let expected = &all[rows.start * n_out..rows.end * n_out];
            assert!(got == expected, "{}, rows {rows:?}", kernels.name);
        }
    }
}

#[test]
fn zeros_stay_zero_and_what_is_not_finite_is_seen() {
    let n_in = 40;
    let finite = random(2, 8 * n_in);
    for kernels in Kernels::available() {
        let packed = pack(&finite, n_in, Layout::Plain, &[]).repacked(kernels);
        assert_eq!(multiply(&packed, &vec![0.0; n_in], None), [0.0; 8], "{}", kernels.name);
        // Smaller than any scale: as good as zero, and no division by it.
        let tiny = vec![f32::from_bits(1); n_in];
        assert!(multiply(&packed, &tiny, None).iter().all(|y| y.abs() < 1e-30));
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = random(1, 2 * n_in);
            x[33] = value;
            let got = multiply(&packed, &x, None);
            assert!(got[..8].iter().all(|y| !y.is_finite()), "{}: {value}", kernels.name);
            assert!(got[8..].iter().all(|y| y.is_finite()), "the other row");
            let mut weight = finite.clone();
            weight[n_in + 1] = value;
            let damaged = pack(&weight, n_in, Layout::Plain, &[]).repacked(kernels);
            let got = multiply(&damaged, &random(1, n_in), None);
            assert!(!got[1].is_finite() && got[0].is_finite(), "{}: {value}", kernels.name);
        }
        let tiny: Vec<f32> = vec![f32::MIN_POSITIVE; 8 * n_in];
        let tiny = pack(&tiny, n_in, Layout::Plain, &[1]).repacked(kernels);
        assert!(multiply(&tiny, &random(1, n_in), None).iter().all(|y| y.abs() < 1e-30));
    }
}

#[test]
fn empty_operands_are_computed() {
    for kernels in Kernels::available() {
        for [rows, n_in, n_out] in [[0, 3, 5], [2, 3, 0]] {
            let weight = PackedWeight::pack_int8(n_out, n_in, Layout::Plain, &[], |_, _| {});
            let got = multiply(&weight.repacked(kernels), &vec![1.0; rows * n_in], None);
            assert!(got.iter().all(|&y| y == 0.0), "{rows} × {n_in} × {n_out}");
        }
    }
}
