//! Matrix multiplications with weights in 8 bits, for every kernel set, against the f64 reference.
//!
//! A scale is the largest magnitude of a group divided by 127, so the error of a rounded weight, half of the scale, is
//! at most this magnitude divided by 254. The same holds for an activation in 8 bits. The error of an activation in 16
//! bits is at most the largest magnitude of its row divided by 65,534, or with two bytes that of its group divided by
//! 65,278. The bound of a result is the sum of these errors times the other operand, plus the rounding errors of the sums
//! in f32.
#![allow(clippy::unwrap_used)]

use half::bf16;
use qwen3_embed_kernels::cpu::{
    BYTE_GROUP, Epilogue, Kernels, Layout, PackedWeight, QuantizeBuffer, Rows, RowsMut,
    WideActivations::{Pairs, TwoBytes},
    rotate,
};
use qwen3_embed_kernels::reference;
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// The type of the activations that are multiplied with weights in 8 bits.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Activations in 16 bits, for CPUs that do not multiply bytes.
    Int8,
    /// Activations in 16 bits, for CPUs that multiply bytes.
    TwoBytes,
    /// Activations in 8 bits.
    Bytes,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Int8, Self::TwoBytes, Self::Bytes];

    /// The number of weights that share a scale.
    fn group(self) -> usize {
        if self == Self::Bytes { BYTE_GROUP } else { 32 }
    }

    /// The number of activations of a row of `n_in` that share a scale, and the largest integer.
    fn activations(self, n_in: usize) -> (usize, i32) {
        match self {
            Self::Int8 => (n_in, 32_767),
            Self::TwoBytes => (32, 32_639),
            Self::Bytes => (BYTE_GROUP, 127),
        }
    }

    fn pack(self, weight: &[f32], n_in: usize, layout: Layout) -> PackedWeight {
        self.pack_precise(weight, n_in, layout, &[])
    }

    /// Packs a weight. Activations in 8 bits have no precise features.
    fn pack_precise(
        self,
        weight: &[f32],
        n_in: usize,
        layout: Layout,
        precise: &[usize],
    ) -> PackedWeight {
        let n_out = weight.len() / n_in;
        let read_row = |o: usize, row: &mut [f32]| row.copy_from_slice(&weight[o * n_in..][..n_in]);
        match self {
            Self::Int8 => {
                PackedWeight::pack_int8_for(Pairs, n_out, n_in, layout, precise, read_row)
            }
            Self::TwoBytes => {
                PackedWeight::pack_int8_for(TwoBytes, n_out, n_in, layout, precise, read_row)
            }
            Self::Bytes => PackedWeight::pack_bytes(n_out, n_in, layout, false, read_row),
        }
    }

    /// Packs a weight for activations in 16 bits from its integers and scales. The scales are powers of two.
    fn pack_q8(self, weight: &[f32], n_in: usize) -> PackedWeight {
        let n_out = weight.len() / n_in;
        let read_row = |o: usize, values: &mut [i8], scales: &mut [f32]| {
            let row = &weight[o * n_in..][..n_in];
            let groups = row.chunks(self.group()).zip(values.chunks_mut(self.group()));
            for ((row, values), scale) in groups.zip(scales.iter_mut()) {
                *scale = (largest(row) / 127.0) as f32;
                values.iter_mut().zip(row).for_each(|(value, w)| *value = (w / *scale) as i8);
            }
        };
        let wide = if self == Self::Int8 { Pairs } else { TwoBytes };
        PackedWeight::pack_q8_for(wide, n_out, n_in, Layout::Plain, read_row)
    }

    /// All combinations with kernel sets.
    fn with_kernels() -> impl Iterator<Item = (Self, &'static Kernels)> {
        Self::ALL.into_iter().flat_map(|kind| Kernels::all().map(move |k| (kind, k)))
    }
}

/// The bound of the relative error of `n` roundings in f32.
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

/// Multiplies rows that begin one element into their allocation and are followed by gaps of NaN.
fn multiply(weight: &PackedWeight, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let (n_in, n_out) = (weight.n_in(), weight.n_columns());
    let n_rows = x.len() / n_in;
    let stride = n_in + 3;
    let mut padded = vec![f32::NAN; 1 + n_rows * stride];
    for (out, row) in padded[1..].chunks_exact_mut(stride).zip(x.chunks_exact(n_in)) {
        out[..n_in].copy_from_slice(row);
    }
    let mut out = vec![f32::NAN; n_rows * n_out];
    let mut buffer = QuantizeBuffer::default();
    // An earlier, larger multiplication leaves NaN in the buffer, which must not matter.
    let nans = vec![f32::NAN; (n_rows + 3) * n_in];
    weight.quantize(Rows::new(nans.as_slice(), [n_rows + 3, n_in], n_in), &mut buffer);
    let x = weight.quantize(Rows::new(&padded[1..], [n_rows, n_in], stride), &mut buffer);
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
    shapes.extend([1, 31, 32, 33, 63, 64, 65, 127, 128, 129].map(|n_in| [3, n_in, 5]));
    shapes.extend([[200, 64, 48], [2, 1024, 40]]);
    shapes
}

