//! Matrix multiplications with weights in blocks of 4 to 6 bits, for every kernel set, against the f64 reference.
//!
//! The weights are exact. A block of activations is rounded to multiples of a scale, which is the largest magnitude of
//! the block divided by 127. The error of an activation is at most half of the scale. The bound of a result is the sum
//! of these errors times the weights, plus the rounding errors of the sums in f32.
#![allow(clippy::unwrap_used)]

use half::bf16;
use qwen3_embed_kernels::cpu::{
    BLOCK, Bits, BlockRow, Epilogue, Kernels, Layout, PackedWeight, QuantizeBuffer, Rows, RowsMut,
};
use qwen3_embed_kernels::reference;
use rand::{RngExt, SeedableRng, rngs::SmallRng};

const ALL: [Bits; 3] = [Bits::Four, Bits::Five, Bits::Six];

/// A weight [O, I] in blocks.
struct Weight {
    bits: Vec<Bits>,
    rows: Vec<BlockRow>,
    n_in: usize,
}

impl Weight {
    /// Random integers of the whole range, and random scales.
    fn random(seed: u64, n_in: usize, bits: Vec<Bits>) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let rows = bits.iter().map(|&bits| {
            let (most, n_groups, n_blocks) = (most(bits), n_in / bits.group(), n_in / BLOCK);
            let is_six = bits == Bits::Six;
            let mut scale = || rng.random_range(0.5f32..2.0);
            let (d, m) = ((0..n_blocks).map(|_| scale()).collect(), (0..n_blocks).map(|_| scale()));
            let m = if is_six { Vec::new() } else { m.collect() };
            let mut scale = |_| if is_six { rng.random() } else { rng.random_range(0..=127) };
            let scales = (0..n_groups).map(&mut scale).collect();
            let n_minima = if is_six { 0 } else { n_groups };
            let minima = (0..n_minima).map(|_| rng.random()).collect();
            let values = (0..n_in).map(|_| rng.random_range(0..=most)).collect();
            BlockRow { values, scales, minima, d, m }
        });
        Self { rows: rows.collect(), bits, n_in }
    }

    /// Packs the weight for a kernel set.
    fn pack(
        &self,
        layout: Layout,
        columns: Option<&[f32]>,
        kernels: &'static Kernels,
    ) -> PackedWeight {
        let read_row = |o: usize, row: &mut BlockRow| {
            let sizes = |row: &BlockRow| {
                [row.values.len(), row.scales.len(), row.minima.len(), row.d.len(), row.m.len()]
            };
            assert_eq!(sizes(row), sizes(&self.rows[o]));
            row.clone_from(&self.rows[o]);
        };
        let (bits, n_out) = (|o: usize| self.bits[o], self.rows.len());
        PackedWeight::pack_blocks(n_out, self.n_in, layout, columns, bits, read_row)
            .unwrap()
            .repacked(kernels)
    }

    /// The dequantized weight, [O, I]. f64 holds its values exactly.
    fn values(&self) -> Vec<f64> {
        let of_row = |(row, &bits): (&BlockRow, &Bits)| {
            let group = bits.group();
            let value = |(k, &q): (usize, &u8)| {
                let (s, d) = (f64::from(row.scales[k / group]), f64::from(row.d[k / BLOCK]));
                match bits {
                    Bits::Six => d * s * (f64::from(q) - 32.0),
                    Bits::Four | Bits::Five => {
                        let n = f64::from(row.minima[k / group]);
                        d * s * f64::from(q) - f64::from(row.m[k / BLOCK]) * n
                    }
                }
            };
            row.values.iter().enumerate().map(value).collect::<Vec<_>>()
        };
        self.rows.iter().zip(&self.bits).flat_map(of_row).collect()
    }

    /// The sum of the magnitudes of the terms of each value: `d·s·q` and `m·n`, or `d·s·(q − 32)` in 6 bits.
    fn magnitudes(&self) -> Vec<f64> {
        let of_row = |(row, &bits): (&BlockRow, &Bits)| {
            let group = bits.group();
            let value = |(k, &q): (usize, &u8)| {
                let (s, d) = (f64::from(row.scales[k / group]).abs(), f64::from(row.d[k / BLOCK]));
                match bits {
                    Bits::Six => d.abs() * s * (f64::from(q) - 32.0).abs(),
                    Bits::Four | Bits::Five => {
                        let n = f64::from(row.minima[k / group]);
                        d.abs() * s * f64::from(q) + f64::from(row.m[k / BLOCK]).abs() * n
                    }
                }
            };
            row.values.iter().enumerate().map(value).collect::<Vec<_>>()
        };
        self.rows.iter().zip(&self.bits).flat_map(of_row).collect()
    }
}

