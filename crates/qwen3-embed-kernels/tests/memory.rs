//! Attention's memory grows with a text's length, not with its square.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use candle_core::{Device, Tensor};
use qwen3_embed_kernels::{Ragged, ops};

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
    let (tokens, dim) = (16_384, 8);
    let x = Tensor::ones((tokens, 1, dim), candle_core::DType::F32, &Device::Cpu).unwrap();
    let batch = Ragged::from_lengths([tokens]).unwrap();
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let y = ops::causal_attention(&x, &x, &x, &batch).unwrap();
    let peak = PEAK.load(Relaxed) - before;
    assert_eq!(y.dims(), [tokens, dim]);
    // The scores of all tokens would be 1 GiB.
    assert!(peak < 100 << 20, "{} MiB", peak >> 20);
}