/// Rows of `n` integers up to `largest`, times a power of two for each group. Each group has an integer of the largest
/// magnitude, so quantizing the rows loses nothing.
fn quantizable(seed: u64, [n_rows, n]: [usize; 2], group: usize, largest: i32) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut values = Vec::with_capacity(n_rows * n);
    for _ in 0..n_rows {
        for start in (0..n).step_by(group) {
            let scale = f64::from(rng.random_range(-20..20)).exp2() as f32;
            let n = group.min(n - start);
            let at = rng.random_range(0..n);
            values.extend((0..n).map(|i| {
                let value = if i == at { -largest } else { rng.random_range(-largest..=largest) };
                scale * value as f32
            }));
        }
    }
    values
}

#[test]
fn operands_that_quantization_represents_exactly_are_multiplied_exactly() {
    for ([rows, n_in, n_out], kind) in
        shapes().into_iter().flat_map(|shape| Kind::ALL.map(|kind| (shape, kind)))
    {
        let (group, largest) = kind.activations(n_in);
        let x = quantizable(1, [rows, n_in], group, largest);
        let weight = quantizable(2, [n_out, n_in], kind.group(), 127);
        let bias = random(3, n_out);
        let (x64, w64) = (widened(&x), widened(&weight));
        let expected = reference::linear(&x64, &w64, Some(&widened(&bias)), n_in);
        let sizes = |v: &[f64]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
        let sums =
            reference::linear(&sizes(&x64), &sizes(&w64), Some(&sizes(&widened(&bias))), n_in);
        // The sum of each group is rounded once when it is converted to f32, and once when it is added.
        let roundings = gamma(2 * n_in.div_ceil(kind.group()) + 2);
        for kernels in Kernels::all() {
            let packed = kind.pack(&weight, n_in, Layout::Plain).repacked(kernels);
            let got = multiply(&packed, &x, Some(&bias));
            let what = format!("{}, {kind:?}, {rows} × {n_in} × {n_out}", kernels.name);
            assert_close(&got, &expected, |i| roundings * sums[i], &what);
            if kind != Kind::Bytes {
                // The same weight, given as integers and scales.
                let packed = kind.pack_q8(&weight, n_in).repacked(kernels);
                assert_eq!(multiply(&packed, &x, Some(&bias)), got, "{what}");
            }
        }
    }
}

/// The bound of the error of each element: rounded operands, and the roundings of the sums.
fn bounds(kind: Kind, x: &[f32], weight: &[f32], n_in: usize, precise: &[usize]) -> Vec<f64> {
    let (x_group, most) = kind.activations(n_in);
    // The largest magnitude of the values that share a scale with the value at `k`.
    let largest_beside = |row: &[f32], k: usize, group: usize| {
        largest(&row[k / group * group..n_in.min((k / group + 1) * group)])
    };
    let mut bounds = Vec::new();
    for x in x.chunks_exact(n_in) {
        for w in weight.chunks_exact(n_in) {
            let mut bound = 0.0;
            let mut sum = 0.0;
            for (k, (&x_k, &w_k)) in x.iter().zip(w).enumerate() {
                let dx = largest_beside(x, k, x_group) / f64::from(2 * most);
                let first = largest_beside(w, k, kind.group()) / 254.0;
                // The remainder is at most `first`, and is rounded to a multiple of its largest magnitude divided by
                // 127.
                let dw = if precise.contains(&k) { first / 254.0 } else { first };
                let (x, w) = (f64::from(x_k.abs()), f64::from(w_k.abs()));
                bound += x * dw + dx * (w + dw);
                sum += (x + dx) * (w + first + dw);
            }
            bounds.push(bound + gamma(2 * n_in.div_ceil(kind.group()) + 8) * sum);
        }
    }
    bounds
}

