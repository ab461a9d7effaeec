//! Every kernel against its f64 reference, on the emulator and on a GPU.
//!
//! Bounds are derived as in `tests/cpu.rs`: γ(n) for n roundings in f32, and half the distance from 1 to the next value
//! of a 16-bit type where values are stored in it. Outputs are initialized with NaN, so that tests see elements that
//! are not written, and gaps between rows are NaN, which must be NaN afterwards.

use half::{bf16, f16};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::emulator::Emulator;
use super::{
    Attention, AttentionIndex, AttentionKernel, ElementType, Launch, Shape, attention, bias,
    copy_rows,
};
use super::{gather_rows, qk_norm_rope, rms_norm, swiglu};
use crate::cpu::Heads;
use crate::{Error, Queries, Ragged, Segment, SegmentKind, reference};

/// Runs launches: the emulator or a GPU.
pub(super) trait Runner {
    /// Runs a launch with these buffers for pointers.
    fn run(&self, launch: &Launch, buffers: &mut [Buffer]);
}

/// A buffer in the memory of a device.
#[derive(Debug, Clone)]
pub(super) enum Buffer {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    U32(Vec<u32>),
}

impl Buffer {
    fn new(element: ElementType, values: &[f64]) -> Self {
        match element {
            ElementType::F32 => Self::F32(values.iter().map(|&v| v as f32).collect()),
            ElementType::Bf16 => Self::Bf16(values.iter().map(|&v| bf16::from_f64(v)).collect()),
            ElementType::F16 => Self::F16(values.iter().map(|&v| f16::from_f64(v)).collect()),
        }
    }

    fn f64(&self) -> Vec<f64> {
        match self {
            Self::F32(values) => values.iter().map(|&v| v.into()).collect(),
            Self::Bf16(values) => values.iter().map(|&v| v.into()).collect(),
            Self::F16(values) => values.iter().map(|&v| v.into()).collect(),
            Self::U32(values) => values.iter().map(|&v| v.into()).collect(),
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::F32(values) => values.iter().flat_map(|v| v.to_ne_bytes()).collect(),
            Self::Bf16(values) => values.iter().flat_map(|v| v.to_ne_bytes()).collect(),
            Self::F16(values) => values.iter().flat_map(|v| v.to_ne_bytes()).collect(),
            Self::U32(values) => values.iter().flat_map(|v| v.to_ne_bytes()).collect(),
        }
    }

    /// A buffer of the same type with other contents.
    pub(super) fn with_bytes(&self, bytes: &[u8]) -> Self {
        let (two, four) = (bytes.as_chunks().0.iter(), bytes.as_chunks().0.iter());
        match self {
            Self::F32(_) => Self::F32(four.map(|&b| f32::from_ne_bytes(b)).collect()),
            Self::Bf16(_) => Self::Bf16(two.map(|&b| bf16::from_ne_bytes(b)).collect()),
            Self::F16(_) => Self::F16(two.map(|&b| f16::from_ne_bytes(b)).collect()),
            Self::U32(_) => Self::U32(four.map(|&b| u32::from_ne_bytes(b)).collect()),
        }
    }
}

const ELEMENT_TYPES: [ElementType; 3] = [ElementType::F32, ElementType::Bf16, ElementType::F16];

const U: f64 = f32::EPSILON as f64 / 2.0;

fn gamma(n: usize) -> f64 {
    let nu = n as f64 * U;
    nu / (1.0 - nu)
}

/// The relative error of storing a value in a type, beyond the error of f32.
fn unit(element: ElementType) -> f64 {
    match element {
        ElementType::F32 => 0.0,
        ElementType::Bf16 => 1.0 / 256.0,
        ElementType::F16 => 1.0 / 2048.0,
    }
}

/// The distance between the smallest values of f16.
const TINY: f64 = 1.0 / (1 << 24) as f64;

fn random(rng: &mut SmallRng, n: usize) -> Vec<f64> {
    (0..n).map(|_| rng.random_range(-2.0..2.0)).collect()
}

/// A matrix of this shape with gaps of NaN between its rows.
fn spread(values: &[f64], shape: Shape) -> Vec<f64> {
    let mut spread = vec![f64::NAN; shape.n_rows * shape.stride];
    for row in 0..shape.n_rows {
        let from = &values[row * shape.n_columns..][..shape.n_columns];
        spread[row * shape.stride..][..shape.n_columns].copy_from_slice(from);
    }
    spread
}

