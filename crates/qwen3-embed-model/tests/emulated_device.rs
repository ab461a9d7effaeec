//! The calls to CUDA for a batch, as an emulated device counts them, and a device with little memory: see `cargo xtask
//! emulated-device`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{env, fs};

use qwen3_embed_kernels::ops;
use qwen3_embed_model::{Device, Error, Model, Precision, Sharing};
use qwen3_embed_testing::fixtures;
use qwen3_embed_testing::vectors::{cosine, unit};

/// The tests run one after another, because the device counts the calls of all threads.
static DEVICE: Mutex<()> = Mutex::new(());

fn wait_for_device() -> MutexGuard<'static, ()> {
    DEVICE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The numbers of calls since the program was started.
fn counts() -> BTreeMap<String, usize> {
    let path = env::var("EMULATED_DEVICE_COUNTS").expect("`cargo xtask ci` sets the variable");
    let lines = fs::read_to_string(path).unwrap();
    let counts = lines.lines().map(|line| {
        let (name, n) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), n.parse().unwrap())
    });
    counts.collect()
}

/// The calls for the second batch of a model. The first one allocates the workspace and loads the kernels.
fn calls(model: &Model, first: &[Vec<u32>], second: &[Vec<u32>]) -> BTreeMap<String, usize> {
    model.forward(first).unwrap();
    let before = counts();
    model.forward(second).unwrap();
    let counts = counts().into_iter();
    let calls = counts.map(|(name, n)| (name.clone(), n - before.get(&name).unwrap_or(&0)));
    calls.filter(|&(_, n)| n > 0).collect()
}

#[test]
#[ignore = "needs an emulated CUDA device"]
fn calls_of_a_batch_are_as_few_as_documented() {
    let _device = wait_for_device();
    // Single texts are recorded.
    let [first, second] = [[32, 9], [20, 7]].map(|lengths| lengths.map(|n| vec![n as u32; n]));
    for name in ["wide", "base"] {
        let model = Model::load(&fixtures::model(name), Device::Cuda(0), Precision::Bf16).unwrap();
        let model = model.with_sharing(Sharing::On { cache_bytes: 0 });
        let calls = calls(&model, &first, &second);
        let n_layers = model.config().num_hidden_layers;
        let count = |name: &str| calls.get(name).copied().unwrap_or(0);
        // Each layer: two norms, four products, RoPE, attention and SwiGLU. In the last layer, queries are computed for
        // last tokens only, by a product of its own. Before the layers: the rows of the embeddings, cosines and sines.
        // After the layers: the final norm.
        assert_eq!(count("launches"), 9 * n_layers + 5, "{calls:#?}");
        // Token ids, positions, and an index of the queries of all layers but the last, and one for the last layer.
        assert_eq!(count("copies to the device"), 4, "{calls:#?}");
        assert_eq!(count("copies to the host"), 1, "{calls:#?}");
        // The copies above, three gathered matrices and the normed vectors, which are also set to zero.
        assert_eq!((count("allocations"), count("memsets")), (8, 1), "{calls:#?}");
        for unexpected in ["lookups of kernels", "synchronizations"] {
            assert_eq!(count(unexpected), 0, "{calls:#?}");
        }
    }
}

/// The forward pass of a short text is recorded before it is first used. Later texts with about as many tokens need one
/// launch for all layers.
#[test]
#[ignore = "needs an emulated CUDA device"]
fn short_texts_are_recorded() {
    let _device = wait_for_device();
    let model = load();
    let text = |first: u32, n: u32| vec![Vec::from_iter(first..first + n)];
    for (first_length, n) in [(32, 1), (20, 31), (33, 64), (481, 512)] {
        // A call with two texts is not recorded.
        let [one, other] = [text(1, n), text(2, n)];
        let expected = model.forward(&[&one[0], &other[0]]).unwrap();
        let expected = expected.chunks(model.embedding_size());
        let calls = calls(&model, &text(3, first_length), &one);
        // The token embeddings before the graph, and the hidden state of the last token after it.
        let expected_calls = [
            ("launches", 2),
            ("gather_rows_bf16", 1),
            ("gather_rows_f32", 1),
            ("launches of graphs", 1),
            ("copies to the device", 2),
            ("allocations", 2),
            ("copies to the host", 1),
        ];
        let expected_calls = expected_calls.map(|(name, n)| (name.to_owned(), n));
        assert_eq!(calls, BTreeMap::from(expected_calls));
        for (text, expected) in [one, other].iter().zip(expected) {
            assert_eq!(model.forward(text).unwrap(), expected, "{n}");
        }
    }
    let long = text(1, 513);
    assert!(!calls(&model, &long, &long).contains_key("launches of graphs"));
}

