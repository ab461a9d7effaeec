//! Compares the oracle with golden vectors and scores, which independent Python code has computed in f64.
#![allow(clippy::unwrap_used)]

use approx::assert_abs_diff_eq;
use qwen3_embed_testing::fixtures;
use qwen3_embed_testing::golden::{self, Scores, Vectors};
use qwen3_embed_testing::oracle::{self, Oracle};
use qwen3_embed_testing::vectors::{max_difference, unit};

/// The tolerance. Golden files have ten digits.
const GOLDEN_DIGITS: f64 = 1e-9;

/// Longer texts are skipped, because the computation of their attention matrices takes seconds.
const MAX_TOKENS: usize = 300;

#[test]
fn oracle_in_f64_gives_the_golden_vectors() {
    for name in [
        "base",
        "causal-lm-tied",
        "causal-lm-untied",
        "sharded",
        "attention-bias",
        "outliers",
        "wide",
        "bidirectional",
    ] {
        let folder = fixtures::model(name);
        let golden: Vectors = golden::read(&folder.join("golden.json")).unwrap();
        let oracle = Oracle::load_f64(&folder).unwrap();
        let inputs = golden.tokens.unwrap().into_iter().zip(golden.unit_f64.unwrap());
        for (tokens, expected) in inputs.filter(|(tokens, _)| tokens.len() <= MAX_TOKENS) {
            let difference = max_difference(&unit(&oracle.embedding(&tokens).unwrap()), &expected);
            assert!(difference <= GOLDEN_DIGITS, "{name}: {difference:e}");
        }
    }
}

#[test]
fn oracle_in_f64_gives_the_golden_logits() {
    for name in ["tied", "untied", "classifier"] {
        let folder = fixtures::reranker(name);
        let answers = oracle::answers(&folder).unwrap();
        let golden: Scores = golden::read(&folder.join("golden.json")).unwrap();
        let oracle = Oracle::load_f64(&folder).unwrap();
        for case in golden.cases.iter().filter(|case| case.tokens.len() <= MAX_TOKENS) {
            let logit = oracle.rerank_logit(&case.tokens, answers).unwrap();
            assert_abs_diff_eq!(logit, case.logit_f64, epsilon = GOLDEN_DIGITS);
        }
    }
}

#[test]
fn rejects_configurations_that_the_oracle_does_not_compute() {
    for (field, value) in [
        ("hidden_act", "gelu".into()),
        ("use_sliding_window", true.into()),
        ("rope_scaling", serde_json::json!({"type": "yarn", "factor": 4.0})),
    ] {
        let copy = fixtures::copy("models/base");
        fixtures::edit_json(&copy.path().join("config.json"), |config| config[field] = value);
        assert!(Oracle::load_f32(copy.path()).is_err(), "{field}");
    }
}
