//! Computing once what texts have in common, and in the last layer only what is asked for, changes no
//! bit of any vector.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::{slice, thread};

use qwen3_embed_model::{
    Arithmetic, Checkpoint, LoadOptions, Model, Precision, Sharing, SharingCounts,
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

fn load(name: &str) -> Model {
    load_for(name, Precision::F32, Arithmetic::F32)
}

fn load_for(name: &str, precision: Precision, arithmetic: Arithmetic) -> Model {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    Model::load_with(
        &Checkpoint::open(&dir).unwrap(),
        &LoadOptions::multiplying(precision, arithmetic),
    )
    .unwrap()
}

/// The fixture in every precision and arithmetic.
fn every(name: &str) -> [Model; 4] {
    [
        load(name),
        load_for(name, Precision::Bf16, Arithmetic::Bf16),
        load_for(name, Precision::Int8, Arithmetic::Int8),
        load_for(name, Precision::Int8, Arithmetic::Bytes),
    ]
}

fn on(cache_bytes: usize) -> Sharing {
    Sharing::On { cache_bytes }
}

/// The bits of each text's vector.
fn rows(model: &Model, texts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let hidden = model.forward(texts).unwrap();
    let rows = hidden.chunks_exact(model.config().hidden_size);
    rows.map(|row| row.iter().map(|v| v.to_bits()).collect()).collect()
}

/// Texts that grow from one another: each begins with any part of an earlier one, often all of it.
fn random_texts(rng: &mut SmallRng, n: usize) -> Vec<Vec<u32>> {
    let mut texts: Vec<Vec<u32>> = Vec::new();
    for _ in 0..n {
        let earlier = match texts.len() {
            0 => Vec::new(),
            n => texts[rng.random_range(0..n)].clone(),
        };
        let n_shared = match rng.random_range(0..4) {
            0 => 0,
            1 => earlier.len(),
            _ => rng.random_range(0..=earlier.len()),
        };
        let mut text = earlier[..n_shared].to_vec();
        let most = if rng.random_bool(0.2) { 150 } else { 12 };
        text.extend((0..rng.random_range(0..most)).map(|_| rng.random_range(0..1000)));
        if text.is_empty() {
            text.push(7);
        }
        texts.push(text);
    }
    texts
}

#[test]
fn any_forest_in_any_state_of_the_cache_gives_the_same_bits() {
    let mut rng = SmallRng::seed_from_u64(1);
    for name in ["base", "attention-bias"] {
        for model in every(name) {
            let calls: Vec<_> = (0..6).map(|_| random_texts(&mut rng, 20)).collect();
            let mut model = model.with_sharing(Sharing::Off);
            let expected: Vec<_> = calls.iter().map(|texts| rows(&model, texts)).collect();
            // Nothing is kept, little so that it is pushed out at once, or all of it.
            for cache_bytes in [0, 40_000, 64 << 20] {
                model = model.with_sharing(on(cache_bytes));
                for batch_tokens in [1, 50, usize::MAX] {
                    model = model.with_batch_tokens(batch_tokens);
                    for (texts, expected) in calls.iter().zip(&expected) {
                        let got = rows(&model, texts);
                        assert!(got == *expected, "{name}, {cache_bytes}, {batch_tokens}");
                    }
                }
                let counts = model.sharing_counts();
                assert!(counts.cache_bytes as usize <= cache_bytes, "{counts:?}");
                assert_eq!(counts.cache_hits > 0, cache_bytes > 0, "{counts:?}");
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let texts = random_texts(&mut SmallRng::seed_from_u64(2), 30);
    let model = load("wide").with_sharing(Sharing::Off);
    let expected = rows(&model, &texts);
    let model = model.with_sharing(Sharing::default());
    for threads in [1, 2, 3, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(pool.install(|| rows(&model, &texts)) == expected, "{threads} threads");
    }
}

#[test]
fn callers_at_the_same_time_share_the_cache() {
    let texts = random_texts(&mut SmallRng::seed_from_u64(3), 40);
    let model = load("base").with_sharing(Sharing::Off);
    let expected = rows(&model, &texts);
    // Room for a few prefixes, so that callers push out one another's.
    let model = model.with_sharing(on(100_000));
    thread::scope(|scope| {
        for i in 0..4 {
            let (model, texts, expected) = (&model, &texts, &expected);
            scope.spawn(move || {
                for j in 0..texts.len() {
                    let idx = (i * 11 + j * 7) % texts.len();
                    let got = rows(model, slice::from_ref(&texts[idx]));
                    assert!(got[0] == expected[idx], "text {idx}");
                }
            });
        }
    });
    assert!(model.sharing_counts().cache_hits > 0);
}

/// `n` tokens that no other text has.
fn own(text: u32, n: u32) -> Vec<u32> {
    (0..n).map(|i| 100 + (text * 31 + i) % 900).collect()
}

#[test]
fn what_texts_have_in_common_is_computed_once() {
    let model = load("base").with_sharing(on(0));
    let n_computed = |texts: &[Vec<u32>]| {
        let before = model.sharing_counts();
        model.forward(texts).unwrap();
        let after = model.sharing_counts();
        let n_tokens: usize = texts.iter().map(Vec::len).sum();
        assert_eq!(after.n_tokens - before.n_tokens, n_tokens as u64);
        after.n_computed - before.n_computed
    };
    let prefix: Vec<u32> = (0..19).collect();
    let with_prefix = |text| [prefix.clone(), own(text, 10)].concat();
    // Texts of their own, an instruction, equal texts, and one text that is the beginning of another.
    assert_eq!(n_computed(&[own(1, 10), own(2, 5)]), 15);
    assert_eq!(n_computed(&[with_prefix(1), own(9, 3), with_prefix(2), with_prefix(3)]), 52);
    assert_eq!(n_computed(&[own(1, 10), own(2, 5), own(1, 10), own(1, 10)]), 15);
    assert_eq!(n_computed(&[with_prefix(1), prefix.clone()]), 29);
    // An instruction, and behind it queries that several texts have.
    let pair = |query, document| [with_prefix(query), own(document, 7)].concat();
    assert_eq!(n_computed(&[pair(1, 4), pair(2, 5), pair(1, 6), pair(2, 7)]), 19 + 20 + 28);
    // Three tokens in common are not worth a segment.
    let short = |text| [prefix[..3].to_vec(), own(text, 5)].concat();
    assert_eq!(n_computed(&[short(1), short(2)]), 16);
}

#[test]
fn what_texts_began_with_is_known_to_later_calls() {
    let model = load("base");
    let prefix: Vec<u32> = (0..19).collect();
    let query = |text| vec![[prefix.clone(), own(text, 10)].concat()];
    let mut before = SharingCounts::default();
    // The first two show what they have in common, the third finds it.
    for (text, n_computed, cache_tokens) in [(1, 29, 0), (2, 29, 0), (3, 10, 19), (4, 10, 19)] {
        model.forward(&query(text)).unwrap();
        let counts = model.sharing_counts();
        assert_eq!(counts.n_computed - before.n_computed, n_computed, "query {text}");
        assert_eq!(counts.cache_tokens - before.cache_tokens, cache_tokens, "query {text}");
        assert_eq!(counts.cache_hits - before.cache_hits, u64::from(cache_tokens > 0));
        before = counts;
    }
    let config = model.config();
    let columns = 2 * config.num_key_value_heads * config.head_dim;
    assert_eq!(before.cache_bytes as usize, 19 * config.num_hidden_layers * columns * 4);
    // A call in which texts have it in common leaves it at once.
    let model = load("base");
    model.forward(&[query(1), query(2)].concat()).unwrap();
    model.forward(&query(3)).unwrap();
    assert_eq!(model.sharing_counts().cache_tokens, 19);
}
