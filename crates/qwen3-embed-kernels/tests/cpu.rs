//! Every kernel of every kernel set against its f64 reference, with bounds derived from the
//! standard model of rounding: a sum of n products in f32 is off by at most
//! γ(n) = n·u / (1 − n·u) times the sum of their magnitudes, where u is half the distance from 1 to
//! the next f32 (Higham, *Accuracy and Stability of Numerical Algorithms*, section 3.1).
//!
//! Inputs begin one element into their allocation, so that no kernel may count on alignment, and
//! outputs hold NaN, so that none may leave an element out.
#![allow(clippy::unwrap_used)]

use half::bf16;
use qwen3_embed_kernels::cpu::{
    AttentionScratch, Epilogue, Heads, Kernels, Layout, PackedWeight, causal_attention,
    qk_norm_rope, rms_norm,
};
use qwen3_embed_kernels::{Ragged, reference};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

const U: f64 = f32::EPSILON as f64 / 2.0;

/// An exponential is within 2 ulp, and what surrounds it adds a few roundings.
const EXP_ROUNDINGS: usize = 8;

fn gamma(n: usize) -> f64 {
    let nu = n as f64 * U;
    nu / (1.0 - nu)
}

/// Values that begin one element into their allocation.
struct Misaligned(Vec<f32>);

impl Misaligned {
    fn random(seed: u64, n: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        Self((0..=n).map(|_| rng.random_range(-2.0..2.0)).collect())
    }

    fn nan(n: usize) -> Self {
        Self(vec![f32::NAN; n + 1])
    }

    fn get(&self) -> &[f32] {
        &self.0[1..]
    }

    fn get_mut(&mut self) -> &mut [f32] {
        &mut self.0[1..]
    }

    fn f64(&self) -> Vec<f64> {
        widened(self.get())
    }
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

fn magnitudes(values: &[f64]) -> Vec<f64> {
    values.iter().map(|v| v.abs()).collect()
}

/// Compares element by element: `bound(i)` is the largest error of element `i`.
fn assert_close(got: &[f32], expected: &[f64], bound: impl Fn(usize) -> f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let (error, bound) = ((f64::from(got) - expected).abs(), bound(i));
        assert!(error <= bound, "{what}, element {i}: {got} for {expected}, {error:e} > {bound:e}");
    }
}

#[test]
fn the_portable_set_is_always_there() {
    let available = Kernels::available();
    assert_eq!(available[0].name, "portable");
    assert_eq!(Kernels::best().name, available[available.len() - 1].name);
}

#[test]
fn the_measured_peak_is_one_a_processor_can_have() {
    for kernels in Kernels::available() {
        let peak = kernels.measured_peak();
        assert!((1e7..1e12).contains(&peak), "{}: {peak:e}", kernels.name);
    }
}

#[test]
fn rms_norm_matches_the_reference() {
    for kernels in Kernels::available() {
        for channels in [1, 2, 7, 8, 9, 15, 16, 17, 64, 129, 1024] {
            for rows in [1, 3, 40] {
                let (x, weight) =
                    (Misaligned::random(1, rows * channels), Misaligned::random(2, channels));
                let mut out = Misaligned::nan(rows * channels);
                rms_norm(kernels, x.get(), weight.get(), 1e-6, out.get_mut());
                let expected = reference::rms_norm(&x.f64(), &weight.f64(), 1e-6);
                // The sum of squares, then division, root, addition and products; eps is rounded.
                let relative = gamma(channels + 8);
                let what = format!("{}, {rows} × {channels}", kernels.name);
                assert_close(out.get(), &expected, |i| relative * expected[i].abs(), &what);
            }
        }
        let mut out = [f32::NAN; 4];
        rms_norm(kernels, &[0.0; 4], &[3.0; 4], 1e-6, &mut out);
        assert_eq!(out, [0.0; 4], "{}: a row of zeros", kernels.name);
    }
}

/// Sizes around the edges of tiles and panels of 8 to 32 columns.
const SIZES: [usize; 10] = [1, 2, 7, 8, 15, 16, 17, 31, 33, 130];

