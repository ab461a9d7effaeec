//! The model on a CUDA device against the model on the CPU, which `parity.rs` compares with transformers. `cargo xtask
//! parity --device cuda` compares the model on a device with transformers.
#![allow(clippy::unwrap_used)]

use std::{env, slice, thread};

use qwen3_embed_model::{Device, Model, Precision, Sharing};
use qwen3_embed_testing::fixtures;
use qwen3_embed_testing::texts::random_texts;
use qwen3_embed_testing::vectors::{cosine, max_difference, unit};
use rand::{SeedableRng, rngs::SmallRng};

fn load(name: &str, device: Device, precision: Precision) -> Model {
    Model::load(&fixtures::model(name), device, precision).unwrap()
}

/// The vector of each text, of unit length.
fn rows(model: &Model, texts: &[Vec<u32>]) -> Vec<Vec<f64>> {
    let hidden = model.forward(texts).unwrap();
    hidden.chunks_exact(model.config().hidden_size).map(unit).collect()
}

#[track_caller]
fn assert_close(what: &str, got: &[Vec<f64>], expected: &[Vec<f64>], precision: Precision) {
    assert_eq!(got.len(), expected.len());
    for (text, (got, expected)) in got.iter().zip(expected).enumerate() {
        let (difference, cosine) = (max_difference(got, expected), cosine(got, expected));
        // The same tolerances as for the CPU's kernels.
        let is_close = match precision {
            Precision::F32 => difference <= 1e-5,
            _ => cosine >= 0.9995,
        };
        assert!(is_close, "{what}, text {text}: {difference:e}, 1 - {:e}", 1.0 - cosine);
    }
}

/// Texts of the fixtures' vocabulary with common prefixes.
fn texts(rng: &mut SmallRng, n: usize, max_tokens: usize) -> Vec<Vec<u32>> {
    random_texts(rng, n, 1000, max_tokens)
}

#[test]
fn missing_cuda_device_is_an_error_that_names_it() {
    let model = Model::load(&fixtures::model("base"), Device::Cuda(1_000_000), Precision::F32);
    let error = model.err().unwrap();
    assert!(error.to_string().contains("cannot use CUDA device 1000000"), "{error}");
}

#[test]
#[ignore = "needs a CUDA device"]
fn vectors_match_those_of_the_cpu_with_any_sharing() {
    let mut rng = SmallRng::seed_from_u64(1);
    // An emulated device would take more than ten minutes for as many texts as a device. CI sets the variable.
    let is_emulated = env::var_os("EMULATED_DEVICE_COUNTS").is_some();
    let (n_calls, n_texts, max_tokens) = if is_emulated { (2, 6, 150) } else { (4, 20, 400) };
    for name in ["base", "wide", "attention-bias", "bidirectional", "gguf-q8-0"] {
        let cpu = load(name, Device::Cpu, Precision::F32);
        let calls: Vec<_> = (0..n_calls).map(|_| texts(&mut rng, n_texts, max_tokens)).collect();
        let expected: Vec<_> = calls.iter().map(|texts| rows(&cpu, texts)).collect();
        for precision in [Precision::F32, Precision::Bf16] {
            let mut model = load(name, Device::Cuda(0), precision);
            for sharing in [
                Sharing::Off,
                Sharing::On { cache_bytes: 0 },
                Sharing::On { cache_bytes: 40_000 },
                Sharing::On { cache_bytes: 64 << 20 },
            ] {
                model = model.with_sharing(sharing);
                for batch_tokens in [1, 50, usize::MAX] {
                    model = model.with_batch_tokens(batch_tokens);
                    for (texts, expected) in calls.iter().zip(&expected) {
                        let what = format!("{name}, {precision:?}, {sharing:?}, {batch_tokens}");
                        assert_close(&what, &rows(&model, texts), expected, precision);
                    }
                }
            }
            assert_eq!(model.sharing_counts().cache_hits > 0, model.config().is_causal);
        }
    }
}

#[test]
#[ignore = "needs a CUDA device"]
fn threads_share_a_model() {
    let texts = texts(&mut SmallRng::seed_from_u64(2), 12, 400);
    let expected = rows(&load("base", Device::Cpu, Precision::F32), &texts);
    let model = load("base", Device::Cuda(0), Precision::F32);
    thread::scope(|scope| {
        for (text, expected) in texts.iter().zip(&expected) {
            let model = &model;
            scope.spawn(move || {
                for _ in 0..8 {
                    let got = rows(model, slice::from_ref(text));
                    assert_close("a thread", &got, slice::from_ref(expected), Precision::F32);
                }
            });
        }
    });
}

#[test]
#[ignore = "needs a CUDA device"]
fn int8_weights_are_multiplied_in_bf16() {
    for precision in [Precision::Int8, Precision::Bf16] {
        let model = load("gguf-q8-0", Device::Cuda(0), precision);
        assert_eq!(model.precision(), Precision::Bf16);
    }
}