/// The rows of a matrix, without its gaps, which must be NaN.
fn gathered(values: &[f64], shape: Shape) -> Vec<f64> {
    let mut rows = Vec::new();
    for row in values.chunks(shape.stride) {
        rows.extend_from_slice(&row[..shape.n_columns]);
        assert!(row[shape.n_columns..].iter().all(|v| v.is_nan()), "a gap was written to");
    }
    rows
}

fn gaps(n_rows: usize, n_columns: usize, gap: usize) -> Shape {
    Shape { n_rows, n_columns, stride: n_columns + gap }
}

#[track_caller]
fn assert_close(what: &str, got: &[f64], expected: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let (difference, bound) = ((got - expected).abs(), bound(i) + TINY);
        assert!(difference <= bound, "{what}, {i}: {got:e}, expected {expected:e} ± {bound:e}");
    }
}

fn rms_norm_matches_the_reference(runner: &dyn Runner) {
    let mut rng = SmallRng::seed_from_u64(1);
    for element in ELEMENT_TYPES {
        for (n_rows, n_columns, gap) in
            [(1, 1, 3), (3, 31, 3), (5, 256, 0), (2, 1000, 8), (2, 1000, 3), (4, 1028, 8)]
        {
            let (x_shape, shape) = (gaps(n_rows, n_columns, gap), gaps(n_rows, n_columns, 2 * gap));
            let x = Buffer::new(ElementType::F32, &random(&mut rng, n_rows * n_columns)).f64();
            let weight = Buffer::new(ElementType::F32, &random(&mut rng, n_columns));
            let expected = reference::rms_norm(&x, &weight.f64(), 1e-6);
            let launch = rms_norm(element, x_shape, shape, 1e-6).unwrap();
            let mut buffers = [
                Buffer::new(ElementType::F32, &spread(&x, x_shape)),
                weight,
                Buffer::new(element, &vec![f64::NAN; n_rows * shape.stride]),
            ];
            runner.run(&launch, &mut buffers);
            let got = gathered(&buffers[2].f64(), shape);
            let relative = gamma(n_columns + 8) + unit(element);
            assert_close("rms_norm", &got, &expected, |i| relative * expected[i].abs());
        }
    }
}

fn qk_norm_rope_matches_the_reference(runner: &dyn Runner) {
    let mut rng = SmallRng::seed_from_u64(2);
    let theta = 1e4;
    for element in ELEMENT_TYPES {
        for (n_heads, n_kv_heads, head_dim, first_query, gap) in [
            (4, 2, 128, 0, 2),
            (4, 2, 128, 0, 1),
            (2, 1, 6, 2, 2),
            (3, 3, 256, 4, 2),
            (2, 2, 64, 0, 2),
        ] {
            let heads = Heads { n_heads, n_kv_heads, head_dim };
            let batch = Ragged::from_lengths([3, 4]).unwrap();
            let n_rows = batch.n_tokens();
            let shape = gaps(n_rows, heads.qkv_columns(), gap);
            let qkv = Buffer::new(element, &random(&mut rng, n_rows * shape.n_columns)).f64();
            let norms = [0; 2].map(|_| Buffer::new(ElementType::F32, &random(&mut rng, head_dim)));
            let angles = || {
                let half = head_dim / 2;
                let frequency = move |i| f64::powf(theta, -2.0 * i as f64 / head_dim as f64);
                batch.positions().flat_map(move |p| (0..half).map(move |i| p as f64 * frequency(i)))
            };
            let tables = [f64::cos, f64::sin]
                .map(|of| Buffer::new(ElementType::F32, &angles().map(of).collect::<Vec<_>>()));
            let launch = qk_norm_rope(element, shape, heads, first_query, 1e-6).unwrap();
            let [q_norm, k_norm] = norms.clone();
            let [cos, sin] = tables;
            let buffer = Buffer::new(element, &spread(&qkv, shape));
            let mut buffers = [buffer, q_norm, k_norm, cos, sin];
            runner.run(&launch, &mut buffers);
            let got = gathered(&buffers[0].f64(), shape);
            let (q, k) = (heads.q_columns(), n_kv_heads * head_dim);
            let columns = |values: &[f64], from: usize, n: usize| -> Vec<f64> {
                values
                    .chunks(shape.n_columns)
                    .flat_map(|row| row[from..from + n].to_vec())
                    .collect()
            };
            for (norm, from, n, first) in [(&norms[0], 0, q, first_query), (&norms[1], q, k, 0)] {
                let x = columns(&qkv, from, n);
                let expected = reference::qk_norm_rope(&x, &norm.f64(), 1e-6, theta, &batch);
                // Both products of a rotated value are at most as large as the length of the pair.
                let normed = reference::rms_norm(&x, &norm.f64(), 1e-6);
                let pair = |i: usize| {
                    let (head, lane) = (i / head_dim * head_dim, i % (head_dim / 2));
                    normed[head + lane].hypot(normed[head + lane + head_dim / 2])
                };
                let got = columns(&got, from, n);
                let skipped = first * n;
                assert_eq!(got[..skipped], x[..skipped], "rows without queries are left alone");
                assert_close("qk_norm_rope", &got[skipped..], &expected[skipped..], |i| {
                    2.0 * gamma(head_dim + 12) * pair(i + skipped)
                        + unit(element) * expected[i + skipped].abs()
                });
            }
            assert_eq!(columns(&got, q + k, k), columns(&qkv, q + k, k), "values are left alone");
        }
    }
}

