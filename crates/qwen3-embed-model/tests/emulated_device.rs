//! The calls to CUDA for a batch, as an emulated device counts them: see `cargo xtask emulated-device`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::{env, fs};

use qwen3_embed_model::{Device, Model, Precision, Sharing};
use qwen3_embed_testing::fixtures;

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
    let texts = [32, 9].map(|n| vec![1; n]);
    for name in ["wide", "base"] {
        let model = Model::load(&fixtures::model(name), Device::Cuda(0), Precision::Bf16).unwrap();
        let model = model.with_sharing(Sharing::On { cache_bytes: 0 });
        let calls = calls(&model, &texts, &texts[..1]);
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
        for unexpected in ["lookups of kernels", "synchronizations", "copies on the device"] {
            assert_eq!(count(unexpected), 0, "{calls:#?}");
        }
    }
}
