//! Every kernel of every kernel set in the shapes of Qwen3-Embedding-0.6B, on one thread:
//! `cargo bench --package qwen3-embed-kernels`. Throughput is counted in floating-point operations
//! (read "elem/s" as FLOP/s), to be held against the peak that is printed for the set.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use qwen3_embed_kernels::Ragged;
use qwen3_embed_kernels::cpu::{
    AttentionScratch, Epilogue, Heads, Kernels, Layout, PackedWeight, causal_attention,
    qk_norm_rope, rms_norm,
};

type Group<'a> = BenchmarkGroup<'a, criterion::measurement::WallTime>;

const HEADS: Heads = Heads { n_heads: 16, n_kv_heads: 8, head_dim: 128 };

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i % 17) as f32 / 16.0 - 0.5).collect()
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
        for (kind, packed) in [("f32", f32), ("bf16", bf16)] {
            let packed = packed.repacked(kernels);
            for rows in [1, 24, 1020] {
                let x = values(rows * n_in);
                let mut out = vec![0.0; rows * packed.n_columns()];
                flop(group, 2 * rows * n_in * n_out);
                group.bench_function(format!("{name} {kind}, {rows} rows"), |b| {
                    b.iter(|| packed.multiply(black_box(&x), None, &mut out, Epilogue::Store));
                });
            }
        }
    }
}

fn attention(group: &mut Group<'_>, kernels: &'static Kernels) {
    for (texts, length) in [(32, 32), (8, 128), (1, 2048)] {
        let batch = Ragged::from_lengths(vec![length; texts]).unwrap();
        let qkv = values(batch.n_tokens() * HEADS.qkv_columns());
        let mut out = vec![0.0; batch.n_tokens() * HEADS.q_columns()];
        let mut scratch = AttentionScratch::default();
        // Scores and weighted values of half of all pairs, the causal ones.
        flop(group, 2 * texts * length * (length + 1) * HEADS.q_columns());
        group.bench_function(format!("attention {texts} × {length}"), |b| {
            b.iter(|| {
                let qkv = black_box(&qkv);
                causal_attention(kernels, qkv, &batch, HEADS, &mut scratch, &mut out);
            });
        });
    }
}

fn rows(group: &mut Group<'_>, kernels: &'static Kernels) {
    let (n_rows, channels) = (1024, 1024);
    let (x, weight) = (values(n_rows * channels), values(channels));
    let mut out = vec![0.0; x.len()];
    flop(group, 4 * x.len());
    group.bench_function("rms_norm 1024 × 1024", |b| {
        b.iter(|| rms_norm(kernels, black_box(&x), &weight, 1e-6, &mut out));
    });
    let mut qkv = values(n_rows * HEADS.qkv_columns());
    let (norm, table) = (values(HEADS.head_dim), values(n_rows * HEADS.head_dim / 2));
    flop(group, 7 * n_rows * (HEADS.n_heads + HEADS.n_kv_heads) * HEADS.head_dim);
    group.bench_function("qk_norm_rope 1024 tokens", |b| {
        b.iter(|| {
            let (norms, tables) = ([norm.as_slice(); 2], [table.as_slice(); 2]);
            qk_norm_rope(kernels, black_box(&mut qkv), HEADS, norms, 1e-6, tables);
        });
    });
}

fn kernels(criterion: &mut Criterion) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
    pool.build_global().unwrap();
    for kernels in Kernels::available() {
        let mut group = criterion.benchmark_group(kernels.name);
        group.sample_size(10);
        println!("{}: peak {:.1} GFLOP/s", kernels.name, kernels.measured_peak() / 1e9);
        linear(&mut group, kernels);
        attention(&mut group, kernels);
        rows(&mut group, kernels);
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