fn swiglu_matches_the_reference(runner: &dyn Runner) {
    let mut rng = SmallRng::seed_from_u64(3);
    for element in ELEMENT_TYPES {
        for (n_rows, ffn_size, gap) in [(1, 1, 3), (3, 300, 3), (2, 2056, 8), (4, 96, 0)] {
            let in_shape = gaps(n_rows, 2 * ffn_size, gap);
            let shape = gaps(n_rows, ffn_size, 2 * gap);
            let mut values = random(&mut rng, n_rows * 2 * ffn_size);
            // Extreme values on both sides of the sigmoid.
            values[0] = -100.0;
            values[(n_rows - 1) * 2 * ffn_size] = 100.0;
            let gate_up = Buffer::new(element, &values).f64();
            let expected = reference::swiglu(&gate_up, ffn_size);
            let launch = swiglu(element, in_shape, shape).unwrap();
            let mut buffers = [
                Buffer::new(element, &spread(&gate_up, in_shape)),
                Buffer::new(element, &vec![f64::NAN; n_rows * shape.stride]),
            ];
            runner.run(&launch, &mut buffers);
            let got = gathered(&buffers[1].f64(), shape);
            let relative = gamma(16) + unit(element);
            assert_close("swiglu", &got, &expected, |i| relative * expected[i].abs());
        }
    }
}

fn gather_rows_matches_the_reference(runner: &dyn Runner) {
    let mut rng = SmallRng::seed_from_u64(7);
    for element in ELEMENT_TYPES {
        for (n_columns, gap) in [(64, 0), (1, 2), (30, 3), (1028, 8)] {
            let (table, out) = (gaps(9, n_columns, gap), gaps(5, n_columns, gap));
            let x = Buffer::new(element, &random(&mut rng, 9 * n_columns)).f64();
            let rows = [8, 0, 3, 3, 7];
            let expected = reference::gather_rows(&x, &rows, n_columns);
            let mut buffers = [
                Buffer::new(element, &spread(&x, table)),
                Buffer::U32(rows.to_vec()),
                Buffer::new(ElementType::F32, &vec![f64::NAN; 5 * out.stride]),
            ];
            runner.run(&gather_rows(element, table, out).unwrap(), &mut buffers);
            assert_eq!(gathered(&buffers[2].f64(), out), expected);
        }
    }
}

fn bias_and_copy_rows_match_the_reference(runner: &dyn Runner) {
    let mut rng = SmallRng::seed_from_u64(4);
    for element in ELEMENT_TYPES {
        let (n_rows, n_columns) = (3, 300);
        let (from, to) = (gaps(n_rows, n_columns, 1), gaps(n_rows, n_columns, 2));
        let x = Buffer::new(element, &random(&mut rng, n_rows * n_columns)).f64();
        let values = Buffer::new(ElementType::F32, &random(&mut rng, n_columns));
        let unwritten = Buffer::new(element, &vec![f64::NAN; n_rows * to.stride]);
        let spread = Buffer::new(element, &spread(&x, to));

        let mut buffers = [Buffer::new(element, &self::spread(&x, from)), unwritten.clone()];
        runner.run(&copy_rows(element, from, to).unwrap(), &mut buffers);
        assert_eq!(gathered(&buffers[1].f64(), to), x);

        for (add, out) in [(false, unwritten), (true, spread)] {
            let mut buffers = [values.clone(), out];
            runner.run(&bias(element, to, add).unwrap(), &mut buffers);
            let bias = values.f64();
            let sums = |i: usize| bias[i % n_columns] + if add { x[i] } else { 0.0 };
            let expected: Vec<f64> = (0..x.len()).map(sums).collect();
            let relative = gamma(1) + unit(element);
            let got = gathered(&buffers[1].f64(), to);
            assert_close("bias", &got, &expected, |i| relative * expected[i].abs());
        }
    }
}

