//! Every kernel of every kernel set in the shapes of Qwen3-Embedding-0.6B, on one thread. Run it with
//! `cargo bench --package qwen3-embed-kernels`. Throughput counts floating-point operations: read "elem/s" as FLOP/s,
//! and compare it with the peak that is printed for the kernel set.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use qwen3_embed_kernels::cpu::{
    Arithmetic, AttentionScratch, Bits, BlockRow, Epilogue, Heads, Kernels, Layout, PackedWeight,
    QuantizeBuffer, Rows, RowsMut, Values, ValuesMut, attention, qk_norm_rope, rms_norm,
};
use qwen3_embed_kernels::{Queries, Ragged};

type Group<'a> = BenchmarkGroup<'a, criterion::measurement::WallTime>;

const HEADS: Heads = Heads { n_heads: 16, n_kv_heads: 8, head_dim: 128 };

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i % 17) as f32 / 16.0 - 0.5).collect()
}

/// A matrix [rows, columns] with the gaps that workspaces have between rows.
struct Activations<T> {
    values: Vec<T>,
    shape: [usize; 2],
}

impl<T: Copy> Activations<T>
where
    for<'a> Values<'a>: From<&'a [T]>,
    for<'a> ValuesMut<'a>: From<&'a mut [T]>,
{
    const GAP: usize = 32;

    fn new(shape: [usize; 2], of: fn(f32) -> T) -> Self {
        let values = values(shape[0] * (shape[1] + Self::GAP)).into_iter().map(of).collect();
        Self { values, shape }
    }

    fn rows(&self) -> Rows<'_> {
        Rows::new(self.values.as_slice(), self.shape, self.shape[1] + Self::GAP)
    }

    fn rows_mut(&mut self) -> RowsMut<'_> {
        RowsMut::new(self.values.as_mut_slice(), self.shape, self.shape[1] + Self::GAP)
    }
}

fn flop(group: &mut Group<'_>, flop: usize) {
    group.throughput(Throughput::Elements(flop as u64));
}

fn linear(group: &mut Group<'_>, kernels: &'static Kernels) {
    let shapes = [
        ("qkv_proj", 4096, 1024, Layout::Plain),
        ("gate_up_proj", 6144, 1024, Layout::SwiGlu),
        ("down_proj", 1024, 3072, Layout::Plain),
    ];
    for (name, n_out, n_in, layout) in shapes {
        let weight = values(n_in);
        let f32 =
            PackedWeight::pack_f32(n_out, n_in, layout, |_, row| row.copy_from_slice(&weight));
        let bf16 = PackedWeight::pack_bf16(n_out, n_in, layout, |_, row| {
            row.iter_mut().zip(&weight).for_each(|(w, &v)| *w = bf16::from_f32(v));
        });
        let read_row = |_, row: &mut [f32]| row.copy_from_slice(&weight);
        let int8 = PackedWeight::pack_int8(n_out, n_in, layout, &[], read_row).repacked(kernels);
        let bytes =
            PackedWeight::pack_bytes(n_out, n_in, layout, false, read_row).repacked(kernels);
        let blocks = [Bits::Four, Bits::Five, Bits::Six].map(|bits| {
            let read_row = |_, row: &mut BlockRow| row.values.fill(1);
            PackedWeight::pack_blocks(n_out, n_in, layout, None, |_| bits, read_row)
                .unwrap()
                .repacked(kernels)
        });
        for rows in [1, 24, 1020] {
            flop(group, 2 * rows * n_in * n_out);
            let x = Activations::<f32>::new([rows, n_in], |v| v);
            let x_bf16 = Activations::new([rows, n_in], bf16::from_f32);
            for (kind, x, packed) in [
                ("f32 × f32", x.rows(), &f32),
                ("f32 × bf16", x.rows(), &bf16),
                ("bf16 × bf16", x_bf16.rows(), &bf16),
            ] {
                let packed = packed.repacked(kernels);
                let mut out = Activations::<f32>::new([rows, packed.n_columns()], |v| v);
                group.bench_function(format!("{name} {kind}, {rows} rows"), |b| {
                    let out = &mut out.rows_mut();
                    b.iter(|| packed.multiply(black_box(x), None, out, Epilogue::Store));
                });
            }
            for (kind, packed) in [
                ("i16 × i8", &int8),
                ("bytes × i8", &bytes),
                ("bytes × 4 bits", &blocks[0]),
                ("bytes × 5 bits", &blocks[1]),
                ("bytes × 6 bits", &blocks[2]),
            ] {
                let mut buffer = QuantizeBuffer::default();
                let mut out = Activations::<f32>::new([rows, packed.n_columns()], |v| v);
                group.bench_function(format!("{name} {kind}, {rows} rows"), |b| {
                    let out = &mut out.rows_mut();
                    let x = packed.quantize(x.rows(), &mut buffer);
                    b.iter(|| packed.multiply(black_box(x), None, out, Epilogue::Store));
                });
                group.bench_function(format!("{name} activations for {kind}, {rows} rows"), |b| {
                    b.iter(|| _ = packed.quantize(black_box(x.rows()), &mut buffer));
                });
            }
        }
    }
}

