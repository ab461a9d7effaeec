//! Attention's memory grows with a text's length, not with its square.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use qwen3_embed_kernels::Ragged;
use qwen3_embed_kernels::cpu::{AttentionScratch, Heads, Kernels, RowsMut, causal_attention};

/// Counts the bytes that are allocated, and the most there ever were.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc::dealloc`'s contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn sixteen_thousand_tokens_need_no_square_matrix() {
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
        causal_attention(Kernels::best(), &qkv, &batch, heads, &mut scratch, out);
        PEAK.load(Relaxed) - before
    };
    // The scores of all tokens would be 2 GiB; packed keys and values are 2 MiB.
    let first = peak_of();
    assert!(first < 8 << 20, "{} KiB", first >> 10);
    // The second call packs into what the first left.
    let second = peak_of();
    assert!(second < 2 << 20, "{} KiB", second >> 10);
}