/// A batch in which segments of every kind continue segments of every kind, across the edges of blocks.
fn forest(rng: &mut SmallRng, n_segments: usize, longest: usize) -> Ragged {
    let mut kinds = Vec::new();
    let segments = (0..n_segments).map(|idx| {
        let parent = (idx > 0 && rng.random_bool(0.7)).then(|| rng.random_range(0..idx));
        let is_known = parent.is_none_or(|parent: usize| kinds[parent] == SegmentKind::Given);
        let kind = match rng.random_range(0..4) {
            0 if is_known => SegmentKind::Given,
            0 | 1 => SegmentKind::Inner,
            _ => SegmentKind::Text,
        };
        kinds.push(kind);
        Segment { n_tokens: rng.random_range(1..=longest), parent, kind }
    });
    Ragged::from_segments(segments.collect::<Vec<_>>()).unwrap()
}

/// Bidirectional texts, whose last tokens are the last rows.
fn bidirectional(lengths: &[usize]) -> Ragged {
    let (parent, kind) = (None, SegmentKind::Text);
    let segments = lengths.iter().map(|&n_tokens| Segment { n_tokens, parent, kind });
    Ragged::from_segments(segments).unwrap().bidirectional().unwrap()
}

/// Compares attention over a batch with the reference, with queries of all tokens and with queries of last tokens only.
fn attend(
    runner: &dyn Runner,
    rng: &mut SmallRng,
    batch: &Ragged,
    heads: Heads,
    element: ElementType,
) {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    let qkv_shape = gaps(batch.n_rows(), heads.qkv_columns(), 8);
    let values = random(rng, batch.n_rows() * heads.qkv_columns());
    let mut qkv = Buffer::new(element, &values).f64();
    // Queries are scaled so that scores are as large as in trained models, and the softmax has a tail of small weights.
    for row in qkv.chunks_mut(heads.qkv_columns()) {
        row[..heads.q_columns()].iter_mut().for_each(|q| *q *= 0.25);
    }
    let columns = |from: usize, n: usize| -> Vec<f64> {
        let rows = qkv.chunks(heads.qkv_columns());
        rows.flat_map(|row| row[from * head_dim..][..n * head_dim].to_vec()).collect()
    };
    // The kernels expect queries that are divided by √D.
    let sqrt = (head_dim as f64).sqrt();
    let q: Vec<f64> = columns(0, n_heads).into_iter().map(|q| q * sqrt).collect();
    let (k, v) = (columns(n_heads, n_kv_heads), columns(n_heads + n_kv_heads, n_kv_heads));
    let magnitudes: Vec<f64> = v.iter().map(|v| v.abs()).collect();
    let largest_score = 0.5 * 2.0 * head_dim as f64;
    let reference =
        |v: &[f64]| reference::attention(&q, &k, v, batch, n_heads, n_kv_heads, head_dim);
    let (expected, weighted) = (reference(&v), reference(&magnitudes));
    for queries in [Queries::All, Queries::Last] {
        let first_query = batch.first_query(queries);
        let n_queries = batch.n_rows() - first_query;
        let shape = gaps(n_queries, heads.q_columns(), 8);
        let place = |shape: Shape| [shape.stride, 0];
        let kernel = AttentionKernel::choose(element, heads, [qkv_shape, shape].map(place));
        let options = Attention { heads, queries, causal: batch.is_causal() };
        let index = AttentionIndex::new(batch, options, kernel);
        let n_tiles = index.tiles.len() / 3;
        let shapes = [qkv_shape, shape];
        let launch = attention(element, kernel, options, n_tiles, shapes, first_query).unwrap();
        if launch.is_empty() {
            assert_eq!(n_queries, 0);
            continue;
        }
        let mut buffers = [
            Buffer::new(element, &spread(&qkv, qkv_shape)),
            Buffer::new(element, &vec![f64::NAN; n_queries * shape.stride]),
            Buffer::U32(index.segments),
            Buffer::U32(index.tiles),
        ];
        runner.run(&launch, &mut buffers);
        let got = gathered(&buffers[1].f64(), shape);
        let skipped = first_query * heads.q_columns();
        let (expected, weighted) = (&expected[skipped..], &weighted[skipped..]);
        // The error of a score comes from the roundings of its sum. The relative error of its weight is as large, and
        // is counted twice, because the sum of all weights has an error too. Tensor cores multiply rounded weights.
        let score = (gamma(head_dim + 2) + 4.0 * U) * largest_score;
        let weight = 2.0 * score + gamma(batch.max_length() + 16);
        let rounded = if kernel == AttentionKernel::Flash { unit(element) } else { 0.0 };
        let what = format!("{}, causal: {}, {queries:?}", launch.name(), options.causal);
        assert_close(&what, &got, expected, |i| {
            (weight + rounded) * weighted[i] + unit(element) * expected[i].abs()
        });
    }
}

