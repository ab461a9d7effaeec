//! The operations on tensors on a CUDA device. `src/cuda/tests.rs` compares the kernels with the reference.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use qwen3_embed_kernels::cpu::{Epilogue, Heads, Layout};
use qwen3_embed_kernels::{Error, Queries, Ragged, Segment, SegmentKind, ops, reference};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// The device of all tests. It is never closed, because closing a device makes the recordings of other threads fail.
fn device() -> Device {
    static DEVICE: LazyLock<Device> = LazyLock::new(open);
    DEVICE.clone()
}

fn open() -> Device {
    ops::open_cuda(0).unwrap()
}

fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// Values rounded to bf16.
fn rounded(values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|v| bf16::from_f32(v).to_f32()).collect()
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

#[track_caller]
fn assert_close(got: &[f32], expected: &[f64], bound: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (&got, expected)) in got.iter().zip(expected).enumerate() {
        let difference = (f64::from(got) - expected).abs();
        assert!(difference <= bound, "{i}: {got:e}, expected {expected:e} ± {bound:e}");
    }
}

/// The bound of the error of a sum of `n_in` products of values from −1 to 1 in f32.
fn bound(n_in: usize) -> f64 {
    (n_in * n_in) as f64 * f64::from(f32::EPSILON) / 2.0
}

