//! The operations on tensors call the right kernels and reject operands of wrong shapes. `cpu.rs` compares the kernels
//! with the reference.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor};
use qwen3_embed_kernels::cpu::{Epilogue, Heads, Layout, PackedWeight};
use qwen3_embed_kernels::{Error, Queries, Ragged, Segment, SegmentKind, ops};

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn ones(shape: &[usize]) -> Tensor {
    Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()
}

fn identity(n: usize, layout: Layout) -> ops::Linear {
    ops::Linear::new(PackedWeight::pack_f32(n, n, layout, |o, row| {
        row.fill(0.0);
        row[o] = 1.0;
    }))
}

#[test]
fn linear_stores_or_adds_into_a_part_of_a_buffer() {
    let x = tensor(&[1.0, 2.0, 3.0, 4.0], &[2, 2]);
    let buffer = ones(&[3, 2]);
    let out = buffer.narrow(0, 0, 2).unwrap();
    let layer = identity(2, Layout::Plain);
    layer.forward(&x, &out, Epilogue::Store, &ops::Scratch::default()).unwrap();
    assert_eq!(ops::to_f32(&buffer).unwrap(), [1.0, 2.0, 3.0, 4.0, 1.0, 1.0]);
    let biased = layer.with_bias(vec![10.0, 20.0]).unwrap();
    biased.forward(&x, &out, Epilogue::Add, &ops::Scratch::default()).unwrap();
    assert_eq!(ops::to_f32(&buffer).unwrap(), [12.0, 24.0, 16.0, 28.0, 1.0, 1.0]);
}

