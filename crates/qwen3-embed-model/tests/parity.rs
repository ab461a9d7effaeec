//! The decoder against transformers and against an f64 implementation, on every fixture.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use qwen3_embed_model::{Device, Model, Precision};
use serde_json::Value;

/// Largest difference of a component of a unit vector from transformers in f32.
const MAX_DIFFERENCE: f64 = 1e-5;

const FIXTURES: [&str; 7] =
    ["base", "causal-lm-tied", "causal-lm-untied", "sharded", "attention-bias", "outliers", "wide"];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
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
        let model = Model::load(&fixture(name), Device::Cpu, Precision::F32).unwrap();
        let rows = model.forward(&tokens).unwrap();
        for (i, row) in rows.chunks_exact(model.config().hidden_size).enumerate() {
            let row = unit(&widened(row));
            let transformers = unit(&numbers(&golden["embeddings"][i]));
            let truth = numbers(&golden["unit_f64"][i]);
            let (a, b) = (max_difference(&row, &transformers), max_difference(&row, &truth));
            println!("{name} {i} {}: {a:e} {b:e}", tokens[i].len());
            assert!(a <= MAX_DIFFERENCE, "{name}, text {i}: {a:e} from transformers");
            assert!(b <= MAX_DIFFERENCE, "{name}, text {i}: {b:e} from the f64 truth");
        }
    }
}
