//! Prefix sharing: shared prefixes are computed once, and the last layer is computed for last tokens only. Neither
//! changes a bit of any vector.
#![allow(clippy::unwrap_used)]

use std::{slice, thread};

use qwen3_embed_model::{
    Arithmetic, Checkpoint, LoadOptions, Model, Precision, Sharing, SharingCounts,
};
use qwen3_embed_testing::fixtures;
use qwen3_embed_testing::texts::random_texts;
use rand::{SeedableRng, rngs::SmallRng};

fn load(name: &str) -> Model {
    load_for(name, Precision::F32, Arithmetic::F32)
}

fn load_for(name: &str, precision: Precision, arithmetic: Arithmetic) -> Model {
    let options = LoadOptions::multiplying(precision, arithmetic);
    Model::load_with(&Checkpoint::open(&fixtures::model(name)).unwrap(), &options).unwrap()
}

/// A fixture in every precision and arithmetic.
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

/// Texts of the fixtures' vocabulary with common prefixes.
fn texts(rng: &mut SmallRng, n: usize) -> Vec<Vec<u32>> {
    random_texts(rng, n, 1000, 300)
}

#[test]
fn vectors_do_not_depend_on_sharing_or_the_prefix_cache_bit_for_bit() {
    let mut rng = SmallRng::seed_from_u64(1);
    for name in ["base", "attention-bias"] {
        for model in every(name) {
            let calls: Vec<_> = (0..6).map(|_| texts(&mut rng, 20)).collect();
            let mut model = model.with_sharing(Sharing::Off);
            let expected: Vec<_> = calls.iter().map(|texts| rows(&model, texts)).collect();
            // A cache without room, a cache that evicts all the time, and a cache with room for everything.
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
fn shared_prefixes_give_the_same_vectors_with_any_number_of_threads_bit_for_bit() {
    let texts = texts(&mut SmallRng::seed_from_u64(2), 30);
    let model = load("wide").with_sharing(Sharing::Off);
    let expected = rows(&model, &texts);
    let model = model.with_sharing(Sharing::default());
    for threads in [1, 2, 3, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(pool.install(|| rows(&model, &texts)) == expected, "{threads} threads");
    }
}

#[test]
fn concurrent_calls_share_the_prefix_cache() {
    let texts = texts(&mut SmallRng::seed_from_u64(3), 40);
    let model = load("base").with_sharing(Sharing::Off);
    let expected = rows(&model, &texts);
    // Room for a few prefixes, so that calls evict prefixes of other calls.
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

/// `n` tokens. Texts with different numbers begin with different tokens.
fn own(text: u32, n: u32) -> Vec<u32> {
    (0..n).map(|i| 100 + (text * 31 + i) % 900).collect()
}

#[test]
fn common_prefixes_of_a_batch_are_computed_once() {
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
    // Texts without a common prefix, a common instruction, equal texts, and a text that is a prefix of another.
    assert_eq!(n_computed(&[own(1, 10), own(2, 5)]), 15);
    assert_eq!(n_computed(&[with_prefix(1), own(9, 3), with_prefix(2), with_prefix(3)]), 52);
    assert_eq!(n_computed(&[own(1, 10), own(2, 5), own(1, 10), own(1, 10)]), 15);
    assert_eq!(n_computed(&[with_prefix(1), prefix.clone()]), 29);
    // A common instruction, followed by queries that several texts have in common.
    let pair = |query, document| [with_prefix(query), own(document, 7)].concat();
    assert_eq!(n_computed(&[pair(1, 4), pair(2, 5), pair(1, 6), pair(2, 7)]), 19 + 20 + 28);
    // A common prefix of three tokens is too short for a segment.
    let short = |text| [prefix[..3].to_vec(), own(text, 5)].concat();
    assert_eq!(n_computed(&[short(1), short(2)]), 16);
}

#[test]
fn common_prefixes_are_cached_for_later_calls() {
    let model = load("base");
    let prefix: Vec<u32> = (0..19).collect();
    let query = |text| vec![[prefix.clone(), own(text, 10)].concat()];
    let mut before = SharingCounts::default();
    // The first two calls show the common prefix, which the second call caches. The third call finds it.
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
    // A prefix that texts of one call have in common is cached by that call.
    let model = load("base");
    model.forward(&[query(1), query(2)].concat()).unwrap();
    model.forward(&query(3)).unwrap();
    assert_eq!(model.sharing_counts().cache_tokens, 19);
}
