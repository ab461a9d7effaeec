//! The memory of attention is linear in the length of a text. Once the buffers exist, a layer makes no allocations of
//! its own.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use candle_core::{DType, Device, Tensor};
use half::bf16;
use qwen3_embed_kernels::cpu::{
    self, Arithmetic, AttentionScratch, Bits, BlockRow, Epilogue, Heads, Kernels, PackedWeight,
    RowsMut, attention,
};
use qwen3_embed_kernels::{Queries, Ragged, ops};

/// An allocator that counts allocations, allocated bytes and the peak of allocated bytes.
struct Counting;

thread_local! {
    /// The allocations of this thread, without those of the test harness.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed unchanged to the allocator of the system.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The tests run one at a time, because the byte counters belong to the whole process.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn attention_over_16384_tokens_allocates_no_square_matrix() {
    let _alone = ALONE.lock();
    let heads = Heads { n_heads: 2, n_kv_heads: 1, head_dim: 8 };
    let n_tokens = 16_384;
    let qkv = vec![1.0; n_tokens * heads.qkv_columns()];
    let columns = heads.q_columns();
    let mut out = vec![0.0; n_tokens * columns];
    let batch = Ragged::from_lengths([n_tokens]).unwrap();
    let mut scratch = AttentionScratch::default();
    let mut peak_of = || {
        let before = NOW.load(Relaxed);
        PEAK.store(before, Relaxed);
        let out = &mut RowsMut::new(out.as_mut_slice(), [n_tokens, columns], columns);
        let kernels = Kernels::current();
        attention(kernels, &qkv, &batch, Queries::All, heads, &mut scratch, out);
        PEAK.load(Relaxed) - before
    };
    // A matrix of all scores would take 2 GiB. Packed keys and values take 2 MiB.
    let first = peak_of();
    assert!(first < 8 << 20, "{} KiB", first >> 10);
    // The second call reuses the buffers of the first call.
    let second = peak_of();
    assert!(second < 2 << 20, "{} KiB", second >> 10);
}

fn zeros(rows: usize, columns: usize, dtype: DType) -> Tensor {
    Tensor::zeros((rows, columns), dtype, &Device::Cpu).unwrap()
}

fn linear(n_out: usize, n_in: usize, layout: cpu::Layout, arithmetic: Arithmetic) -> ops::Linear {
    let fill = |_, row: &mut [f32]| row.fill(0.01);
    ops::Linear::new(match arithmetic {
        Arithmetic::Int8 => PackedWeight::pack_int8(n_out, n_in, layout, &[1], fill),
        Arithmetic::Bytes => PackedWeight::pack_bytes(n_out, n_in, layout, true, fill),
        Arithmetic::Blocks => {
            let read_row = |_, row: &mut BlockRow| row.values.fill(1);
            PackedWeight::pack_blocks(n_out, n_in, layout, None, |_| Bits::Four, read_row).unwrap()
        }
        Arithmetic::F32 | Arithmetic::Bf16 => {
            PackedWeight::pack_bf16(n_out, n_in, layout, |_, row| row.fill(bf16::from_f32(0.01)))
        }
    })
}

#[test]
fn layer_allocates_nothing_of_its_own_after_the_first_call() {
    let _alone = ALONE.lock();
    let heads = Heads { n_heads: 16, n_kv_heads: 2, head_dim: 16 };
    let (c, f, q, n) = (256, 512, heads.q_columns(), 210);
    let batch = Ragged::from_lengths([3, 70, 137]).unwrap();
    let weights = |arithmetic| {
        [
            linear(heads.qkv_columns(), c, cpu::Layout::Plain, arithmetic),
            linear(c, q, cpu::Layout::Plain, arithmetic),
            linear(2 * f, c, cpu::Layout::SwiGlu, arithmetic),
            linear(c, f, cpu::Layout::Plain, arithmetic),
        ]
    };
    let norm = Tensor::ones(c, DType::F32, &Device::Cpu).unwrap();
    let head_norm = Tensor::ones(16, DType::F32, &Device::Cpu).unwrap();
    let table = Tensor::ones((n, 8), DType::F32, &Device::Cpu).unwrap();
    let (x, qkv) = (zeros(n, c, DType::F32), zeros(n, heads.qkv_columns(), DType::F32));
    // Calls from outside of rayon's pool allocate. A model calls from a thread of the pool.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for (dtype, arithmetic) in [
        (DType::F32, Arithmetic::F32),
        (DType::BF16, Arithmetic::Bf16),
        (DType::F32, Arithmetic::Int8),
        (DType::BF16, Arithmetic::Int8),
        (DType::F32, Arithmetic::Bytes),
        (DType::BF16, Arithmetic::Bytes),
        (DType::F32, Arithmetic::Blocks),
        (DType::BF16, Arithmetic::Blocks),
    ] {
        let weights = weights(arithmetic);
        let [hidden, attention, ffn] = [c, q, f].map(|columns| zeros(n, columns, dtype));
        let allocations = pool.install(|| {
            let scratch = ops::Scratch::default();
            let layer = || {
                ops::rms_norm(&x, &norm, 1e-6, &hidden).unwrap();
                weights[0].forward(&hidden, &qkv, Epilogue::Store, &scratch).unwrap();
                let (norms, tables) = ([&head_norm; 2], [&table; 2]);
                ops::qk_norm_rope(&qkv, heads, 0, norms, 1e-6, tables).unwrap();
                let queries = Queries::All;
                ops::attention(&qkv, &batch, queries, heads, &scratch, &attention).unwrap();
                weights[1].forward(&attention, &x, Epilogue::Add, &scratch).unwrap();
                weights[2].forward(&hidden, &ffn, Epilogue::Store, &scratch).unwrap();
                weights[3].forward(&ffn, &x, Epilogue::Add, &scratch).unwrap();
            };
            layer();
            let before = COUNT.get();
            layer();
            layer();
            COUNT.get() - before
        });
        // candle allocates a small list for each of the seven operations of a layer.
        assert!(allocations <= 14, "{dtype:?}, {arithmetic:?}: {allocations} allocations");
    }
}