#[test]
fn linear_matches_the_reference() {
    let shapes = SIZES.iter().flat_map(|&o| [1, 2, 3, 5, 6, 7, 12, 13].map(|t| (t, 19, o)));
    let shapes = shapes.chain([(200, 64, 48), (385, 3, 20), (1, 1024, 40), (7, 1, 1)]);
    for (rows, n_in, n_out) in shapes {
        let x = Misaligned::random(1, rows * n_in);
        let weight = Misaligned::random(2, n_out * n_in);
        let bias = Misaligned::random(3, n_out);
        let before = Misaligned::random(4, rows * n_out);
        for keep_bf16 in [false, true] {
            let packed = pack(&weight, n_out, n_in, Layout::Plain, keep_bf16);
            let w = kept(&weight, keep_bf16);
            let product = reference::linear(&x.f64(), &w, Some(&bias.f64()), n_in);
            let (x_size, w_size) = (magnitudes(&x.f64()), magnitudes(&w));
            let sums = reference::linear(&x_size, &w_size, Some(&magnitudes(&bias.f64())), n_in);
            for kernels in Kernels::available() {
                let packed = packed.repacked(kernels);
                let what = format!("{}, {rows} × {n_in} × {n_out}, bf16 {keep_bf16}", kernels.name);
                let mut out = Misaligned::nan(rows * n_out);
                packed.multiply(x.get(), Some(bias.get()), out.get_mut(), Epilogue::Store);
                assert_close(out.get(), &product, |i| gamma(n_in + 1) * sums[i], &what);
                let mut out = Misaligned(before.0.clone());
                packed.multiply(x.get(), Some(bias.get()), out.get_mut(), Epilogue::Add);
                let sum: Vec<f64> = product.iter().zip(before.f64()).map(|(p, b)| p + b).collect();
                assert_close(out.get(), &sum, |i| gamma(n_in + 2) * (sums[i] + 2.0), &what);
            }
        }
    }
}

#[test]
fn swiglu_matches_the_reference() {
    for (rows, n_in, ffn) in [(1, 9, 1), (3, 5, 7), (7, 16, 8), (13, 33, 17), (6, 64, 100)] {
        let x = Misaligned::random(1, rows * n_in);
        let weight = Misaligned::random(2, 2 * ffn * n_in);
        for keep_bf16 in [false, true] {
            let packed = pack(&weight, 2 * ffn, n_in, Layout::SwiGlu, keep_bf16);
            let w = kept(&weight, keep_bf16);
            let gate_up = reference::linear(&x.f64(), &w, None, n_in);
            let sums = reference::linear(&magnitudes(&x.f64()), &magnitudes(&w), None, n_in);
            let expected = reference::swiglu(&gate_up, ffn);
            for kernels in Kernels::available() {
                let mut out = Misaligned::nan(rows * ffn);
                let packed = packed.repacked(kernels);
                assert_eq!(packed.n_columns(), ffn);
                packed.multiply(x.get(), None, out.get_mut(), Epilogue::Store);
                // SiLU's slope is at most 1.1, so that an error of the gate grows no further, and
                // what it multiplies is the up value with its own error.
                let bound = |i: usize| {
                    let (row, column) = (i / ffn, i % ffn);
                    let at = row * 2 * ffn + column;
                    let (gate, up) = (gate_up[at].abs(), gate_up[at + ffn].abs());
                    let (d_gate, d_up) = (gamma(n_in) * sums[at], gamma(n_in) * sums[at + ffn]);
                    1.1 * d_gate * (up + d_up) + gate * d_up + gamma(EXP_ROUNDINGS) * gate * up
                };
                assert_close(out.get(), &expected, bound, &format!("{}, {ffn}", kernels.name));
            }
        }
    }
}

#[test]
fn swiglu_of_extreme_gates_is_finite_and_right() {
    for kernels in Kernels::available() {
        // One input of 1, so that the weight's rows are the gates and, behind them, the ups.
        let gates = [-1e30, -200.0, -88.0, -20.0, 0.0, 20.0, 88.0, 200.0, 1e30];
        let rows: Vec<f32> = gates.iter().copied().chain([1.0; 9]).collect();
        let packed = PackedWeight::pack_f32(18, 1, Layout::SwiGlu, |o, row| row[0] = rows[o]);
        let mut out = [f32::NAN; 9];
        packed.repacked(kernels).multiply(&[1.0], None, &mut out, Epilogue::Store);
        let expected = reference::swiglu(&widened(&rows), 9);
        for (got, expected) in out.into_iter().zip(expected) {
            let error = (f64::from(got) - expected).abs();
            // Below −88 the result is smaller than 1e-30 times the gate, and so is its error.
            assert!(error <= gamma(EXP_ROUNDINGS) * expected.abs() + 1e-7, "{got} for {expected}");
        }
    }
}

#[test]
fn a_row_of_a_product_does_not_depend_on_the_other_rows() {
    let (n_in, n_out) = (70, 90);
    let x = Misaligned::random(1, 400 * n_in);
    let weight = Misaligned::random(2, n_out * n_in);
    for (kernels, layout) in
        Kernels::available().iter().flat_map(|k| [(k, Layout::Plain), (k, Layout::SwiGlu)])
    {
        let packed = pack(&weight, n_out, n_in, layout, false).repacked(kernels);
        let columns = packed.n_columns();
        let product = |rows: std::ops::Range<usize>| {
            let mut out = vec![f32::NAN; rows.len() * columns];
            let x = &x.get()[rows.start * n_in..rows.end * n_in];
            packed.multiply(x, None, &mut out, Epilogue::Store);
            out
        };
        let all = product(0..400);
        for rows in [0..1, 1..3, 7..8, 0..6, 5..18, 3..200, 100..393] {
            let expected = &all[rows.start * columns..rows.end * columns];
            assert!(product(rows.clone()) == expected, "{}, rows {rows:?}", kernels.name);
        }
    }
}

