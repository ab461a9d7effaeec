//! Every kernel of every kernel set with random shapes and magnitudes against its f64 reference.
//!
//! The bounds are those of `cpu.rs`, for values of any magnitude. The environment variable `PROPTEST_CASES` is the number
//! of shapes of each test, 256 by default. Tests of attention use an eighth of them.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    EXP_ROUNDINGS, Grid, Misaligned, Value, attend_from, gamma, kept, magnitudes, pack, widened,
};
use half::bf16;
use proptest::collection::vec;
use proptest::prelude::*;
use qwen3_embed_kernels::cpu::{Epilogue, Heads, Kernels, Layout, qk_norm_rope, rms_norm};
use qwen3_embed_kernels::{Queries, Ragged, Segment, SegmentKind, reference};

/// The settings of the tests. Shapes that violate a property are printed and not stored: they become tests of their own.
fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

/// Random values of about the size 2^`exponent`.
fn scaled(seed: u64, n: usize, exponent: i32) -> Misaligned {
    let mut values = Misaligned::random(seed, n);
    values.get_mut().iter_mut().for_each(|value| *value *= 2f32.powi(exponent));
    values
}

/// A matrix multiplication.
#[derive(Debug, Clone)]
struct Shape {
    rows: usize,
    n_in: usize,
    n_out: usize,
    /// The magnitudes of the activations, of the weights, and of the bias and the old outputs.
    exponents: [i32; 3],
    has_bias: bool,
    keep_bf16: bool,
    seed: u64,
}

fn shapes(exponents: std::ops::Range<i32>) -> impl Strategy<Value = Shape> {
    // Most matrices have edges in the middle of a tile.
    let size = || prop_oneof![1usize..20, 1usize..80];
    let rows = prop_oneof![0usize..15, 0usize..60];
    (rows, size(), size(), prop::array::uniform3(exponents), any::<[bool; 2]>(), any::<u64>())
        .prop_map(|(rows, n_in, n_out, exponents, [has_bias, keep_bf16], seed)| Shape {
            rows,
            n_in,
            n_out,
            exponents,
            has_bias,
            keep_bf16,
            seed,
        })
}

fn check_linear<X: Value, O: Value>(shape: &Shape, epilogue: Epilogue) {
    let &Shape { rows, n_in, n_out, exponents: [x, w, b], has_bias, keep_bf16, seed } = shape;
    let x = Grid::<X>::of(scaled(seed, rows * n_in, x).get(), n_in);
    let weight = scaled(!seed, n_out * n_in, w);
    let bias = scaled(seed ^ 1, n_out, b);
    let bias = has_bias.then(|| bias.get());
    let before = Grid::<O>::of(scaled(seed ^ 2, rows * n_out, b).get(), n_out);
    let wide_bias = bias.map(widened);
    let w = kept(&weight, keep_bf16);
    let mut expected = reference::linear(&x.dense(), &w, wide_bias.as_deref(), n_in);
    let bias_size = wide_bias.as_deref().map(magnitudes);
    let mut sums =
        reference::linear(&magnitudes(&x.dense()), &magnitudes(&w), bias_size.as_deref(), n_in);
    if epilogue == Epilogue::Add {
        expected.iter_mut().zip(before.dense()).for_each(|(sum, before)| *sum += before);
        sums.iter_mut().zip(before.dense()).for_each(|(sum, before)| *sum += before.abs());
    }
    let packed = pack(&weight, n_out, n_in, Layout::Plain, keep_bf16);
    for kernels in Kernels::all() {
        let mut out = match epilogue {
            Epilogue::Store => Grid::<O>::nan(rows, n_out),
            Epilogue::Add => before.clone(),
        };
        packed.repacked(kernels).multiply(x.rows(), bias, &mut out.rows_mut(), epilogue);
        let what = format!("{}, {shape:?}, {epilogue:?}", kernels.name);
        out.assert_close(&expected, |i| gamma(n_in + 2) * sums[i], &what);
    }
}