#[test]
#[ignore = "needs a CUDA device"]
fn linear_stores_or_adds_all_or_some_columns() {
    let device = device();
    let (n_rows, n_in, n_out) = (37, 96, 80);
    for (dtype, round) in [(DType::F32, false), (DType::BF16, true)] {
        let values = |seed, n| if round { rounded(random(seed, n)) } else { random(seed, n) };
        let (x, weight, bias) =
            (values(1, n_rows * n_in), values(2, n_out * n_in), random(3, n_out));
        let read = |o: usize| &weight[o * n_in..][..n_in];
        let layer = if round {
            ops::Linear::in_bf16(&device, [n_out, n_in], Layout::Plain, |o, row| {
                row.iter_mut().zip(read(o)).for_each(|(r, &w)| *r = bf16::from_f32(w));
            })
        } else {
            ops::Linear::in_f32(&device, [n_out, n_in], Layout::Plain, |o, row| {
                row.copy_from_slice(read(o));
            })
        };
        let layer = layer.unwrap().with_bias(bias.clone()).unwrap();
        let tensor = Tensor::from_slice(&x, (n_rows, n_in), &device).unwrap();
        let tensor = tensor.to_dtype(dtype).unwrap();
        let expected =
            reference::linear(&widened(&x), &widened(&weight), Some(&widened(&bias)), n_in);
        let scratch = ops::Scratch::default();
        let out = Tensor::ones((n_rows, n_out), DType::F32, &device).unwrap();
        layer.forward(&tensor, &out, Epilogue::Store, &scratch).unwrap();
        assert_close(&ops::to_f32(&out).unwrap(), &expected, bound(n_in));
        layer.forward(&tensor, &out, Epilogue::Add, &scratch).unwrap();
        let twice: Vec<f64> = expected.iter().map(|v| 2.0 * v).collect();
        assert_close(&ops::to_f32(&out).unwrap(), &twice, 3.0 * bound(n_in));
        // Some columns of the last rows.
        let part = out.narrow(0, 30, 7).unwrap();
        let x = tensor.narrow(0, 30, 7).unwrap();
        layer.forward_columns(&x, 16..48, &part, Epilogue::Store, &scratch).unwrap();
        let out = ops::to_f32(&out).unwrap();
        for (at, (&got, expected)) in out.iter().zip(&expected).enumerate() {
            let (row, column) = (at / n_out, at % n_out);
            let times = if row >= 30 && (16..48).contains(&column) { 1.0 } else { 2.0 };
            assert_close(&[got], &[times * expected], 3.0 * bound(n_in));
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn recorded_operations_read_the_current_values() {
    let device = device();
    let (n_rows, n) = (9, 64);
    let (weight, norm) = (random(7, n * n), random(8, n));
    let layer = ops::Linear::in_f32(&device, [n, n], Layout::Plain, |o, row| {
        row.copy_from_slice(&weight[o * n..][..n]);
    });
    let (layer, scratch) = (layer.unwrap(), ops::Scratch::default());
    let table = random(9, 30 * n);
    let table = Tensor::from_vec(table, (30, n), &device).unwrap();
    let [x, normed, out] =
        [(); 3].map(|()| Tensor::zeros((n_rows, n), DType::F32, &device).unwrap());
    let norm = Tensor::from_vec(norm, n, &device).unwrap();
    let run = || -> Result<(), Error> {
        ops::rms_norm(&x, &norm, 1e-6, &normed)?;
        layer.forward(&normed, &out, Epilogue::Store, &scratch)
    };
    let rows = |first: u32| Vec::from_iter(first..first + n_rows as u32);
    let mut expected = Vec::new();
    for first in [0, 5, 21] {
        ops::gather_rows_to(&table, &rows(first), &x).unwrap();
        run().unwrap();
        expected.push(ops::to_f32(&out).unwrap());
    }
    let recorder = ops::Recorder::new(&device).unwrap().unwrap();
    let mut recording = recorder.record(run).unwrap();
    drop(recorder);
    // Recording does not run the operations, and a recording keeps what it needs.
    let result = out.clone();
    assert_eq!(ops::to_f32(&result).unwrap(), expected[2]);
    drop((layer, norm, normed, out, scratch));
    for (first, expected) in [0, 5, 21].into_iter().zip(expected) {
        ops::gather_rows_to(&table, &rows(first), &x).unwrap();
        recording.replay().unwrap();
        // cuBLAS may sum in another order, because recordings have a workspace of their own.
        let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
        assert_close(&ops::to_f32(&result).unwrap(), &expected, bound(n));
    }
}

/// After a recording that failed, operations run at once again.
#[test]
#[ignore = "needs a CUDA device"]
fn a_recording_that_fails_leaves_nothing_behind() {
    let device = device();
    let ones = Tensor::ones((2, 32), DType::F32, &device).unwrap();
    let [weight, out] = [ones.get(0).unwrap(), ones.zeros_like().unwrap()];
    let norm = || ops::rms_norm(&ones, &weight, 0.0, &out);
    let recorder = ops::Recorder::new(&device).unwrap().unwrap();
    let error = recorder.record(|| {
        norm()?;
        ops::copy_rows(&ones, &weight)
    });
    assert!(matches!(error, Err(Error::Shape { op: "copy_rows out", .. })), "{error:?}");
    let nested = recorder.record(|| recorder.record(norm).map(drop));
    assert!(format!("{nested:?}").contains("already records"), "{nested:?}");
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        recorder.record(|| -> Result<(), Error> {
            norm().unwrap();
            panic!("while recording");
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(ops::to_f32(&out).unwrap(), [0.0; 64]);
    norm().unwrap();
    assert_eq!(ops::to_f32(&out).unwrap(), [1.0; 64]);
    recorder.record(norm).unwrap().replay().unwrap();
}

/// To open a device, the driver waits for all streams, which makes recordings fail.
#[test]
#[ignore = "needs a CUDA device"]
fn devices_are_opened_while_other_threads_record() {
    let first = device();
    let ones = Tensor::ones((2, 32), DType::F32, &first).unwrap();
    let [weight, out] = [ones.get(0).unwrap(), ones.zeros_like().unwrap()];
    let recorder = ops::Recorder::new(&first).unwrap().unwrap();
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| {
            let open = || {
                let other = open();
                let recorder = ops::Recorder::new(&other).unwrap();
                (other, recorder)
            };
            Vec::from_iter((0..10).map(|_| open()))
        });
        while !opened.is_finished() {
            recorder.record(|| ops::rms_norm(&ones, &weight, 0.0, &out)).unwrap();
        }
        std::mem::forget(opened.join().unwrap());
    });
}

#[test]
#[ignore = "needs a CUDA device"]
fn swiglu_matches_the_reference_on_a_device() {
    let device = device();
    let (n_rows, n_in, ffn) = (5, 64, 40);
    let (x, weight) = (random(4, n_rows * n_in), random(5, 2 * ffn * n_in));
    let layer = ops::Linear::in_f32(&device, [2 * ffn, n_in], Layout::SwiGlu, |o, row| {
        row.copy_from_slice(&weight[o * n_in..][..n_in]);
    });
    let tensor = Tensor::from_slice(&x, (n_rows, n_in), &device).unwrap();
    let out = Tensor::zeros((n_rows, ffn), DType::F32, &device).unwrap();
    let scratch = ops::Scratch::default();
    layer.unwrap().forward(&tensor, &out, Epilogue::Store, &scratch).unwrap();
    let gate_up = reference::linear(&widened(&x), &widened(&weight), None, n_in);
    let expected = reference::swiglu(&gate_up, ffn);
    // Gates and ups are at most 64, because their sums have 64 terms. The error of a gate is multiplied by its up, and
    // the error of an up by its gate.
    assert_close(&ops::to_f32(&out).unwrap(), &expected, 3.0 * n_in as f64 * bound(n_in));
}

#[test]
#[ignore = "needs a CUDA device"]
fn attention_matches_the_reference_on_a_device() {
    let device = device();
    let segment = |n_tokens, parent, kind| Segment { n_tokens, parent, kind };
    let batch = Ragged::from_segments([
        segment(70, None, SegmentKind::Given),
        segment(3, Some(0), SegmentKind::Text),
        segment(90, Some(0), SegmentKind::Inner),
        segment(1, Some(2), SegmentKind::Text),
        segment(66, None, SegmentKind::Text),
    ])
    .unwrap();
    for (dtype, head_dim, bound) in [(DType::F32, 16, 1e-5), (DType::BF16, 128, 0.03)] {
        let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim };
        let n_columns = heads.qkv_columns();
        let qkv = rounded(random(6, batch.n_rows() * n_columns));
        let columns = |from: usize, n: usize, scale: f64| -> Vec<f64> {
            let rows = qkv.chunks(n_columns).map(|row| &row[from * head_dim..][..n * head_dim]);
            rows.flatten().map(|&v| f64::from(v) * scale).collect()
        };
        let (q, k, v) =
            (columns(0, 4, (head_dim as f64).sqrt()), columns(4, 2, 1.0), columns(6, 2, 1.0));
        let expected = reference::attention(&q, &k, &v, &batch, 4, 2, head_dim);
        let tensor = Tensor::from_slice(&qkv, (batch.n_rows(), n_columns), &device).unwrap();
        let tensor = tensor.to_dtype(dtype).unwrap();
        let scratch = ops::Scratch::default();
        // The second call uses the index that the first call has built.
        for queries in [Queries::All, Queries::Last, Queries::All] {
            let first = batch.first_query(queries);
            let shape = (batch.n_rows() - first, heads.q_columns());
            let out = Tensor::zeros(shape, dtype, &device).unwrap();
            ops::attention(&tensor, &batch, queries, heads, &scratch, &out).unwrap();
            let expected = &expected[first * heads.q_columns()..];
            assert_close(&ops::to_f32(&out).unwrap(), expected, bound);
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn rejects_operands_of_wrong_shapes_before_a_launch() {
    let device = device();
    let tensor = |shape: (usize, usize), dtype| Tensor::zeros(shape, dtype, &device).unwrap();
    let on_cpu = Tensor::zeros((2, 6), DType::F32, &Device::Cpu).unwrap();
    let x = tensor((2, 6), DType::F32);
    let weight = Tensor::ones(6, DType::F32, &device).unwrap();
    assert!(matches!(ops::rms_norm(&on_cpu, &weight, 0.0, &x), Err(Error::Tensor(_))));
    assert!(matches!(ops::rms_norm(&x, &weight, 0.0, &x), Err(Error::Tensor(_))));
    let f64 = tensor((2, 6), DType::F64);
    assert!(matches!(ops::rms_norm(&x, &weight, 0.0, &f64), Err(Error::Type { .. })));
    let bf16 = tensor((2, 6), DType::BF16);
    assert!(matches!(ops::copy_rows(&x, &bf16), Err(Error::Type { .. })));
    let layer =
        ops::Linear::in_f32(&device, [6, 6], Layout::Plain, |_, row| row.fill(0.0)).unwrap();
    let scratch = ops::Scratch::default();
    let result = layer.forward(&bf16, &x, Epilogue::Store, &scratch);
    assert!(matches!(result, Err(Error::Type { .. })));
    let heads = Heads { n_heads: 1, n_kv_heads: 1, head_dim: 258 };
    let batch = Ragged::from_lengths([2]).unwrap();
    let (qkv, out) = (tensor((2, 3 * 258), DType::F32), tensor((2, 258), DType::F32));
    let result = ops::attention(&qkv, &batch, Queries::All, heads, &scratch, &out);
    assert!(matches!(result, Err(Error::Limit { .. })));
}

#[test]
#[ignore = "needs a CUDA device"]
fn out_of_memory_is_a_distinct_error() {
    let device = device();
    let error = Tensor::zeros((1 << 20, 1 << 20), DType::F32, &device).unwrap_err();
    assert!(matches!(Error::from(error), Error::OutOfMemory(_)));
    assert!(ops::free_bytes(&device).unwrap().unwrap() > 0);
}