fn attention_along_segments_matches_the_reference(runner: &dyn Runner) {
    let mut rng = SmallRng::seed_from_u64(5);
    for (element, n_heads, n_kv_heads, head_dim) in [
        (ElementType::F32, 2, 1, 8),
        (ElementType::F32, 4, 2, 128),
        (ElementType::F32, 1, 1, 256),
        (ElementType::Bf16, 3, 1, 34),
        (ElementType::F16, 2, 2, 64),
    ] {
        let heads = Heads { n_heads, n_kv_heads, head_dim };
        let lengths = [1, 33, 2];
        attend(runner, &mut rng, &Ragged::from_lengths(lengths).unwrap(), heads, element);
        attend(runner, &mut rng, &bidirectional(&lengths), heads, element);
        let batch = forest(&mut rng, 12, 20);
        attend(runner, &mut rng, &batch, heads, element);
    }
}

fn attention_on_tensor_cores_matches_the_reference(runner: &dyn Runner) {
    let mut rng = SmallRng::seed_from_u64(6);
    for (element, n_heads, n_kv_heads) in [
        (ElementType::Bf16, 4, 2),
        (ElementType::F16, 1, 1),
        (ElementType::Bf16, 8, 2),
        (ElementType::Bf16, 3, 1),
    ] {
        let heads = Heads { n_heads, n_kv_heads, head_dim: 128 };
        let lengths = [1, 64, 65, 130];
        attend(runner, &mut rng, &Ragged::from_lengths(lengths).unwrap(), heads, element);
        attend(runner, &mut rng, &bidirectional(&lengths), heads, element);
        let batch = forest(&mut rng, 12, 50);
        attend(runner, &mut rng, &batch, heads, element);
    }
}

/// All keys have the same large score, and values are 1 in the first half of a text and −1 in the second, so that small
/// errors of every block of keys add up to a large error.
fn attention_over_many_blocks_accumulates_no_error(runner: &dyn Runner) {
    const N: usize = 64 * 100;
    let heads = Heads { n_heads: 1, n_kv_heads: 1, head_dim: 128 };
    let segment = Segment { n_tokens: N, parent: None, kind: SegmentKind::Text };
    let batch = Ragged::from_segments([segment]).unwrap();
    let options = Attention { heads, queries: Queries::Last, causal: true };
    let first_query = batch.first_query(options.queries);
    let (shape, out_shape) = (Shape::dense(N, 3 * 128), Shape::dense(1, 128));
    let qkv: Vec<f64> = (0..N)
        .flat_map(|row| {
            let value = if row < N / 2 { 1.0 } else { -1.0 };
            [2.75, 2.5, value].into_iter().flat_map(|v| [v; 128])
        })
        .collect();
    for kernel in [AttentionKernel::Flash, AttentionKernel::Simple] {
        let index = AttentionIndex::new(&batch, options, kernel);
        let (n_tiles, shapes) = (index.tiles.len() / 3, [shape, out_shape]);
        let launch =
            attention(ElementType::Bf16, kernel, options, n_tiles, shapes, first_query).unwrap();
        let mut buffers = [
            Buffer::new(ElementType::Bf16, &qkv),
            Buffer::new(ElementType::Bf16, &[f64::NAN; 128]),
            Buffer::U32(index.segments),
            Buffer::U32(index.tiles),
        ];
        runner.run(&launch, &mut buffers);
        assert_close(&launch.name(), &buffers[1].f64(), &[0.0; 128], |_| 1e-5);
    }
}