#[test]
fn error_is_within_the_bound_of_rounded_operands() {
    for [rows, n_in, n_out] in shapes() {
        let (x, weight) = (random(1, rows * n_in), random(2, n_out * n_in));
        let expected = reference::linear(&widened(&x), &widened(&weight), None, n_in);
        for kind in Kind::ALL {
            let bounds = bounds(kind, &x, &weight, n_in, &[]);
            for kernels in Kernels::all() {
                let packed = kind.pack(&weight, n_in, Layout::Plain).repacked(kernels);
                let what = format!("{}, {kind:?}, {rows} × {n_in} × {n_out}", kernels.name);
                assert_close(&multiply(&packed, &x, None), &expected, |i| bounds[i], &what);
            }
        }
        for (kind, n_precise) in [(Kind::Int8, 1), (Kind::Int8, 40), (Kind::TwoBytes, 70)] {
            let precise: Vec<_> = (0..n_in).rev().take(n_precise).collect();
            let bounds = bounds(kind, &x, &weight, n_in, &precise);
            for kernels in Kernels::all() {
                let packed = kind.pack_precise(&weight, n_in, Layout::Plain, &precise);
                let got = multiply(&packed.repacked(kernels), &x, None);
                let what =
                    format!("{}, {kind:?}, precise, [{rows}, {n_in}, {n_out}]", kernels.name);
                assert_close(&got, &expected, |i| bounds[i], &what);
            }
        }
    }
}

/// Operands that the kernels rotate give the same bits as operands that are rotated before they are packed. The result
/// differs from the result of the original operands by at most the error of rounding the rotated operands.
#[test]
fn rotated_operands_give_the_same_result() {
    for [rows, n_in, n_out] in [[1, 256, 5], [7, 512, 33], [13, 1024, 40]] {
        let (x, weight) = (random(1, rows * n_in), random(2, n_out * n_in));
        let expected = reference::linear(&widened(&x), &widened(&weight), None, n_in);
        let [mut rotated_x, mut rotated_weight] = [x.clone(), weight.clone()];
        rotate(&mut rotated_x);
        rotate(&mut rotated_weight);
        let bounds = bounds(Kind::Bytes, &rotated_x, &rotated_weight, n_in, &[]);
        let within = PackedWeight::pack_bytes(n_out, n_in, Layout::Plain, true, |o, row| {
            row.copy_from_slice(&weight[o * n_in..][..n_in]);
        });
        let before = Kind::Bytes.pack(&rotated_weight, n_in, Layout::Plain);
        for kernels in Kernels::all() {
            let what = format!("{}, {rows} × {n_in} × {n_out}", kernels.name);
            let got = multiply(&within.repacked(kernels), &x, None);
            assert_eq!(got, multiply(&before.repacked(kernels), &rotated_x, None), "{what}");
            // A rotation has five roundings.
            assert_close(&got, &expected, |i| bounds[i] * (1.0 + gamma(10)), &what);
        }
    }
}

/// Features that are far larger than the others give an error a thousand times smaller when they keep 16 bits.
#[test]
fn precise_features_keep_16_bits() {
    let n_in = 300;
    let precise = [7, 40, 41, 299];
    let mut x = vec![0f32; n_in];
    precise.iter().zip(random(1, 4)).for_each(|(&k, value)| x[k] = 100.0 * value);
    let weight = random(2, 64 * n_in);
    let expected = reference::linear(&widened(&x), &widened(&weight), None, n_in);
    let kinds = Kind::with_kernels().filter(|(kind, _)| *kind != Kind::Bytes);
    for (kind, kernels) in kinds {
        let error = |precise: &[usize]| {
            let packed = kind.pack_precise(&weight, n_in, Layout::Plain, precise);
            let got = multiply(&packed.repacked(kernels), &x, None);
            let errors = got.iter().zip(&expected).map(|(&g, e)| (f64::from(g) - e).abs());
            errors.fold(0.0, f64::max)
        };
        let (plain, kept) = (error(&[]), error(&precise));
        assert!(kept < plain / 50.0, "{}: {kept:e}, without {plain:e}", kernels.name);
    }
}

/// The largest values of both signs, which would saturate narrow sums.
#[test]
fn largest_sums_of_bytes_do_not_saturate() {
    let n_in = 2 * BYTE_GROUP;
    let weight: Vec<f32> = [[127.0; 128], [-127.0; 128]].concat();
    for (kind, kernels) in Kind::with_kernels() {
        let packed = kind.pack(&weight, n_in, Layout::Plain).repacked(kernels);
        let most = kind.activations(n_in).1 as f32;
        let x: Vec<f32> = [[most; 128], [-most; 128]].concat();
        let sum = 127.0 * most * n_in as f32;
        let got = multiply(&packed, &x, None);
        assert_eq!(got, [sum, -sum, -sum, sum], "{}, {kind:?}", kernels.name);
    }
}