fn attention_of(group: &mut Group<'_>, kernels: &'static Kernels) {
    for (texts, length) in [(32, 32), (8, 128), (1, 2048)] {
        let batch = Ragged::from_lengths(vec![length; texts]).unwrap();
        let qkv = values(batch.n_tokens() * HEADS.qkv_columns());
        let shape = [batch.n_tokens(), HEADS.q_columns()];
        let mut f32 = Activations::<f32>::new(shape, |v| v);
        let mut bf16 = Activations::new(shape, bf16::from_f32);
        let mut scratch = AttentionScratch::default();
        // Scores and weighted values of the causal half of all pairs.
        flop(group, 2 * texts * length * (length + 1) * HEADS.q_columns());
        for (kind, mut out) in [("f32", f32.rows_mut()), ("bf16", bf16.rows_mut())] {
            group.bench_function(format!("attention {kind}, {texts} × {length}"), |b| {
                b.iter(|| {
                    let qkv = black_box(&qkv);
                    let queries = Queries::All;
                    attention(kernels, qkv, &batch, queries, HEADS, &mut scratch, &mut out);
                });
            });
        }
    }
}

fn rows(group: &mut Group<'_>, kernels: &'static Kernels) {
    let (n_rows, channels) = (1024, 1024);
    let (x, weight) = (values(n_rows * channels), values(channels));
    let mut out = Activations::<f32>::new([n_rows, channels], |v| v);
    flop(group, 4 * x.len());
    group.bench_function("rms_norm 1024 × 1024", |b| {
        b.iter(|| rms_norm(kernels, black_box(&x), &weight, 1e-6, &mut out.rows_mut()));
    });
    let mut qkv = values(n_rows * HEADS.qkv_columns());
    let (norm, table) = (values(HEADS.head_dim), values(n_rows * HEADS.head_dim / 2));
    flop(group, 7 * n_rows * (HEADS.n_heads + HEADS.n_kv_heads) * HEADS.head_dim);
    group.bench_function("qk_norm_rope 1024 tokens", |b| {
        b.iter(|| {
            let (norms, tables) = ([norm.as_slice(); 2], [table.as_slice(); 2]);
            qk_norm_rope(kernels, black_box(&mut qkv), HEADS, 0, norms, 1e-6, tables);
        });
    });
}

fn kernels(criterion: &mut Criterion) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    pool.build_global().unwrap();
    for kernels in Kernels::available() {
        let mut group = criterion.benchmark_group(kernels.name);
        group.sample_size(10);
        for arithmetic in Arithmetic::ALL {
            let peak = kernels.measured_peak(arithmetic) / 1e9;
            println!("{}: peak of {arithmetic:?} {peak:.1} GOP/s", kernels.name);
        }
        linear(&mut group, kernels);
        attention_of(&mut group, kernels);
        rows(&mut group, kernels);
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