/// The largest integer `q` of a weight.
fn most(bits: Bits) -> u8 {
    match bits {
        Bits::Four => 15,
        Bits::Five => 31,
        Bits::Six => 63,
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

/// Shapes [T, I, O] around the edges of tiles, blocks and panels.
fn shapes() -> Vec<[usize; 3]> {
    let mut shapes: Vec<_> = (1..=13).map(|rows| [rows, BLOCK, 17]).collect();
    shapes.extend([1, 7, 8, 15, 16, 31, 32, 33, 130].map(|n_out| [3, BLOCK, n_out]));
    shapes.extend([[25, 2 * BLOCK, 5], [200, BLOCK, 48], [2, 4 * BLOCK, 40]]);
    shapes
}

/// The bound of the rounding errors of the sums in f32, relative to the sum of all magnitudes: four roundings within a
/// block, one when the block is added, and one for the bias.
fn roundings(n_in: usize) -> f64 {
    gamma(n_in / BLOCK + 6)
}

/// Rows whose blocks are multiples of a power of two by integers up to 127, which 8 bits represent exactly.
fn quantizable(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut values = Vec::with_capacity(n);
    while values.len() < n {
        let scale = f64::from(rng.random_range(-20..20)).exp2() as f32;
        let at = rng.random_range(0..BLOCK);
        values.extend((0..BLOCK).map(|i| {
            scale * if i == at { -127.0 } else { rng.random_range(-127i32..=127) as f32 }
        }));
    }
    values
}

#[test]
fn activations_that_fit_8_bits_are_multiplied_exactly() {
    for ([rows, n_in, n_out], bits) in
        shapes().into_iter().flat_map(|shape| ALL.map(|bits| (shape, bits)))
    {
        let (x, weight) = (quantizable(1, rows * n_in), Weight::random(2, n_in, vec![bits; n_out]));
        let (bias, x64) = (random(3, n_out), widened(&x));
        let expected = reference::linear(&x64, &weight.values(), Some(&widened(&bias)), n_in);
        let sizes = |v: &[f64]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
        let bias_sizes = sizes(&widened(&bias));
        let sums = reference::linear(&sizes(&x64), &weight.magnitudes(), Some(&bias_sizes), n_in);
        for kernels in Kernels::all() {
            let packed = weight.pack(Layout::Plain, None, kernels);
            let what = format!("{}, {bits:?}, {rows} × {n_in} × {n_out}", kernels.name);
            let got = multiply(&packed, &x, Some(&bias));
            assert_close(&got, &expected, |i| roundings(n_in) * sums[i], &what);
        }
    }
}

/// The bound of the error of each element: rounded activations, and the roundings of the sums.
fn bounds(x: &[f64], weight: &Weight) -> Vec<f64> {
    let n_in = weight.n_in;
    // The scale and its inverse are rounded to f32.
    let half = 0.5 + 1e-3;
    let errors: Vec<f64> = x
        .chunks_exact(BLOCK)
        .flat_map(|group| {
            let largest = group.iter().fold(0f64, |largest, x| largest.max(x.abs()));
            [largest / 127.0 * half; BLOCK]
        })
        .collect();
    let values: Vec<f64> = weight.values().iter().map(|w| w.abs()).collect();
    let sizes: Vec<f64> = x.iter().zip(&errors).map(|(x, error)| x.abs() + error).collect();
    let lost = reference::linear(&errors, &values, None, n_in);
    let sums = reference::linear(&sizes, &weight.magnitudes(), None, n_in);
    lost.iter().zip(sums).map(|(lost, sum)| lost + roundings(n_in) * sum).collect()
}

#[test]
fn error_is_within_the_bound_of_rounded_activations() {
    for ([rows, n_in, n_out], bits) in
        shapes().into_iter().flat_map(|shape| ALL.map(|bits| (shape, bits)))
    {
        let (x, weight) = (random(1, rows * n_in), Weight::random(2, n_in, vec![bits; n_out]));
        let columns = random(4, n_in);
        let scaled: Vec<f32> =
            x.iter().zip(columns.iter().cycle()).map(|(x, column)| x * column).collect();
        for (columns, x64) in [(None, widened(&x)), (Some(columns.as_slice()), widened(&scaled))] {
            let expected = reference::linear(&x64, &weight.values(), None, n_in);
            let bounds = bounds(&x64, &weight);
            for kernels in Kernels::all() {
                let packed = weight.pack(Layout::Plain, columns, kernels);
                let what = format!("{}, {bits:?}, {rows} × {n_in} × {n_out}", kernels.name);
                assert_close(&multiply(&packed, &x, None), &expected, |i| bounds[i], &what);
            }
        }
    }
}

/// The largest values of both signs with the largest scales, which would saturate narrow sums.
#[test]
fn largest_sums_of_blocks_do_not_saturate() {
    let n_in = BLOCK;
    for bits in ALL {
        let filled = |value: u8, scale: i8| BlockRow {
            values: vec![value; n_in],
            scales: vec![scale; n_in / bits.group()],
            minima: vec![255; if bits == Bits::Six { 0 } else { 8 }],
            d: vec![1.0],
            m: vec![1.0; usize::from(bits != Bits::Six)],
        };
        let rows = [0, most(bits)].into_iter().flat_map(|q| [-128, 127].map(|s| filled(q, s)));
        let rows: Vec<_> = rows.collect();
        let weight = Weight { bits: vec![bits; rows.len()], rows, n_in };
        for kernels in Kernels::all() {
            let packed = weight.pack(Layout::Plain, None, kernels);
            // Equal signs, and signs that alternate by value, by pair and by group of four.
            for half_period in [n_in, 1, 2, 4, 16] {
                let sign =
                    |k: usize| if (k / half_period).is_multiple_of(2) { 127.0 } else { -127.0 };
                let x: Vec<f32> = (0..n_in).map(sign).collect();
                let expected = reference::linear(&widened(&x), &weight.values(), None, n_in);
                let sums = reference::linear(&[127.0; BLOCK], &weight.magnitudes(), None, n_in);
                let what = format!("{}, {bits:?}, {half_period}", kernels.name);
                let got = multiply(&packed, &x, None);
                assert_close(&got, &expected, |i| roundings(n_in) * sums[i], &what);
            }
        }
    }
}

/// With small integer scales, f32 represents all sums exactly, so all kernel sets give the same bits.
#[test]
fn integer_operands_give_exact_results() {
    for ([rows, n_in, n_out], bits) in
        shapes().into_iter().flat_map(|shape| ALL.map(|bits| (shape, bits)))
    {
        let mut weight = Weight::random(2, n_in, vec![bits; n_out]);
        for row in &mut weight.rows {
            row.scales.iter_mut().for_each(|s| *s %= 3);
            row.minima.iter_mut().for_each(|n| *n %= 3);
            row.d.fill(1.0);
            row.m.fill(1.0);
        }
        let mut x = quantizable(1, rows * n_in);
        for group in x.chunks_exact_mut(BLOCK) {
            let largest = group.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            group.iter_mut().for_each(|x| *x = (*x / largest * 127.0).round());
        }
        let expected = reference::linear(&widened(&x), &weight.values(), None, n_in);
        for kernels in Kernels::all() {
            let got = multiply(&weight.pack(Layout::Plain, None, kernels), &x, None);
            let what = format!("{}, {bits:?}, {rows} × {n_in} × {n_out}", kernels.name);
            assert!(widened(&got) == expected, "{what}");
        }
    }
}

#[test]
fn bf16_activations_give_the_results_of_f32() {
    let (n_rows, n_in) = (13, BLOCK);
    let weight = Weight::random(2, n_in, vec![Bits::Four; 20]);
    let bf16: Vec<bf16> = random(1, n_rows * n_in).into_iter().map(bf16::from_f32).collect();
    let f32: Vec<f32> = bf16.iter().map(|x| x.to_f32()).collect();
    for columns in [None, Some(random(5, n_in))] {
        for kernels in Kernels::all() {
            let packed = weight.pack(Layout::Plain, columns.as_deref(), kernels);
            let mut buffer = QuantizeBuffer::default();
            let mut out = vec![0f32; n_rows * 20];
            let x = Rows::new(bf16.as_slice(), [n_rows, n_in], n_in);
            let x = packed.quantize(x, &mut buffer);
            let rows = &mut RowsMut::new(out.as_mut_slice(), [n_rows, 20], 20);
            packed.multiply(x, None, rows, Epilogue::Store);
            assert!(out == multiply(&packed, &f32, None), "{}", kernels.name);
        }
    }
}

#[test]
fn panels_may_differ_in_bits_but_columns_of_a_panel_may_not() {
    // The panels of all kernel sets have 16 or 32 columns.
    let bits = [[Bits::Four; 64], [Bits::Six; 64], [Bits::Five; 64]].concat();
    let weight = Weight::random(2, BLOCK, bits);
    let x = random(1, 7 * BLOCK);
    let bounds = bounds(&widened(&x), &weight);
    let expected = reference::linear(&widened(&x), &weight.values(), None, BLOCK);
    for kernels in Kernels::all() {
        let packed = weight.pack(Layout::Plain, None, kernels);
        assert_close(&multiply(&packed, &x, None), &expected, |i| bounds[i], kernels.name);
    }
    let bits = |o| if o < 33 { Bits::Four } else { Bits::Six };
    let pack =
        |n_in, n_out| PackedWeight::pack_blocks(n_out, n_in, Layout::Plain, None, bits, |_, _| ());
    assert!(pack(BLOCK, 33).is_some() && pack(BLOCK, 34).is_none() && pack(128, 33).is_none());
}

/// The kernel panics instead of reading activations of another type.
#[test]
#[should_panic(expected = "quantized for Blocks")]
fn rejects_activations_that_are_not_quantized_for_blocks() {
    let weight = Weight::random(1, BLOCK, vec![Bits::Four]);
    let weight = weight.pack(Layout::Plain, None, Kernels::current());
    let x = vec![1f32; BLOCK];
    let mut out = [0f32];
    let rows = &mut RowsMut::new(out.as_mut_slice(), [1, 1], 1);
    weight.multiply(Rows::new(x.as_slice(), [1, BLOCK], BLOCK), None, rows, Epilogue::Store);
}

#[test]
fn swiglu_matches_the_reference() {
    for ([rows, ffn], bits) in [[1, 1], [3, 7], [13, 17], [6, 100]]
        .into_iter()
        .flat_map(|shape| ALL.map(|bits| (shape, bits)))
    {
        let n_in = BLOCK;
        let mut weight = Weight::random(2, n_in, vec![bits; 2 * ffn]);
        // Gates of about 1.
        weight.rows.iter_mut().for_each(|row| {
            row.d.iter_mut().chain(&mut row.m).for_each(|scale| *scale *= 1e-5);
        });
        let x = random(1, rows * n_in);
        let gate_up = reference::linear(&widened(&x), &weight.values(), None, n_in);
        let expected = reference::swiglu(&gate_up, ffn);
        let bounds = bounds(&widened(&x), &weight);
        // The slope of SiLU is at most 1.1. Its exponential and the operations around it take eight roundings.
        let bound = |i: usize| {
            let at = i / ffn * 2 * ffn + i % ffn;
            let (gate, up) = (gate_up[at].abs(), gate_up[at + ffn].abs());
            let (d_gate, d_up) = (bounds[at], bounds[at + ffn]);
            1.1 * d_gate * (up + d_up) + gate * d_up + gamma(8) * gate * up
        };
        for kernels in Kernels::all() {
            let packed = weight.pack(Layout::SwiGlu, None, kernels);
            assert_close(&multiply(&packed, &x, None), &expected, bound, kernels.name);
        }
    }
}

#[test]
fn rows_do_not_depend_on_other_rows_bit_for_bit() {
    let (n_in, n_out) = (2 * BLOCK, 90);
    let x = random(1, 400 * n_in);
    for bits in ALL {
        let weight = Weight::random(2, n_in, vec![bits; n_out]);
        for kernels in Kernels::all() {
            let packed = weight.pack(Layout::Plain, None, kernels);
            let all = multiply(&packed, &x, None);
            for rows in [0..1, 1..3, 0..6, 5..18, 3..200, 100..393] {
                let got = multiply(&packed, &x[rows.start * n_in..rows.end * n_in], None);
                let expected = &all[rows.start * n_out..rows.end * n_out];
                assert!(got == expected, "{}, {bits:?}, rows {rows:?}", kernels.name);
            }
        }
    }
}

#[test]
fn zeros_stay_zero_and_non_finite_values_propagate() {
    let n_in = 2 * BLOCK;
    for bits in ALL {
        let weight = Weight::random(2, n_in, vec![bits; 8]);
        for kernels in Kernels::all() {
            let packed = weight.pack(Layout::Plain, None, kernels);
            assert_eq!(multiply(&packed, &vec![0.0; n_in], None), [0.0; 8], "{}", kernels.name);
            // A value below the smallest scale is treated as zero. Its scale is not inverted.
            let tiny = vec![f32::from_bits(1); n_in];
            assert!(multiply(&packed, &tiny, None).iter().all(|y| y.abs() < 1e-30));
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = random(1, 2 * n_in);
                x[333] = value;
                let got = multiply(&packed, &x, None);
                assert!(got[..8].iter().all(|y| !y.is_finite()), "{}: {value}", kernels.name);
                assert!(got[8..].iter().all(|y| y.is_finite()), "the other row");
                let mut damaged = Weight::random(2, n_in, vec![bits; 8]);
                damaged.rows[1].d[1] = value;
                let got = multiply(&damaged.pack(Layout::Plain, None, kernels), &x[n_in..], None);
                assert!(!got[1].is_finite() && got[0].is_finite(), "{}: {value}", kernels.name);
            }
        }
    }
}

#[test]
fn accepts_empty_operands() {
    for kernels in Kernels::all() {
        for [rows, n_out] in [[0, 5], [2, 0]] {
            let weight = Weight::random(1, BLOCK, vec![Bits::Four; n_out]);
            let packed = weight.pack(Layout::Plain, None, kernels);
            assert_eq!(multiply(&packed, &vec![1.0; rows * BLOCK], None), [0f32; 0]);
        }
    }
}
