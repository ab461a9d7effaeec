//! Every operation against its f64 reference, with bounds derived from the standard model of
//! rounding: a sum of n products in f32 is off by at most γ(n) = n·u / (1 − n·u) times the sum of
//! their magnitudes, where u is half the distance from 1 to the next f32 (Higham, *Accuracy and
//! Stability of Numerical Algorithms*, section 3.1).
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor};
use qwen3_embed_kernels::{Error, Ragged, ops, reference};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

const U: f64 = f32::EPSILON as f64 / 2.0;

fn gamma(n: usize) -> f64 {
    let nu = n as f64 * U;
    nu / (1.0 - nu)
}

struct Data(SmallRng);

impl Data {
    fn new(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }

    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.0.random_range(-2.0..2.0)).collect()
    }
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

/// Compares element by element: `bound(i)` is the largest error of element `i`.
fn assert_close(got: &Tensor, expected: &[f64], bound: impl Fn(usize) -> f64, what: &str) {
    let got = ops::to_f32(got).unwrap();
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let (error, bound) = ((f64::from(got) - expected).abs(), bound(i));
        assert!(error <= bound, "{what}, element {i}: {got} for {expected}, {error:e} > {bound:e}");
    }
}

#[test]
fn rms_norm_matches_the_reference() {
    for (rows, channels) in [(1, 1), (1, 7), (3, 64), (40, 129), (2, 4096)] {
        let mut data = Data::new(1);
        let (x, weight) = (data.values(rows * channels), data.values(channels));
        let y = ops::rms_norm(&tensor(&x, &[rows, channels]), &tensor(&weight, &[channels]), 1e-6);
        let expected = reference::rms_norm(&wide(&x), &wide(&weight), 1e-6);
        // The sum of squares, then the division, root, addition and products, each rounded; eps
        // itself is rounded to f32.
        let relative = gamma(channels + 8);
        let what = format!("{rows} × {channels}");
        assert_close(&y.unwrap(), &expected, |i| relative * expected[i].abs() + 1e-37, &what);
    }
}

#[test]
fn rms_norm_of_a_zero_row_is_zero() {
    let zeros = tensor(&[0.0; 8], &[2, 4]);
    let y = ops::rms_norm(&zeros, &tensor(&[3.0; 4], &[4]), 1e-6).unwrap();
    assert_eq!(ops::to_f32(&y).unwrap(), [0.0; 8]);
}

/// Row counts around the ones at which the matrix product takes another path.
const LINEAR_SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 3, 5),
    (2, 64, 64),
    (5, 64, 63),
    (64, 33, 65),
    (65, 64, 64),
    (3, 640, 256),
    (1, 1024, 1024),
    (7, 96, 1023),
    (2, 32, 1025),
    (3, 32, 2049),
    (66, 130, 257),
];

#[test]
fn linear_matches_the_reference() {
    for (rows, n_in, n_out) in LINEAR_SHAPES {
        for weight_type in [DType::F32, DType::BF16] {
            let mut data = Data::new(2);
            let (x, bias) = (data.values(rows * n_in), data.values(n_out));
            let weight = tensor(&data.values(n_out * n_in), &[n_out, n_in]);
            let weight = weight.to_dtype(weight_type).unwrap();
            let w = wide(&ops::to_f32(&weight).unwrap());
            for bias in [None, Some(bias.as_slice())] {
                let layer =
                    ops::Linear::new(weight.clone(), bias.map(|b| tensor(b, &[n_out]))).unwrap();
                let y = layer.forward(&tensor(&x, &[rows, n_in])).unwrap();
                assert_eq!(y.dims(), [rows, n_out]);
                let bias = bias.map(wide);
                let expected = reference::linear(&wide(&x), &w, bias.as_deref(), n_in);
                let magnitude = |v: &[f64]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
                let sums = reference::linear(
                    &magnitude(&wide(&x)),
                    &magnitude(&w),
                    bias.as_deref().map(magnitude).as_deref(),
                    n_in,
                );
                let what = format!("{rows} × {n_in} × {n_out} {weight_type:?}");
                assert_close(&y, &expected, |i| gamma(n_in + 1) * sums[i], &what);
            }
        }
    }
}