#[test]
fn rope_rotates_all_positions_but_the_first() {
    let heads = Heads { n_heads: 1, n_kv_heads: 1, head_dim: 4 };
    let row = [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    let qkv = tensor(&[row, row].concat(), &[2, 12]);
    // The first pair of the second token is rotated by one radian, its second pair not at all.
    let cos = tensor(&[1.0, 1.0, 1f32.cos(), 1.0], &[2, 2]);
    let sin = tensor(&[0.0, 0.0, 1f32.sin(), 0.0], &[2, 2]);
    let norm = ones(&[4]);
    ops::qk_norm_rope(&qkv, heads, 0, [&norm, &norm], 0.0, [&cos, &sin]).unwrap();
    let rotated = ops::to_f32(&qkv).unwrap();
    let scale = 1.0 / 7.5f32.sqrt();
    let close =
        |got: f32, expected: f32| assert!((got - expected).abs() < 1e-6, "{got} {expected}");
    for (lane, &value) in rotated[..8].iter().enumerate() {
        close(value, scale * (lane % 4 + 1) as f32);
    }
    for head in [12, 16] {
        // Element 0 is paired with element 2, half a head away, and not with its neighbor.
        close(rotated[head], scale * (1f32.cos() - 3.0 * 1f32.sin()));
        close(rotated[head + 1], scale * 2.0);
        close(rotated[head + 2], scale * (3.0 * 1f32.cos() + 1f32.sin()));
    }
    assert_eq!(rotated[20..], row[8..]);
}

#[test]
fn gather_rows_copies_rows_in_order() {
    let x: Vec<f32> = (0..12).map(|v| v as f32).collect();
    let (x, y) = (tensor(&x, &[4, 3]), tensor(&x[..4], &[4, 1]));
    let [x, y] = ops::gather_rows(&Device::Cpu, [&x, &y], &[3, 0, 3]).unwrap();
    assert_eq!(ops::to_f32(&x).unwrap(), [9.0, 10.0, 11.0, 0.0, 1.0, 2.0, 9.0, 10.0, 11.0]);
    assert_eq!(ops::to_f32(&y).unwrap(), [3.0, 0.0, 3.0]);
    let out = ones(&[2, 1]);
    ops::gather_rows_to(&y, &[2, 1], &out).unwrap();
    assert_eq!(ops::to_f32(&out).unwrap(), [3.0, 0.0]);
}

#[test]
fn the_cpu_records_nothing() {
    assert!(ops::Recorder::new(&Device::Cpu).unwrap().is_none());
}

#[test]
fn rejects_operands_of_wrong_shapes() {
    let x = ones(&[2, 6]);
    let heads = Heads { n_heads: 2, n_kv_heads: 1, head_dim: 2 };
    let qkv = ones(&[2, 8]);
    let norms = [&ones(&[2]), &ones(&[2])];
    let table = ones(&[2, 1]);
    let batch = Ragged::from_lengths([2]).unwrap();
    let scratch = ops::Scratch::default();
    let attend = |qkv: &Tensor, batch: &Ragged, heads: Heads, out: &Tensor| {
        ops::attention(qkv, batch, Queries::All, heads, &scratch, out)
    };
    let uneven = Heads { n_heads: 3, n_kv_heads: 2, head_dim: 2 };
    let three = Ragged::from_lengths([3]).unwrap();
    let plain = identity(6, Layout::Plain);
    let results = [
        ("rms_norm", ops::rms_norm(&x, &ones(&[5]), 1e-6, &x)),
        ("rms_norm out", ops::rms_norm(&x, &ones(&[6]), 1e-6, &ones(&[6, 2]))),
        ("linear", plain.forward(&ones(&[2, 5]), &x, Epilogue::Store, &ops::Scratch::default())),
        (
            "linear out",
            plain.forward(&x, &ones(&[2, 7]), Epilogue::Store, &ops::Scratch::default()),
        ),
        (
            "linear out",
            identity(6, Layout::SwiGlu).forward(
                &x,
                &ones(&[2, 6]),
                Epilogue::Store,
                &ops::Scratch::default(),
            ),
        ),
        ("qk_norm_rope", ops::qk_norm_rope(&x, heads, 0, norms, 1e-6, [&table, &table])),
        ("qk_norm_rope weight", {
            ops::qk_norm_rope(&qkv, heads, 0, [&ones(&[2]), &ones(&[3])], 1e-6, [&table, &table])
        }),
        ("qk_norm_rope tables", ops::qk_norm_rope(&qkv, heads, 0, norms, 1e-6, [&table, &x])),
        ("attention", attend(&qkv, &three, heads, &ones(&[2, 4]))),
        ("attention", attend(&qkv, &batch, uneven, &ones(&[2, 4]))),
        ("attention out", attend(&qkv, &batch, heads, &ones(&[2, 5]))),
        ("attention out", {
            let text = Segment { n_tokens: 2, parent: None, kind: SegmentKind::Text };
            let batch = Ragged::from_segments([text]).unwrap();
            ops::attention(&qkv, &batch, Queries::Last, heads, &scratch, &ones(&[2, 4]))
        }),
        ("linear out", plain.forward_columns(&x, 5..7, &x, Epilogue::Store, &scratch)),
        ("copy_rows out", ops::copy_rows(&x, &ones(&[2, 5]))),
        ("linear bias", identity(6, Layout::Plain).with_bias(vec![0.0; 5]).map(drop)),
        ("gather_rows", ops::gather_rows(&Device::Cpu, [&x], &[0, 2]).map(drop)),
        ("gather_rows", ops::gather_rows_to(&x, &[2], &ones(&[1, 6]))),
        ("gather_rows out", ops::gather_rows_to(&x, &[0], &x)),
    ];
    for (operation, result) in results {
        match result {
            Err(Error::Shape { op, .. }) => assert_eq!(op, operation),
            other => panic!("{operation}: {other:?}"),
        }
    }
}

#[test]
fn forward_columns_gives_the_values_of_forward() {
    let x = tensor(&(0..40).map(|v| v as f32).collect::<Vec<_>>(), &[1, 40]);
    let (layer, scratch) = (identity(40, Layout::Plain), ops::Scratch::default());
    for columns in [0..40, 0..1, 33..40, 16..16, 7..20] {
        let out = tensor(&[-1.0; 40], &[1, 40]);
        layer.forward_columns(&x, columns.clone(), &out, Epilogue::Store, &scratch).unwrap();
        for (column, value) in ops::to_f32(&out).unwrap().into_iter().enumerate() {
            // Columns beyond the requested ones may be computed if they are in the same panel.
            let is_there = value == column as f32;
            assert!(is_there || value == -1.0 && !columns.contains(&column), "{columns:?}");
        }
    }
}

#[test]
fn copies_rows_between_matrices_with_gaps() {
    let x = tensor(&(0..12).map(|v| v as f32).collect::<Vec<_>>(), &[3, 4]);
    let out = ones(&[4, 5]);
    let part = out.narrow(0, 2, 2).unwrap().narrow(1, 1, 3).unwrap();
    ops::copy_rows(&x.narrow(0, 1, 2).unwrap().narrow(1, 0, 3).unwrap(), &part).unwrap();
    assert_eq!(ops::to_f32(&out.narrow(0, 0, 2).unwrap()).unwrap(), [1.0; 10]);
    let copied = [1.0, 4.0, 5.0, 6.0, 1.0, 1.0, 8.0, 9.0, 10.0, 1.0];
    assert_eq!(ops::to_f32(&out.narrow(0, 2, 2).unwrap()).unwrap(), copied);
}

#[test]
fn rejects_tensors_of_another_type() {
    let x = ones(&[2, 6]);
    let bf16 = x.to_dtype(DType::BF16).unwrap();
    let f16 = x.to_dtype(DType::F16).unwrap();
    let weight = ones(&[6]);
    let plain = identity(6, Layout::Plain);
    let results = [
        ("rms_norm", ops::rms_norm(&bf16, &weight, 1e-6, &x), "f32", "bf16"),
        ("rms_norm", ops::rms_norm(&x, &weight, 1e-6, &f16), "f32 or bf16", "f16"),
        ("copy_rows", ops::copy_rows(&bf16, &x), "f32", "bf16"),
        (
            "linear",
            plain.forward(&bf16, &x, Epilogue::Store, &ops::Scratch::default()),
            "f32",
            "bf16",
        ),
        (
            "linear",
            plain.forward(&f16, &x, Epilogue::Store, &ops::Scratch::default()),
            "f32 or bf16",
            "f16",
        ),
        (
            "linear out",
            plain.forward(&x, &bf16, Epilogue::Add, &ops::Scratch::default()),
            "f32",
            "bf16",
        ),
    ];
    for (operation, result, needed, dtype) in results {
        match result {
            Err(Error::Type { op, expected, got }) => {
                assert_eq!((op, expected, got), (operation, needed, dtype));
            }
            other => panic!("{operation}: {other:?}"),
        }
    }
}

#[test]
fn rejects_output_that_aliases_an_operand() {
    let buffer = ones(&[4, 6]);
    let (upper, lower) = (buffer.narrow(0, 0, 2).unwrap(), buffer.narrow(0, 2, 2).unwrap());
    for out in [&upper, &lower] {
        let error = ops::rms_norm(&upper, &ones(&[6]), 1e-6, out).unwrap_err();
        assert!(format!("{error:?}").contains("in the buffer of an operand"), "{error:?}");
    }
}

#[test]
fn single_row_of_a_matrix_with_gaps_is_contiguous() {
    let row = ones(&[3, 8]).narrow(0, 1, 1).unwrap().narrow(1, 0, 6).unwrap();
    let out = ones(&[1, 6]);
    ops::rms_norm(&row, &ones(&[6]), 0.0, &out).unwrap();
    assert_eq!(ops::to_f32(&out).unwrap(), [1.0; 6]);
}

#[test]
fn operations_accept_bf16_with_gaps() {
    let x = tensor(&[1.0, 2.0, 3.0, 4.0], &[2, 2]);
    let buffer = Tensor::ones((2, 5), DType::BF16, &Device::Cpu).unwrap();
    let normed = buffer.narrow(1, 0, 2).unwrap();
    ops::rms_norm(&x, &ones(&[2]), 0.0, &normed).unwrap();
    let layer = ops::Linear::new(PackedWeight::pack_bf16(2, 2, Layout::Plain, |o, row| {
        row.fill(half::bf16::ZERO);
        row[1 - o] = half::bf16::ONE;
    }));
    let out = ones(&[2, 2]);
    layer.forward(&normed, &out, Epilogue::Store, &ops::Scratch::default()).unwrap();
    // Each row is divided by its root mean square and rounded to bf16, and its columns are swapped.
    let rounded = |v: f32| half::bf16::from_f32(v).to_f32();
    let (a, b) = (2.5f32.sqrt(), 12.5f32.sqrt());
    let expected = [2.0 / a, 1.0 / a, 4.0 / b, 3.0 / b].map(rounded);
    assert_eq!(ops::to_f32(&out).unwrap(), expected);
    let gaps = ops::to_f32(&buffer.narrow(1, 2, 3).unwrap().contiguous().unwrap()).unwrap();
    assert_eq!(gaps, [1.0; 6]);
}