macro_rules! on_emulator_and_gpu {
    ($($check:ident)*) => {
        mod on_the_emulator {
            use super::*;
            $(
                #[test]
                fn $check() {
                    Emulator::both().iter().for_each(|emulator| super::$check(emulator));
                }
            )*
        }

        #[cfg(feature = "cuda")]
        mod on_a_gpu {
            $(
                #[test]
                #[ignore = "needs a CUDA device"]
                fn $check() {
                    super::$check(&super::gpu::Gpu::open());
                }
            )*
        }
    };
}

on_emulator_and_gpu! {
    rms_norm_matches_the_reference qk_norm_rope_matches_the_reference swiglu_matches_the_reference
    bias_and_copy_rows_match_the_reference gather_rows_matches_the_reference
    attention_along_segments_matches_the_reference attention_on_tensor_cores_matches_the_reference
    attention_over_many_blocks_accumulates_no_error
}

/// The first GPU of this machine.
#[cfg(feature = "cuda")]
mod gpu {
    use std::sync::LazyLock;

    use candle_core::Device;
    use candle_core::cuda_backend::CudaDevice;
    use candle_core::cuda_backend::cudarc::driver::DevicePtr;

    use super::{Buffer, Launch, Runner};
    use crate::cuda::device;

    pub(super) struct Gpu(CudaDevice);

    impl Gpu {
        /// The device of all tests. It is never closed, because closing a device makes recordings of other tests fail.
        pub(super) fn open() -> Self {
            static DEVICE: LazyLock<Device> = LazyLock::new(|| device::open(0).unwrap());
            Self(DEVICE.as_cuda_device().unwrap().clone())
        }
    }

    impl Runner for Gpu {
        fn run(&self, launch: &Launch, buffers: &mut [Buffer]) {
            let stream = self.0.cuda_stream();
            let memory: Vec<_> =
                buffers.iter().map(|b| self.0.clone_htod(&b.bytes()).unwrap()).collect();
            let pointers: Vec<u64> = memory.iter().map(|m| m.device_ptr(&stream).0).collect();
            // SAFETY: each test passes the buffers for which it made the launch.
            unsafe { device::launch(&self.0, launch, &pointers) }.unwrap();
            for (buffer, memory) in buffers.iter_mut().zip(&memory) {
                *buffer = buffer.with_bytes(&self.0.clone_dtoh(memory).unwrap());
            }
        }
    }
}

#[test]
fn rejects_sizes_beyond_the_limits_of_the_kernels() {
    let heads = |head_dim| Heads { n_heads: 1, n_kv_heads: 1, head_dim };
    let wide = Shape::dense(1, 3 * 258);
    let options = Attention { heads: heads(258), queries: Queries::All, causal: true };
    let too_many = Shape::dense(1 << 31, 1);
    let launches = [
        qk_norm_rope(ElementType::F32, wide, heads(258), 0, 0.0),
        attention(ElementType::F32, AttentionKernel::Simple, options, 1, [wide, wide], 0),
        rms_norm(ElementType::F32, too_many, too_many, 0.0),
        swiglu(ElementType::F32, Shape::dense(1, 1 << 34), Shape::dense(1, 1 << 33)),
        copy_rows(ElementType::F32, Shape::dense(1, 1), gaps(1, 1, u32::MAX as usize)),
    ];
    for launch in launches {
        assert!(matches!(launch, Err(Error::Limit { .. })), "{launch:?}");
    }
}

#[test]
fn chooses_tensor_cores_for_supported_types_and_shapes() {
    let choose = |element, n_heads, head_dim, places| {
        AttentionKernel::choose(element, Heads { n_heads, n_kv_heads: 1, head_dim }, places)
    };
    let aligned = [[768, 0], [288, 16]];
    assert_eq!(choose(ElementType::Bf16, 4, 128, aligned), AttentionKernel::Flash);
    assert_eq!(choose(ElementType::F16, 64, 128, aligned), AttentionKernel::Flash);
    assert_eq!(choose(ElementType::F32, 4, 128, aligned), AttentionKernel::Simple);
    assert_eq!(choose(ElementType::Bf16, 4, 64, aligned), AttentionKernel::Simple);
    assert_eq!(choose(ElementType::Bf16, 65, 128, aligned), AttentionKernel::Simple);
    for places in [[[769, 0], [288, 0]], [[768, 4], [288, 0]], [[768, 0], [260, 0]]] {
        assert_eq!(choose(ElementType::Bf16, 4, 128, places), AttentionKernel::Simple);
    }
}