#[test]
fn a_row_of_a_product_does_not_depend_on_the_other_rows() {
    for (_, n_in, n_out) in LINEAR_SHAPES {
        for weight_type in [DType::F32, DType::BF16] {
            let mut data = Data::new(3);
            let rows = 70;
            let x = tensor(&data.values(rows * n_in), &[rows, n_in]);
            let weight = tensor(&data.values(n_out * n_in), &[n_out, n_in]);
            let layer = ops::Linear::new(weight.to_dtype(weight_type).unwrap(), None).unwrap();
            let all = ops::to_f32(&layer.forward(&x).unwrap()).unwrap();
            for count in [1, 2, 3, 8, 17, 33, 64, 65, 69] {
                let some = layer.forward(&x.narrow(0, 0, count).unwrap()).unwrap();
                let some = ops::to_f32(&some).unwrap();
                assert!(some == all[..count * n_out], "{count} rows of {n_in} × {n_out}");
            }
        }
    }
}

/// Cosines and sines of each token, in f64 and as tensors.
fn rope_tables(batch: &Ragged, head_dim: usize, theta: f64) -> (Tensor, Tensor) {
    let half = head_dim / 2;
    let angle = |p: usize, i: usize| p as f64 * theta.powf(-2.0 * i as f64 / head_dim as f64);
    let angles: Vec<f64> =
        batch.positions().flat_map(|p| (0..half).map(move |i| angle(p, i))).collect();
    let table = |f: fn(f64) -> f64| {
        let values: Vec<f32> = angles.iter().map(|&a| f(a) as f32).collect();
        tensor(&values, &[batch.n_tokens(), half])
    };
    (table(f64::cos), table(f64::sin))
}

#[test]
fn qk_norm_rope_matches_the_reference() {
    for (lengths, heads, head_dim) in
        [(vec![1], 1, 2), (vec![3, 1, 300], 2, 16), (vec![5, 40], 3, 128), (vec![9], 8, 6)]
    {
        let batch = Ragged::from_lengths(lengths).unwrap();
        let mut data = Data::new(4);
        let columns = heads * head_dim;
        let (x, weight) = (data.values(batch.n_tokens() * columns), data.values(head_dim));
        let (cos, sin) = rope_tables(&batch, head_dim, 1e4);
        let shape = [batch.n_tokens(), columns];
        let weights = tensor(&weight, &[head_dim]);
        let y = ops::qk_norm_rope(&tensor(&x, &shape), &weights, 1e-6, &cos, &sin).unwrap();
        assert_eq!(y.dims(), [batch.n_tokens(), heads, head_dim]);
        let expected = reference::qk_norm_rope(&wide(&x), &wide(&weight), 1e-6, 1e4, &batch);
        let normed = reference::rms_norm(&wide(&x), &wide(&weight), 1e-6);
        // The norm's error, and a rotation of the pair: two products of rounded tables, one sum.
        let pair = |i: usize| {
            let (head, lane) = (i / head_dim * head_dim, i % (head_dim / 2));
            normed[head + lane].abs() + normed[head + lane + head_dim / 2].abs()
        };
        assert_close(&y, &expected, |i| gamma(head_dim + 12) * pair(i), &format!("{shape:?}"));
    }
}

#[test]
fn rope_leaves_the_first_position_and_turns_the_others() {
    let batch = Ragged::from_lengths([2]).unwrap();
    let (cos, sin) = rope_tables(&batch, 4, 1e4);
    let x = tensor(&[1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0], &[2, 4]);
    let rotated = ops::qk_norm_rope(&x, &tensor(&[1.0; 4], &[4]), 0.0, &cos, &sin).unwrap();
    let rotated = ops::to_f32(&rotated).unwrap();
    let scale = 1.0 / 7.5f32.sqrt();
    for (lane, value) in rotated[..4].iter().enumerate() {
        assert!((value - scale * (lane + 1) as f32).abs() < 1e-6);
    }
    // Lane 0 is paired with lane 2, half a head away, and turned by one radian.
    let expected = scale * (1f32.cos() - 3.0 * 1f32.sin());
    assert!((rotated[4] - expected).abs() < 1e-6, "{} for {expected}", rotated[4]);
}