#[test]
fn qk_norm_rope_matches_the_reference() {
    let cases = [
        (vec![1], 1, 1, 2),
        (vec![3, 1, 300], 2, 1, 16),
        (vec![5, 40], 4, 2, 128),
        (vec![9], 8, 8, 6),
        (vec![2, 2], 2, 2, 34),
    ];
    for (lengths, n_heads, n_kv_heads, head_dim) in cases {
        let heads = Heads { n_heads, n_kv_heads, head_dim };
        let batch = Ragged::from_lengths(lengths).unwrap();
        let (columns, half) = (heads.qkv_columns(), head_dim / 2);
        let before = Misaligned::random(1, batch.n_tokens() * columns);
        let [q_norm, k_norm] = [2, 3].map(|seed| Misaligned::random(seed, head_dim));
        let angles: Vec<f64> = batch
            .positions()
            .flat_map(|p| {
                (0..half).map(move |i| p as f64 * 1e4f64.powf(-2.0 * i as f64 / head_dim as f64))
            })
            .collect();
        let [cos, sin] = [f64::cos, f64::sin]
            .map(|f: fn(f64) -> f64| angles.iter().map(|&a| f(a) as f32).collect::<Vec<_>>());
        for kernels in Kernels::available() {
            let mut qkv = Misaligned(before.0.clone());
            let norms = [q_norm.get(), k_norm.get()];
            qk_norm_rope(kernels, qkv.get_mut(), heads, norms, 1e-6, [&cos, &sin]);
            let parts = [(0, n_heads, &q_norm), (n_heads, n_kv_heads, &k_norm)];
            for (first, count, norm) in parts {
                let part = |values: &[f32]| -> Vec<f32> {
                    let columns_of_part = first * head_dim..(first + count) * head_dim;
                    values
                        .chunks_exact(columns)
                        .flat_map(|row| row[columns_of_part.clone()].to_vec())
                        .collect()
                };
                let x = widened(&part(before.get()));
                let expected = reference::qk_norm_rope(&x, &norm.f64(), 1e-6, 1e4, &batch);
                let normed = reference::rms_norm(&x, &norm.f64(), 1e-6);
                // The norm's error, and a rotation of the pair: rounded tables, two products, a sum.
                let bound = |i: usize| {
                    let (head, lane) = (i / head_dim * head_dim, i % half);
                    gamma(head_dim + 12)
                        * (normed[head + lane].abs() + normed[head + lane + half].abs())
                };
                assert_close(&part(qkv.get()), &expected, bound, kernels.name);
            }
            let values = (n_heads + n_kv_heads) * head_dim;
            for (row, before) in
                qkv.get().chunks_exact(columns).zip(before.get().chunks_exact(columns))
            {
                assert_eq!(row[values..], before[values..], "values are left alone");
            }
        }
    }
}

fn attend(kernels: &Kernels, qkv: &[f32], batch: &Ragged, heads: Heads) -> Vec<f32> {
    let mut out = vec![f32::NAN; batch.n_tokens() * heads.q_columns()];
    let mut scratch = AttentionScratch::default();
    // What an earlier and larger batch left in the scratch must not matter.
    let larger = Ragged::from_lengths([batch.n_tokens() + 40]).unwrap();
    let ones = vec![1.0; larger.n_tokens() * heads.qkv_columns()];
    let mut ignored = vec![0.0; larger.n_tokens() * heads.q_columns()];
    causal_attention(kernels, &ones, &larger, heads, &mut scratch, &mut ignored);
    causal_attention(kernels, qkv, batch, heads, &mut scratch, &mut out);
    out
}

