//! Random checkpoints against the oracle, a plain forward pass of candle-nn's layers: configurations that have no
//! golden file.
//!
//! The oracle in f64 is taken as the truth. The tolerance is derived from the oracle in f32: its distance from the
//! truth shows what rounding to f32 costs with the same weights and texts. The model sums in another order, so it may
//! be [`FACTOR`] times as far off. A mistake in the arithmetic is far above that: a wrong scale, position or mask
//! changes the first digits.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use qwen3_embed_model::{Checkpoint, LoadOptions, Model, Precision, RerankHead};
use qwen3_embed_testing::checkpoint::RandomCheckpoint;
use qwen3_embed_testing::oracle::Oracle;
use qwen3_embed_testing::texts::random_texts;
use qwen3_embed_testing::vectors::{max_abs, max_difference, unit};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// The largest allowed error of the model, as a multiple of the error of candle-nn in f32.
const FACTOR: f64 = 8.0;

/// Half the distance from 1 to the next f32: the least that the result's own rounding costs.
const U: f64 = f32::EPSILON as f64 / 2.0;

fn load(dir: &Path) -> Model {
    let options =
        LoadOptions { precision: Precision::F32, hidden_states: true, ..LoadOptions::default() };
    Model::load_with(&Checkpoint::open(dir).unwrap(), &options).unwrap()
}

/// Eight texts of 1 to 300 tokens, with common prefixes.
fn texts(rng: &mut SmallRng, checkpoint: &RandomCheckpoint) -> Vec<Vec<u32>> {
    random_texts(rng, 8, checkpoint.vocab_size, 300)
}

#[test]
fn random_models_match_the_oracle() {
    for seed in 0..20 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let checkpoint = RandomCheckpoint::random(&mut rng);
        let texts = texts(&mut rng, &checkpoint);
        let dir = checkpoint.write(seed);
        let [f64, f32] =
            [Oracle::load_f64(dir.path()), Oracle::load_f32(dir.path())].map(Result::unwrap);
        let vectors = |oracle: &Oracle| -> Vec<Vec<f64>> {
            texts.iter().map(|text| unit(&oracle.embedding(text).unwrap())).collect()
        };
        let truth = vectors(&f64);
        let max_error = |vectors: &[Vec<f64>]| max_difference(&vectors.concat(), &truth.concat());
        let tolerance = FACTOR * max_error(&vectors(&f32)).max(U);
        // In one batch, in batches of one text, and with the prefixes that the earlier calls have cached.
        let mut model = load(dir.path());
        for batch_tokens in [usize::MAX, 1, usize::MAX] {
            model = model.with_batch_tokens(batch_tokens);
            let rows = model.forward(&texts).unwrap();
            let ours: Vec<_> = rows.chunks_exact(checkpoint.hidden_size).map(unit).collect();
            assert_eq!(ours.len(), texts.len());
            let error = max_error(&ours);
            assert!(error <= tolerance, "seed {seed}: {error:e} > {tolerance:e}, {checkpoint:?}");
        }
    }
}

#[test]
fn random_rerankers_match_the_oracle() {
    for seed in 0..10 {
        let mut rng = SmallRng::seed_from_u64(1000 + seed);
        let checkpoint = RandomCheckpoint {
            prefix: "model.",
            is_causal: true,
            ..RandomCheckpoint::random(&mut rng)
        };
        let prompts = texts(&mut rng, &checkpoint);
        let yes = rng.random_range(0..checkpoint.vocab_size as u32 - 1);
        let (dir, no) = (checkpoint.write(seed), yes + 1);
        let logits = |oracle: &Oracle| -> Vec<f64> {
            prompts.iter().map(|prompt| oracle.rerank_logit(prompt, [yes, no]).unwrap()).collect()
        };
        let truth = logits(&Oracle::load_f64(dir.path()).unwrap());
        let candle = logits(&Oracle::load_f32(dir.path()).unwrap());
        let tolerance = FACTOR * max_difference(&candle, &truth).max(U * max_abs(&truth));
        let head = RerankHead::load(&Checkpoint::open(dir.path()).unwrap(), yes, no).unwrap();
        let ours = head.logits(&load(dir.path()), &prompts).unwrap();
        let error = max_difference(&ours, &truth);
        assert!(error <= tolerance, "seed {seed}: {error:e} > {tolerance:e}, {checkpoint:?}");
    }
}