#[test]
fn causal_attention_matches_the_reference() {
    let cases = [
        (vec![1], 1, 1, 2),
        (vec![1, 2, 3], 4, 2, 8),
        (vec![127, 128, 129], 2, 1, 16),
        (vec![5, 260], 6, 2, 10),
        (vec![33, 33], 3, 3, 128),
    ];
    for (lengths, heads, kv_heads, dim) in cases {
        let batch = Ragged::from_lengths(lengths.clone()).unwrap();
        let t = batch.n_tokens();
        let mut data = Data::new(5);
        let q = data.values(t * heads * dim);
        let (k, v) = (data.values(t * kv_heads * dim), data.values(t * kv_heads * dim));
        let kv_shape = [t, kv_heads, dim];
        let (keys, values) = (tensor(&k, &kv_shape), tensor(&v, &kv_shape));
        let y = ops::causal_attention(&tensor(&q, &[t, heads, dim]), &keys, &values, &batch);
        let (q, k, v) = (wide(&q), wide(&k), wide(&v));
        let expected = reference::causal_attention(&q, &k, &v, &batch, heads, kv_heads, dim);
        // Values are at most 2: a score is off by δ, hence a weight by the factor exp(2δ), and the
        // exponentials, their sum and the weighted sum each add their own roundings.
        let score_error = gamma(dim + 3) * dim as f64 * 4.0 / (dim as f64).sqrt();
        let longest = batch.max_length();
        let bound = 2.0 * (2.0 * score_error + gamma(2 * longest + 16));
        let what = format!("{lengths:?}, {heads} heads over {kv_heads} of {dim}");
        assert_close(&y.unwrap(), &expected, |_| bound, &what);
    }
}

#[test]
fn attention_does_not_look_at_other_texts() {
    let (heads, dim) = (2, 8);
    let mut data = Data::new(6);
    let n = 50 * heads * dim;
    let operands = [data.values(n), data.values(n), data.values(n)];
    let operands = operands.map(|values| tensor(&values, &[50, heads, dim]));
    let attention = |start: usize, lengths: &[usize]| {
        let batch = Ragged::from_lengths(lengths.iter().copied()).unwrap();
        let [q, k, v] = operands.each_ref().map(|x| x.narrow(0, start, batch.n_tokens()).unwrap());
        ops::to_f32(&ops::causal_attention(&q, &k, &v, &batch).unwrap()).unwrap()
    };
    let together = attention(0, &[20, 7, 23]);
    let apart = [attention(0, &[20]), attention(20, &[7]), attention(27, &[23])].concat();
    assert!(together == apart);
}

#[test]
fn swiglu_matches_the_reference() {
    for (rows, ffn) in [(1, 1), (3, 5), (2, 3072)] {
        let mut data = Data::new(7);
        let mut x = data.values(rows * 2 * ffn);
        x[0] = -200.0;
        let y = ops::swiglu(&tensor(&x, &[rows, 2 * ffn])).unwrap();
        let expected = reference::swiglu(&wide(&x), ffn);
        // An exponential within 2 ulp, an addition, a division and a product.
        assert_close(&y, &expected, |i| 8.0 * U * expected[i].abs() + 1e-37, "swiglu");
    }
}

#[test]
fn gather_rows_picks_rows_in_order() {
    let x: Vec<f32> = (0..12).map(|v| v as f32).collect();
    let y = ops::gather_rows(&tensor(&x, &[4, 3]), &[3, 0, 3]).unwrap();
    let expected = reference::gather_rows(&wide(&x), &[3, 0, 3], 3);
    assert_eq!(wide(&ops::to_f32(&y).unwrap()), expected);
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let x = tensor(&[0.0; 12], &[2, 6]);
    let w = |n: usize| tensor(&vec![1.0; n], &[n]);
    let batch = Ragged::from_lengths([2]).unwrap();
    let heads = |h: usize| tensor(&vec![0.0; 4 * h], &[2, h, 2]);
    let linear = ops::Linear::new(tensor(&[0.0; 8], &[2, 4]), None).unwrap();
    let results = [
        ("rms_norm", ops::rms_norm(&x, &w(5), 1e-6)),
        ("linear", linear.forward(&x)),
        ("swiglu", ops::swiglu(&tensor(&[0.0; 6], &[2, 3]))),
        ("gather_rows", ops::gather_rows(&x, &[0, 2])),
        ("qk_norm_rope", ops::qk_norm_rope(&x, &w(4), 1e-6, &x, &x)),
        ("qk_norm_rope tables", ops::qk_norm_rope(&x, &w(6), 1e-6, &x, &x)),
        ("causal_attention q", ops::causal_attention(&x, &heads(1), &heads(1), &batch)),
        (
            "causal_attention k and v",
            ops::causal_attention(&heads(3), &heads(2), &heads(2), &batch),
        ),
    ];
    for (operation, result) in results {
        match result {
            Err(Error::Shape { op, .. }) => assert_eq!(op, operation),
            other => panic!("{operation}: {other:?}"),
        }
    }
    let bias = ops::Linear::new(tensor(&[0.0; 8], &[2, 4]), Some(w(3)));
    assert!(matches!(bias, Err(Error::Shape { op: "linear bias", .. })));
}