/// Memory of earlier batches is used again, and is given back when the model is dropped.
#[test]
#[ignore = "needs an emulated CUDA device"]
fn memory_is_kept_between_batches_and_released_with_the_model() {
    let _device = wait_for_device();
    let model = load();
    let calls = calls(&model, &texts(3), &texts(3));
    assert!(calls["allocations"] > 0 && !calls.contains_key("growths of the pool"), "{calls:#?}");
    let releases = |counts: BTreeMap<String, usize>| counts.get("releases of the pool").copied();
    let before = releases(counts()).unwrap_or(0);
    drop(model);
    assert_eq!(releases(counts()), Some(before + 1));
}

/// As on a device that refuses graphs or has no memory for them: texts are computed, and recording is tried three times.
#[test]
#[ignore = "needs an emulated CUDA device"]
fn texts_are_computed_if_recording_fails() {
    let _device = wait_for_device();
    let name = "texts_are_computed_if_recording_fails";
    if env::var_os("EMULATED_DEVICE_WITHOUT_GRAPHS").is_none() {
        return start_again(name, "EMULATED_DEVICE_WITHOUT_GRAPHS", "1");
    }
    let model = load();
    let texts = texts(2);
    let expected = model.forward(&texts).unwrap();
    let expected: Vec<_> = expected.chunks(model.embedding_size()).collect();
    for _ in 0..3 {
        let calls = calls(&model, &texts, &texts[..1]);
        assert!(calls.contains_key("launches") && calls.contains_key("recorded launches"));
    }
    assert_eq!(model.forward(&texts[..1]).unwrap(), expected[0]);
    let calls = calls(&model, &texts[..1], &texts[1..]);
    assert!(calls.contains_key("launches") && !calls.contains_key("recorded launches"));
    assert_eq!(model.forward(&texts[1..]).unwrap(), expected[1]);
}

/// Runs a test of this program in a new process with an environment variable, because a device reads the variables when
/// it is first used.
fn start_again(test: &str, variable: &str, value: &str) {
    let mut again = Command::new(env::current_exe().unwrap());
    again.args(["--include-ignored", "--exact", test]).env(variable, value);
    let output = again.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// The memory of a device that a model keeps after a batch of `n_tokens` tokens, in bytes.
fn bytes_kept_after(n_tokens: usize) -> usize {
    let device = ops::open_cuda(0).unwrap();
    let free = || ops::free_bytes(&device).unwrap().unwrap();
    let before = free();
    let model = load();
    model.forward(&texts(n_tokens / 5)).unwrap();
    before - free()
}

fn load() -> Model {
    let model = Model::load(&fixtures::model("wide"), Device::Cuda(0), Precision::Bf16).unwrap();
    model.with_sharing(Sharing::Off)
}

/// Texts of five tokens.
fn texts(n: usize) -> Vec<Vec<u32>> {
    (0..n as u32).map(|text| (0..5).map(|i| 7 * text + i).collect()).collect()
}

#[test]
#[ignore = "needs an emulated CUDA device"]
fn a_batch_that_does_not_fit_is_halved() {
    let _device = wait_for_device();
    let name = "a_batch_that_does_not_fit_is_halved";
    if env::var_os("EMULATED_DEVICE_BYTES").is_none() {
        // The memory that is kept for 150 tokens is enough for the largest use of memory with 100 tokens.
        let n_bytes = bytes_kept_after(150);
        return start_again(name, "EMULATED_DEVICE_BYTES", &n_bytes.to_string());
    }
    let model = load();
    let (texts, n) = (texts(40), model.embedding_size());
    let alone: Vec<f32> = texts.iter().flat_map(|text| model.forward(&[text]).unwrap()).collect();
    // The texts have 200 tokens, and there is memory for about 100.
    let together = model.forward(&texts).unwrap();
    for (alone, together) in alone.chunks(n).zip(together.chunks(n)) {
        assert!(cosine(&unit(alone), &unit(together)) > 0.9999);
    }
    // A text cannot be divided.
    let error = model.forward(&[vec![1; 200]]).unwrap_err();
    let Error::OutOfMemory { n_tokens, needed_bytes, free_bytes, fitting_tokens, source } = error
    else {
        panic!("{error}");
    };
    assert_eq!(n_tokens, 200);
    assert!(needed_bytes > free_bytes && source.is_some(), "{needed_bytes}, {free_bytes}");
    assert!((50..=100).contains(&fitting_tokens), "{fitting_tokens}");
    // Nothing is left over.
    assert_eq!(model.forward(&texts[..1]).unwrap(), alone[..n]);
}
