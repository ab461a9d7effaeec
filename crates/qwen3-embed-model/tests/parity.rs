//! The decoder against transformers and against an f64 implementation, on every fixture.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use qwen3_embed_model::{Arithmetic, Checkpoint, Device, Kernels, LoadOptions, Model, Precision};
use serde_json::Value;

/// Largest difference of a component of a unit vector from transformers in f32.
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

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

/// The fixture's folder, or the file in it that is the model.
fn model(name: &str) -> PathBuf {
    let gguf = fixture(name).join("model.gguf");
    if gguf.is_file() { gguf } else { fixture(name) }
}

/// The fixture, multiplied so on any processor. Its vectors are hidden states of last tokens, as in golden
/// files: one that is bidirectional would give others.
fn load(name: &str, precision: Precision, arithmetic: Arithmetic) -> Model {
    let options = LoadOptions::multiplying(precision, arithmetic);
    Model::load_with(
        &Checkpoint::open(&model(name)).unwrap(),
        &LoadOptions { hidden_states: true, ..options },
    )
    .unwrap()
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixture(name).join("golden.json")).unwrap()).unwrap()
}

fn numbers(row: &Value) -> Vec<f64> {
    row.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn tokens(golden: &Value) -> Vec<Vec<u32>> {
    let texts = golden["tokens"].as_array().unwrap();
    texts.iter().map(|text| numbers(text).iter().map(|&id| id as u32).collect()).collect()
}

fn unit(row: &[f64]) -> Vec<f64> {
    let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
    row.iter().map(|v| v / norm).collect()
}

fn max_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

#[test]
fn every_fixture_equals_transformers_and_the_f64_truth() {
    for name in FIXTURES {
        let golden = golden(name);
        let tokens = tokens(&golden);
        let model = load(name, Precision::F32, Arithmetic::F32);
        let rows = model.forward(&tokens).unwrap();
        for (i, row) in rows.chunks_exact(model.config().hidden_size).enumerate() {
            let row = unit(&widened(row));
            let transformers = unit(&numbers(&golden["embeddings"][i]));
            let truth = numbers(&golden["unit_f64"][i]);
            let (a, b) = (max_difference(&row, &transformers), max_difference(&row, &truth));
            assert!(a <= MAX_DIFFERENCE, "{name}, text {i}: {a:e} from transformers");
            assert!(b <= MAX_DIFFERENCE, "{name}, text {i}: {b:e} from the f64 truth");
        }
    }
}

#[test]
fn every_layer_of_the_base_fixture_equals_transformers() {
    let golden = golden("base");
    let states = &golden["hidden_states"];
    let text = states["text"].as_u64().unwrap() as usize;
    let expected = states["layers"].as_array().unwrap();
    let model = Model::load(&fixture("base"), Device::Cpu, Precision::F32).unwrap();
    let mut layers = Vec::new();
    let tokens = &tokens(&golden)[text..=text];
    let pooled = model.forward_traced(tokens, &mut |_, x| layers.push(widened(x))).unwrap();
    assert_eq!(layers.len(), expected.len());
    // transformers norms the output of its last layer; ours is compared through its last row.
    for (i, layer) in layers[..layers.len() - 1].iter().enumerate() {
        let expected: Vec<f64> = expected[i].as_array().unwrap().iter().flat_map(numbers).collect();
        let largest = expected.iter().fold(0f64, |max, v| max.max(v.abs()));
        let difference = max_difference(layer, &expected) / largest;
        assert!(difference <= MAX_DIFFERENCE, "layer {i}: {difference:e}");
    }
    let last = numbers(expected.last().unwrap().as_array().unwrap().last().unwrap());
    let largest = last.iter().fold(0f64, |max, v| max.max(v.abs()));
    assert!(max_difference(&widened(&pooled), &last) / largest <= MAX_DIFFERENCE);
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    unit(a).iter().zip(unit(b)).map(|(a, b)| a * b).sum()
}

/// Where the checkpoint is in bf16, keeping its weights in bf16 and multiplying in f32 loses nothing.
#[test]
fn bf16_weights_give_the_vectors_of_f32() {
    for name in ["base", "sharded", "outliers", "wide"] {
        let tokens = tokens(&golden(name));
        let f32 = Model::load(&model(name), Device::Cpu, Precision::F32).unwrap();
        let bf16 = load(name, Precision::Bf16, Arithmetic::F32);
        let (a, b) = (f32.forward(&tokens).unwrap(), bf16.forward(&tokens).unwrap());
        assert!(a == b, "{name}");
    }
}

/// bf16 products, which processors without them compute in f32 from the same rounded activations.
#[test]
fn bf16_products_are_half_as_far_off_as_those_of_transformers() {
    for name in FIXTURES {
        let golden = golden(name);
        let tokens = tokens(&golden);
        let theirs = numbers(&golden["transformers_bf16_errors"]);
        let model = load(name, Precision::Bf16, Arithmetic::Bf16);
        let rows = model.forward(&tokens).unwrap();
        let rows = rows.chunks_exact(model.config().hidden_size);
        let ours: Vec<f64> = rows
            .zip(golden["embeddings"].as_array().unwrap())
            .map(|(row, expected)| 1.0 - cosine(&widened(row), &numbers(expected)))
            .collect();
        assert_eq!(ours.len(), theirs.len());
        let mean = |errors: &[f64]| errors.iter().sum::<f64>() / errors.len() as f64;
        let (our_mean, their_mean) = (mean(&ours), mean(&theirs));
        assert!(our_mean <= their_mean / 2.0, "{name}: {our_mean:e}, transformers {their_mean:e}");
        let worst = ours.iter().fold(0f64, |worst, &error| worst.max(error));
        assert!(worst <= 5e-4, "{name}: {worst:e} in {ours:?}");
    }
}

/// 1 − cosine between the golden vectors and those of weights in 8 bits, for each input.
fn errors(name: &str, arithmetic: Arithmetic) -> Vec<f64> {
    let golden = golden(name);
    let model = load(name, Precision::Int8, arithmetic);
    let rows = model.forward(&tokens(&golden)).unwrap();
    rows.chunks_exact(model.config().hidden_size)
        .zip(golden["embeddings"].as_array().unwrap())
        .map(|(row, expected)| 1.0 - cosine(&widened(row), &numbers(expected)))
        .collect()
}

/// The outliers among them, and weights that a GGUF file has in fewer bits: against transformers in
/// f32 with the values that the file stands for.
#[test]
fn int8_keeps_a_cosine_of_0_998_for_every_text() {
    for (name, arithmetic) in FIXTURES
        .into_iter()
        .flat_map(|name| [Arithmetic::Int8, Arithmetic::Bytes].map(|arithmetic| (name, arithmetic)))
    {
        let errors = errors(name, arithmetic);
        let worst = errors.iter().fold(0f64, |worst, &error| worst.max(error));
        println!("{name}, {arithmetic:?}: {worst:e}");
        assert!(worst <= 2e-3, "{name}, {arithmetic:?}: {errors:?}");
    }
}

/// Only activations are rounded, to 8 bits: the blocks of all three kinds, and where gates are in other bits than
/// ups, or a type has no such blocks, weights in 8 bits beside them.
#[test]
fn weights_in_few_bits_are_used_as_they_are() {
    let model = Model::load(&model("gguf-k-quants"), Device::Cpu, Precision::Int8).unwrap();
    assert_eq!(model.arithmetic(), Arithmetic::Blocks);
    let worst = |arithmetic| errors("gguf-k-quants", arithmetic).into_iter().fold(0f64, f64::max);
    let [blocks, int8] = [Arithmetic::Blocks, Arithmetic::Int8].map(worst);
    println!("gguf-k-quants: {blocks:e}, repacked {int8:e}");
    assert!(blocks != int8 && blocks <= 1e-3, "{blocks:e}, repacked {int8:e}");
}

/// Only activations are rounded, to 16 bits.
#[test]
fn weights_in_q8_0_are_used_as_they_are() {
    let worst = errors("gguf-q8-0", Arithmetic::Int8).into_iter().fold(0f64, f64::max);
    assert!(worst <= 1e-6, "{worst:e}");
}

#[test]
fn auto_becomes_what_is_fastest_for_the_weights() {
    let auto = |name| Model::load(&model(name), Device::Cpu, Precision::Auto).unwrap().precision();
    assert_eq!(auto("gguf-q8-0"), Precision::Int8);
    let has_bf16 = Kernels::current().bf16_weights == Arithmetic::Bf16;
    assert_eq!(auto("wide"), if has_bf16 { Precision::Bf16 } else { Precision::Int8 });
}