fn check_swiglu<X: Value, O: Value>(shape: &Shape) {
    let &Shape { rows, n_in, n_out: ffn, exponents: [x, w, _], keep_bf16, seed, .. } = shape;
    let x = Grid::<X>::of(scaled(seed, rows * n_in, x).get(), n_in);
    let weight = scaled(!seed, 2 * ffn * n_in, w);
    let w = kept(&weight, keep_bf16);
    let gate_up = reference::linear(&x.dense(), &w, None, n_in);
    let sums = reference::linear(&magnitudes(&x.dense()), &magnitudes(&w), None, n_in);
    let expected = reference::swiglu(&gate_up, ffn);
    // As in `cpu.rs`.
    let bound = |i: usize| {
        let at = i / ffn * 2 * ffn + i % ffn;
        let (gate, up) = (gate_up[at].abs(), gate_up[at + ffn].abs());
        let (d_gate, d_up) = (gamma(n_in) * sums[at], gamma(n_in) * sums[at + ffn]);
        1.1 * d_gate * (up + d_up) + gate * d_up + gamma(EXP_ROUNDINGS) * gate * up
    };
    let packed = pack(&weight, 2 * ffn, n_in, Layout::SwiGlu, keep_bf16);
    for kernels in Kernels::all() {
        let mut out = Grid::<O>::nan(rows, ffn);
        packed.repacked(kernels).multiply(x.rows(), None, &mut out.rows_mut(), Epilogue::Store);
        out.assert_close(&expected, bound, &format!("{}, {shape:?}", kernels.name));
    }
}

fn check_rms_norm<T: Value>([rows, channels]: [usize; 2], [x, w]: [i32; 2], seed: u64) {
    let (x, weight) = (scaled(seed, rows * channels, x), scaled(!seed, channels, w));
    let expected = reference::rms_norm(&x.f64(), &weight.f64(), 1e-6);
    for kernels in Kernels::all() {
        let mut out = Grid::<T>::nan(rows, channels);
        rms_norm(kernels, x.get(), weight.get(), 1e-6, &mut out.rows_mut());
        // The sum of squares, a division, a root, an addition and products. `eps` is rounded too.
        let bound = |i: usize| gamma(channels + 8) * expected[i].abs();
        out.assert_close(&expected, bound, &format!("{}, {rows} × {channels}", kernels.name));
    }
}

/// Texts that continue each other in any way.
fn forests(max_tokens: usize) -> impl Strategy<Value = Ragged> {
    let n_tokens = prop_oneof![3 => 1usize..9, 1 => 1..max_tokens];
    let kinds = vec![SegmentKind::Given, SegmentKind::Inner, SegmentKind::Text];
    let segment = (n_tokens, any::<Option<prop::sample::Index>>(), prop::sample::select(kinds));
    (vec(segment, 0..7), any::<bool>()).prop_map(|(segments, is_bidirectional)| {
        let segments = segments.into_iter().enumerate().map(|(idx, (n_tokens, parent, kind))| {
            let parent = parent.filter(|_| idx > 0 && !is_bidirectional).map(|at| at.index(idx));
            Segment { n_tokens, parent, kind }
        });
        let batch = Ragged::from_segments(segments).unwrap();
        if is_bidirectional { batch.bidirectional().unwrap() } else { batch }
    })
}

fn heads() -> impl Strategy<Value = Heads> {
    (1usize..4, 1usize..4, 1usize..20).prop_map(|(n_kv_heads, n_groups, half)| Heads {
        n_heads: n_kv_heads * n_groups,
        n_kv_heads,
        head_dim: 2 * half,
    })
}

/// Columns of heads in each row.
fn columns_of(qkv: &[f32], heads: Heads, first: usize, n: usize) -> Vec<f32> {
    let columns = first * heads.head_dim..(first + n) * heads.head_dim;
    let rows = qkv.chunks_exact(heads.qkv_columns());
    rows.flat_map(|row| row[columns.clone()].to_vec()).collect()
}

fn check_qk_norm_rope(batch: &Ragged, heads: Heads, first_query: usize, seed: u64) {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let (columns, half) = (heads.qkv_columns(), head_dim / 2);
    let before = Misaligned::random(seed, batch.n_tokens() * columns);
    let norms = [1, 2].map(|other| Misaligned::random(seed ^ other, head_dim));
    let frequency = |i: usize| 1e4f64.powf(-2.0 * i as f64 / head_dim as f64);
    let angles: Vec<f64> =
        batch.positions().flat_map(|p| (0..half).map(move |i| p as f64 * frequency(i))).collect();
    let cos: Vec<f32> = angles.iter().map(|angle| angle.cos() as f32).collect();
    let sin: Vec<f32> = angles.iter().map(|angle| angle.sin() as f32).collect();
    for kernels in Kernels::all() {
        let mut after = Misaligned::random(seed, batch.n_tokens() * columns);
        let weights = [norms[0].get(), norms[1].get()];
        qk_norm_rope(kernels, after.get_mut(), heads, first_query, weights, 1e-6, [&cos, &sin]);
        for (first, n, weight, first_row) in
            [(0, n_heads, &norms[0], first_query), (n_heads, n_kv_heads, &norms[1], 0)]
        {
            let x = columns_of(before.get(), heads, first, n);
            let got = columns_of(after.get(), heads, first, n);
            let wide = widened(&x);
            let expected = reference::qk_norm_rope(&wide, &weight.f64(), 1e-6, 1e4, batch);
            let normed = reference::rms_norm(&wide, &weight.f64(), 1e-6);
            for (i, &got) in got.iter().enumerate() {
                if i / (n * head_dim) < first_row {
                    assert_eq!(got, x[i], "{}: a query without a use", kernels.name);
                    continue;
                }
                let pair = i / head_dim * head_dim + i % half;
                let bound = gamma(head_dim + 12) * (normed[pair].abs() + normed[pair + half].abs());
                let error = (f64::from(got) - expected[i]).abs();
                assert!(error <= bound, "{}, {batch:?}, {heads:?}, {i}", kernels.name);
            }
        }
        let values =
            |qkv: &Misaligned| columns_of(qkv.get(), heads, n_heads + n_kv_heads, n_kv_heads);
        assert_eq!(values(&after), values(&before), "{}: values are left alone", kernels.name);
    }
}

