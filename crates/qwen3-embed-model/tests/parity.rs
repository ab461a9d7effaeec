//! The model against transformers and against an f64 implementation, on every fixture.
#![allow(clippy::unwrap_used)]

use qwen3_embed_model::{Arithmetic, Checkpoint, Device, LoadOptions, Model, Precision};
use qwen3_embed_testing::fixtures::{self, model};
use qwen3_embed_testing::golden::{self, Vectors};
use qwen3_embed_testing::vectors::{cosine, max_abs, max_difference, mean, unit};

/// The largest difference between a component of our unit vectors and of transformers' in f32.
const MAX_DIFFERENCE: f64 = 1e-5;

const FIXTURES: [&str; 11] = [
    "base",
    "causal-lm-tied",
    "causal-lm-untied",
    "sharded",
    "attention-bias",
    "outliers",
    "wide",
    "bidirectional",
    "gguf-k-quants",
    "gguf-q8-0",
    "gguf-float",
];

/// Loads a fixture for the given arithmetic, whatever the CPU. Its vectors are last hidden states, as in golden files,
/// because a bidirectional model's own pooling would give other vectors.
fn load(name: &str, precision: Precision, arithmetic: Arithmetic) -> Model {
    let options = LoadOptions::multiplying(precision, arithmetic);
    Model::load_with(
        &Checkpoint::open(&model(name)).unwrap(),
        &LoadOptions { hidden_states: true, ..options },
    )
    .unwrap()
}

fn golden(name: &str) -> Vectors {
    golden::read(&fixtures::path("models").join(name).join("golden.json")).unwrap()
}

fn tokens(name: &str) -> Vec<Vec<u32>> {
    golden(name).tokens.unwrap()
}

#[test]
fn every_fixture_matches_transformers_and_the_f64_reference() {
    for name in FIXTURES {
        let golden = golden(name);
        let truth = golden.unit_f64.unwrap();
        let model = load(name, Precision::F32, Arithmetic::F32);
        let rows = model.forward(&golden.tokens.unwrap()).unwrap();
        for (i, row) in rows.chunks_exact(model.config().hidden_size).enumerate() {
            let (row, transformers) = (unit(row), unit(&golden.embeddings[i]));
            let (a, b) = (max_difference(&row, &transformers), max_difference(&row, &truth[i]));
            assert!(a <= MAX_DIFFERENCE, "{name}, text {i}: {a:e} from transformers");
            assert!(b <= MAX_DIFFERENCE, "{name}, text {i}: {b:e} from the f64 truth");
        }
    }
}

#[test]
fn every_layer_of_the_base_fixture_matches_transformers() {
    let states = golden("base").hidden_states.unwrap();
    let model = Model::load(&model("base"), Device::Cpu, Precision::F32).unwrap();
    let mut layers = Vec::new();
    let tokens = &tokens("base")[states.text..=states.text];
    let pooled = model.forward_traced(tokens, &mut |_, x| layers.push(x.to_vec())).unwrap();
    assert_eq!(layers.len(), states.layers.len());
    // transformers gives the output of its last layer after the final norm. It is compared with the pooled vector.
    for (i, layer) in layers[..layers.len() - 1].iter().enumerate() {
        let expected = states.layers[i].concat();
        let difference = max_difference(layer, &expected) / max_abs(&expected);
        assert!(difference <= MAX_DIFFERENCE, "layer {i}: {difference:e}");
    }
    let last = states.layers.last().unwrap().last().unwrap();
    assert!(max_difference(&pooled, last) / max_abs(last) <= MAX_DIFFERENCE);
}

/// Weights of a bf16 checkpoint lose nothing when they stay in bf16 and are multiplied in f32.
#[test]
fn bf16_weights_with_f32_products_give_the_same_vectors_as_f32() {
    for name in ["base", "sharded", "outliers", "wide"] {
        let tokens = tokens(name);
        let f32 = Model::load(&model(name), Device::Cpu, Precision::F32).unwrap();
        let bf16 = load(name, Precision::Bf16, Arithmetic::F32);
        let (a, b) = (f32.forward(&tokens).unwrap(), bf16.forward(&tokens).unwrap());
        assert!(a == b, "{name}");
    }
}

/// A CPU without bf16 instructions computes the same products in f32, from the same rounded activations.
#[test]
fn bf16_products_have_half_the_error_of_transformers_bf16() {
    for name in FIXTURES {
        let theirs = golden(name).transformers_bf16_errors.unwrap();
        let ours = errors(name, Precision::Bf16, Arithmetic::Bf16);
        assert_eq!(ours.len(), theirs.len());
        let (our_mean, their_mean) = (mean(&ours), mean(&theirs));
        assert!(our_mean <= their_mean / 2.0, "{name}: {our_mean:e}, transformers {their_mean:e}");
        assert!(max_abs(&ours) <= 5e-4, "{name}: {ours:?}");
    }
}

/// 1 − cosine between the golden vectors and a model's vectors, for each input.
fn errors(name: &str, precision: Precision, arithmetic: Arithmetic) -> Vec<f64> {
    let golden = golden(name);
    let model = load(name, precision, arithmetic);
    let rows = model.forward(&golden.tokens.unwrap()).unwrap();
    let rows = rows.chunks_exact(model.config().hidden_size).zip(&golden.embeddings);
    rows.map(|(row, expected)| 1.0 - cosine(row, expected)).collect()
}

/// The fixtures include a model with outliers, and GGUF files with weights in fewer than 8 bits. The golden vectors of
/// a GGUF file are those of transformers in f32 with the file's dequantized weights.
#[test]
fn int8_keeps_a_cosine_of_0_998_for_every_text() {
    for (name, arithmetic) in FIXTURES
        .into_iter()
        .flat_map(|name| [Arithmetic::Int8, Arithmetic::Bytes].map(|arithmetic| (name, arithmetic)))
    {
        let errors = errors(name, Precision::Int8, arithmetic);
        let worst = max_abs(&errors);
        println!("{name}, {arithmetic:?}: {worst:e}");
        assert!(worst <= 2e-3, "{name}, {arithmetic:?}: {errors:?}");
    }
}

/// Blocks of all three types are multiplied as they are, so only activations are rounded, to 8 bits. Weights whose type
/// has no such blocks are repacked to 8 bits, and so are gates and ups whose types differ.
#[test]
fn quantized_blocks_are_multiplied_without_repacking() {
    let model = Model::load(&model("gguf-k-quants"), Device::Cpu, Precision::Int8).unwrap();
    assert_eq!(model.arithmetic(), Arithmetic::Blocks);
    let worst = |arithmetic| max_abs(&errors("gguf-k-quants", Precision::Int8, arithmetic));
    let [blocks, int8] = [Arithmetic::Blocks, Arithmetic::Int8].map(worst);
    println!("gguf-k-quants: {blocks:e}, repacked {int8:e}");
    assert!(blocks != int8 && blocks <= 1e-3, "{blocks:e}, repacked {int8:e}");
}

/// Weights in Q8_0 are multiplied as they are, so only activations are rounded, to 16 bits.
#[test]
fn q8_0_weights_are_multiplied_without_repacking() {
    let worst = max_abs(&errors("gguf-q8-0", Precision::Int8, Arithmetic::Int8));
    assert!(worst <= 1e-6, "{worst:e}");
}