#[test]
fn causal_attention_matches_the_reference() {
    let cases = [
        (vec![1], 1, 1, 2),
        (vec![1, 2, 3], 4, 2, 8),
        (vec![15, 16, 17], 2, 2, 16),
        (vec![127, 128, 129], 2, 1, 16),
        (vec![5, 260], 6, 2, 10),
        (vec![33, 33], 3, 3, 128),
        (vec![300], 100, 1, 4),
    ];
    for (lengths, n_heads, n_kv_heads, head_dim) in cases {
        let heads = Heads { n_heads, n_kv_heads, head_dim };
        let batch = Ragged::from_lengths(lengths.clone()).unwrap();
        let qkv = Misaligned::random(5, batch.n_tokens() * heads.qkv_columns());
        let part = |start: usize, n: usize, scale: f64| -> Vec<f64> {
            qkv.get()
                .chunks_exact(heads.qkv_columns())
                .flat_map(|row| row[start * head_dim..(start + n) * head_dim].to_vec())
                .map(|v| f64::from(v) * scale)
                .collect()
        };
        // The kernel takes queries that were divided by √D, the reference divides them itself.
        let q = part(0, n_heads, (head_dim as f64).sqrt());
        let k = part(n_heads, n_kv_heads, 1.0);
        let v = part(n_heads + n_kv_heads, n_kv_heads, 1.0);
        let expected =
            reference::causal_attention(&q, &k, &v, &batch, n_heads, n_kv_heads, head_dim);
        // Values are at most 2: a score is off by δ, hence a weight by the factor exp(2δ); the
        // exponentials, their sum, the weighted sum and its rescaling add their own roundings.
        let score_error = gamma(head_dim) * head_dim as f64 * 4.0;
        let roundings = 2 * batch.max_length() + 2 * EXP_ROUNDINGS + batch.max_length() / 16;
        let bound = 2.0 * (2.0 * score_error + gamma(roundings));
        for kernels in Kernels::available() {
            let out = attend(kernels, qkv.get(), &batch, heads);
            let what = format!("{}, {lengths:?}, {heads:?}", kernels.name);
            assert_close(&out, &expected, |_| bound, &what);
        }
    }
}

#[test]
fn attention_depends_on_nothing_but_the_text_bit_for_bit() {
    let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 16 };
    let lengths = [20, 7, 150, 1, 129];
    let (columns, out_columns) = (heads.qkv_columns(), heads.q_columns());
    let qkv = Misaligned::random(6, lengths.iter().sum::<usize>() * columns);
    for kernels in Kernels::available() {
        let batch = Ragged::from_lengths(lengths).unwrap();
        let together = attend(kernels, qkv.get(), &batch, heads);
        for text in batch.ranges() {
            // Alone, and cut short: what comes after a token does not matter.
            for n in [text.len(), text.len().div_ceil(2), 1] {
                let alone = Ragged::from_lengths([n]).unwrap();
                let qkv = &qkv.get()[text.start * columns..][..n * columns];
                let expected = &together[text.start * out_columns..][..n * out_columns];
                let what = format!("{}, {n} tokens of {text:?}", kernels.name);
                assert!(attend(kernels, qkv, &alone, heads) == expected, "{what}");
            }
        }
    }
}

#[test]
fn scores_of_hundreds_do_not_overflow() {
    let heads = Heads { n_heads: 1, n_kv_heads: 1, head_dim: 2 };
    // Scores of 0, ±400 and ±800 between tokens whose values are their positions.
    let rows: Vec<f32> =
        (0..200).flat_map(|p| [40.0, 0.0, 10.0 * (p % 5 - 2) as f32, 0.0, p as f32, 1.0]).collect();
    let batch = Ragged::from_lengths([200]).unwrap();
    for kernels in Kernels::available() {
        let out = attend(kernels, &rows, &batch, heads);
        for (position, out) in out.chunks_exact(2).enumerate() {
            // All weight is on the tokens with the largest score seen so far.
            let best = (0..=position).map(|p| p % 5).max().unwrap();
            let places: Vec<usize> = (0..=position).filter(|p| p % 5 == best).collect();
            let mean = places.iter().sum::<usize>() as f32 / places.len() as f32;
            assert!((out[0] - mean).abs() <= 1e-3, "{}: {} for {mean}", kernels.name, out[0]);
            assert!((out[1] - 1.0).abs() <= 1e-5);
        }
    }
}

fn pack(
    weight: &Misaligned,
    n_out: usize,
    n_in: usize,
    layout: Layout,
    keep_bf16: bool,
) -> PackedWeight {
    let row = |o: usize| &weight.get()[o * n_in..][..n_in];
    if keep_bf16 {
        PackedWeight::pack_bf16(n_out, n_in, layout, |o, out| {
            out.iter_mut().zip(row(o)).for_each(|(out, &v)| *out = bf16::from_f32(v));
        })
    } else {
        PackedWeight::pack_f32(n_out, n_in, layout, |o, out| out.copy_from_slice(row(o)))
    }
}

/// A weight's values as they are kept.
fn kept(weight: &Misaligned, keep_bf16: bool) -> Vec<f64> {
    let value = |v: &f32| if keep_bf16 { bf16::from_f32(*v).to_f64() } else { f64::from(*v) };
    weight.get().iter().map(value).collect()
}