#[test]
fn bf16_activations_give_the_results_of_f32() {
    let (n_rows, n_in) = (13, 150);
    let weight = random(2, 20 * n_in);
    let bf16: Vec<bf16> = random(1, n_rows * n_in).into_iter().map(bf16::from_f32).collect();
    let f32: Vec<f32> = bf16.iter().map(|x| x.to_f32()).collect();
    for (kind, kernels) in Kind::with_kernels() {
        let packed = kind.pack(&weight, n_in, Layout::Plain).repacked(kernels);
        let mut buffer = QuantizeBuffer::default();
        let mut out = vec![0f32; n_rows * 20];
        let x = Rows::new(bf16.as_slice(), [n_rows, n_in], n_in);
        let x = packed.quantize(x, &mut buffer);
        let rows = &mut RowsMut::new(out.as_mut_slice(), [n_rows, 20], 20);
        packed.multiply(x, None, rows, Epilogue::Store);
        assert!(out == multiply(&packed, &f32, None), "{}, {kind:?}", kernels.name);
    }
}

/// The kernel panics instead of reading activations of another type.
#[test]
#[should_panic(expected = "quantized for Int8")]
fn rejects_activations_that_are_not_quantized() {
    let n_in = 2 * BYTE_GROUP;
    let weight = Kind::TwoBytes.pack(&vec![1.0; n_in], n_in, Layout::Plain);
    let x = vec![1f32; n_in];
    let mut out = [0f32];
    let rows = &mut RowsMut::new(out.as_mut_slice(), [1, 1], 1);
    weight.multiply(Rows::new(x.as_slice(), [1, n_in], n_in), None, rows, Epilogue::Store);
}

#[test]
fn swiglu_matches_the_reference() {
    for ([rows, n_in, ffn], kind) in [[1, 9, 1], [3, 40, 7], [13, 33, 17], [6, 64, 100]]
        .into_iter()
        .flat_map(|shape| Kind::ALL.map(|kind| (shape, kind)))
    {
        let (x, weight) = (random(1, rows * n_in), random(2, 2 * ffn * n_in));
        let gate_up = reference::linear(&widened(&x), &widened(&weight), None, n_in);
        let expected = reference::swiglu(&gate_up, ffn);
        let bounds = bounds(kind, &x, &weight, n_in, &[]);
        for kernels in Kernels::all() {
            let packed = kind.pack(&weight, n_in, Layout::SwiGlu).repacked(kernels);
            // The slope of SiLU is at most 1.1. Its exponential and the operations around it take eight roundings.
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
fn rows_do_not_depend_on_other_rows_bit_for_bit() {
    let (n_in, n_out) = (70, 90);
    let (x, weight) = (random(1, 400 * n_in), random(2, n_out * n_in));
    for (kind, kernels) in Kind::with_kernels() {
        let packed = kind.pack(&weight, n_in, Layout::Plain).repacked(kernels);
        let all = multiply(&packed, &x, None);
        for rows in [0..1, 1..3, 0..6, 5..18, 3..200, 100..393] {
            let got = multiply(&packed, &x[rows.start * n_in..rows.end * n_in], None);
            let expected = &all[rows.start * n_out..rows.end * n_out];
            assert!(got == expected, "{}, {kind:?}, rows {rows:?}", kernels.name);
        }
    }
}

#[test]
fn zeros_stay_zero_and_non_finite_values_propagate() {
    let n_in = 40;
    let finite = random(2, 8 * n_in);
    for (kind, kernels) in Kind::with_kernels() {
        let packed = kind.pack(&finite, n_in, Layout::Plain).repacked(kernels);
        assert_eq!(multiply(&packed, &vec![0.0; n_in], None), [0.0; 8], "{}", kernels.name);
        // A value below the smallest scale is treated as zero. Its scale is not inverted.
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
            let damaged = kind.pack(&weight, n_in, Layout::Plain).repacked(kernels);
            let got = multiply(&damaged, &random(1, n_in), None);
            assert!(!got[1].is_finite() && got[0].is_finite(), "{}: {value}", kernels.name);
        }
        let tiny: Vec<f32> = vec![f32::MIN_POSITIVE; 8 * n_in];
        let tiny = kind.pack(&tiny, n_in, Layout::Plain).repacked(kernels);
        assert!(multiply(&tiny, &random(1, n_in), None).iter().all(|y| y.abs() < 1e-30));
    }
}

#[test]
fn accepts_empty_operands() {
    for (kind, kernels) in Kind::with_kernels() {
        for [rows, n_in, n_out] in [[0, 3, 5], [2, 3, 0]] {
            let weight = kind.pack(&vec![1.0; n_out * n_in], n_in, Layout::Plain);
            let got = multiply(&weight.repacked(kernels), &vec![1.0; rows * n_in], None);
            assert!(got.iter().all(|&y| y == 0.0), "{rows} × {n_in} × {n_out}");
        }
    }
}