fn check_attention<T: Value>(batch: &Ragged, heads: Heads, exponent: i32, seed: u64) {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let qkv = scaled(seed, batch.n_rows() * heads.qkv_columns(), exponent);
    let part = |first: usize, n: usize, scale: f64| -> Vec<f64> {
        let values = columns_of(qkv.get(), heads, first, n);
        values.into_iter().map(|v| T::of(v).into() * scale).collect()
    };
    // The kernel expects queries that are divided by √D. The reference divides them itself.
    let q = part(0, n_heads, (head_dim as f64).sqrt());
    let k = part(n_heads, n_kv_heads, 1.0);
    let v = part(n_heads + n_kv_heads, n_kv_heads, 1.0);
    let expected = reference::attention(&q, &k, &v, batch, n_heads, n_kv_heads, head_dim);
    // As in `cpu.rs`, for values up to `largest`. The factor exp(2δ) is computed for any δ.
    let largest = 2.0 * 2f64.powi(exponent);
    let score_error = gamma(head_dim) * head_dim as f64 * largest * largest;
    let roundings = 2 * batch.max_length() + 2 * EXP_ROUNDINGS + batch.max_length() / 16;
    let bound = largest * ((2.0 * score_error).exp_m1() + gamma(roundings) + T::U);
    for kernels in Kernels::all() {
        for queries in [Queries::All, Queries::Last] {
            let out = attend_from::<T>(kernels, qkv.get(), batch, queries, heads);
            let expected = &expected[batch.first_query(queries) * heads.q_columns()..];
            let what = format!("{}, {batch:?}, {queries:?}, {heads:?}", kernels.name);
            out.assert_close(expected, |_| bound, &what);
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn linear_of_any_shape_and_magnitude_matches_the_reference(shape in shapes(-20..20)) {
        for epilogue in [Epilogue::Store, Epilogue::Add] {
            check_linear::<f32, f32>(&shape, epilogue);
        }
        check_linear::<f32, bf16>(&shape, Epilogue::Store);
        if shape.keep_bf16 {
            check_linear::<bf16, bf16>(&shape, Epilogue::Store);
            check_linear::<bf16, f32>(&shape, Epilogue::Add);
        }
    }

    #[test]
    fn swiglu_of_any_shape_matches_the_reference(shape in shapes(-4..2)) {
        check_swiglu::<f32, f32>(&shape);
        if shape.keep_bf16 {
            check_swiglu::<bf16, bf16>(&shape);
        }
    }

    #[test]
    fn rms_norm_of_any_shape_and_magnitude_matches_the_reference(
        rows in 0usize..20,
        channels in 1usize..200,
        exponents in prop::array::uniform2(-20i32..20),
        seed: u64,
    ) {
        check_rms_norm::<f32>([rows, channels], exponents, seed);
        check_rms_norm::<bf16>([rows, channels], exponents, seed);
    }

    #[test]
    fn rope_of_any_forest_matches_the_reference(
        batch in forests(40),
        heads in heads(),
        first_query: prop::sample::Index,
        seed: u64,
    ) {
        let first_query = first_query.index(batch.n_tokens() + 1);
        check_qk_norm_rope(&batch, heads, first_query, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: config().cases.div_ceil(8), ..config() })]

    #[test]
    fn attention_along_any_forest_matches_the_reference(
        batch in forests(150),
        heads in heads(),
        exponent in -4i32..2,
        seed: u64,
    ) {
        check_attention::<f32>(&batch, heads, exponent, seed);
        check_attention::<bf16>(&batch, heads, exponent, seed);
    }
}
