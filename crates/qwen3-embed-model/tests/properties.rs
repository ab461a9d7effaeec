//! Properties that hold for any input and any weights: independence of the batch, of threads and of other calls.
#![allow(clippy::unwrap_used)]

use std::{slice, thread};

use qwen3_embed_model::{Arithmetic, Checkpoint, Device, Error, LoadOptions, Model, Precision};
use qwen3_embed_testing::fixtures;

fn load(name: &str) -> Model {
    Model::load(&fixtures::model(name), Device::Cpu, Precision::F32).unwrap()
}

/// A fixture with weights in blocks of 4 to 6 bits.
const BLOCKS: &str = "gguf-k-quants";

/// A fixture in every precision and arithmetic. [`BLOCKS`] is loaded in its own block formats only.
fn load_all(name: &str) -> Vec<Model> {
    let path = fixtures::model(name);
    let all = [
        (Precision::F32, Arithmetic::F32),
        (Precision::Bf16, Arithmetic::F32),
        (Precision::Bf16, Arithmetic::Bf16),
        (Precision::Int8, Arithmetic::Int8),
        (Precision::Int8, Arithmetic::Bytes),
    ];
    let blocks = [(Precision::Int8, Arithmetic::Blocks)];
    let all = if name == BLOCKS { &blocks[..] } else { &all };
    let load = |&(precision, arithmetic)| {
        Model::load_with(
            &Checkpoint::open(&path).unwrap(),
            &LoadOptions::multiplying(precision, arithmetic),
        )
        .unwrap()
    };
    all.iter().map(load).collect()
}

/// Pseudorandom token ids.
fn tokens(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (seed.wrapping_mul(2_654_435_761) ^ (i * 40_503 + 7)) % 1000).collect()
}

/// The bits of each text's vector.
fn rows(model: &Model, texts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let hidden = model.forward(texts).unwrap();
    let rows = hidden.chunks_exact(model.config().hidden_size);
    rows.map(|row| row.iter().map(|v| v.to_bits()).collect()).collect()
}

#[test]
fn vectors_do_not_depend_on_the_batch_bit_for_bit() {
    for (name, model) in ["base", "wide", "causal-lm-tied", "bidirectional", BLOCKS]
        .into_iter()
        .flat_map(|name| load_all(name).into_iter().map(move |model| (name, model)))
    {
        // Some lengths are equal, because a batch without padding needs causal masks too.
        let lengths = [1, 1, 2, 5, 17, 17, 64, 65, 128, 129, 300];
        let texts: Vec<_> = lengths.iter().enumerate().map(|(i, &n)| tokens(i as u32, n)).collect();
        let together = rows(&model, &texts);
        for (text, expected) in texts.iter().zip(&together) {
            assert!(
                rows(&model, slice::from_ref(text))[0] == *expected,
                "{name}, {} tokens",
                text.len()
            );
        }
        let reversed: Vec<_> = texts.iter().rev().cloned().collect();
        assert!(rows(&model, &reversed).iter().rev().eq(&together), "{name}: another order");
    }
}

#[test]
fn vectors_do_not_depend_on_the_number_of_threads_bit_for_bit() {
    let texts: Vec<_> = [3, 200, 40].iter().map(|&n| tokens(9, n)).collect();
    for model in ["wide", BLOCKS].into_iter().flat_map(load_all) {
        let expected = rows(&model, &texts);
        for threads in [1, 2, 3, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(|| rows(&model, &texts)) == expected, "{threads} threads");
        }
    }
}

#[test]
fn causal_hidden_states_do_not_depend_on_later_tokens_bit_for_bit() {
    for model in ["base", BLOCKS].into_iter().flat_map(load_all) {
        let trace = |text: Vec<u32>| {
            let mut layers = Vec::new();
            model.forward_traced(&[text], &mut |_, x| layers.push(x.to_vec())).unwrap();
            layers
        };
        let hidden_size = model.config().hidden_size;
        let (prefix, rest) = (tokens(1, 151), tokens(2, 90));
        let alone = trace(prefix.clone());
        let followed = trace([prefix.clone(), rest.clone()].concat());
        for (layer_idx, (alone, followed)) in alone.iter().zip(&followed).enumerate() {
            assert!(*alone == followed[..151 * hidden_size], "layer {layer_idx}");
        }
        let other = [[prefix, rest.clone()].concat(), [tokens(3, 151), rest].concat()];
        let other = rows(&model, &other);
        assert!(other[0] != other[1], "a token does not depend on the tokens before it");
    }
}

#[test]
fn bidirectional_hidden_states_depend_on_later_tokens() {
    for model in load_all("bidirectional") {
        let first = |text: &[u32]| {
            let mut layers = Vec::new();
            model.forward_traced(&[text], &mut |_, x| layers.push(x.to_vec())).unwrap();
            layers.last().unwrap()[..model.config().hidden_size].to_vec()
        };
        assert!(first(&[1, 2, 3]) != first(&[1, 2, 4]));
        // Texts have a prefix in common, but its hidden states depend on the rest of each text.
        let texts = [[vec![5; 40], vec![6]].concat(), [vec![5; 40], vec![7]].concat()];
        let together = rows(&model, &texts);
        assert!(rows(&model, &texts[1..])[0] == together[1]);
        assert_eq!(model.sharing_counts().n_computed, model.sharing_counts().n_tokens);
    }
}

#[test]
fn vectors_do_not_depend_on_earlier_calls() {
    let model = load("base");
    let text = vec![tokens(4, 20)];
    let first = rows(&model, &text);
    rows(&model, &[tokens(5, 500)]);
    assert!(rows(&model, &text) == first);
}

#[test]
fn threads_share_a_model() {
    let model = load("base");
    let texts: Vec<_> = (0..8).map(|i| tokens(i, 10 + 30 * i as usize)).collect();
    let expected = rows(&model, &texts);
    thread::scope(|scope| {
        let calls: Vec<_> =
            texts.iter().map(|text| scope.spawn(|| rows(&model, slice::from_ref(text)))).collect();
        for (call, expected) in calls.into_iter().zip(&expected) {
            assert!(call.join().unwrap()[0] == *expected);
        }
    });
}

/// Trained checkpoints have activations in the thousands, which exceed the range of f16 for some texts.
#[test]
fn activations_beyond_the_range_of_f16_stay_finite() {
    let model = load("outliers");
    let mut largest = 0f32;
    let im_start = 1001;
    model
        .forward_traced(&[[vec![im_start], tokens(6, 30)].concat()], &mut |_, x| {
            largest = x.iter().fold(largest, |max, v| max.max(v.abs()));
        })
        .unwrap();
    assert!(largest > 65_504.0, "the fixture's largest activation is {largest}");
}

#[test]
fn empty_batch_gives_no_vectors() {
    assert!(load("base").forward(&[] as &[Vec<u32>]).unwrap().is_empty());
}

#[test]
fn accepts_text_of_maximum_length_and_rejects_one_token_more() {
    let model = load("causal-lm-tied");
    let limit = model.config().max_position_embeddings;
    assert_eq!(rows(&model, &[tokens(1, limit)]).len(), 1);
    let error = model.forward(&[tokens(1, 3), tokens(1, limit + 1)]).unwrap_err();
    let expected = format!("text 1 has {} tokens, the model's limit is {limit}", limit + 1);
    assert_eq!(error.to_string(), expected);
}

#[test]
fn rejects_token_ids_outside_the_vocabulary() {
    let model = load("base");
    for id in [1026, 151_643, u32::MAX] {
        let error = model.forward(&[vec![1, 2], vec![3, id, 4]]).unwrap_err();
        assert!(
            matches!(error, Error::TokenOutOfRange { text: 1, position: 1, vocab_size: 1026, .. }),
            "{error}"
        );
    }
    assert!(model.forward(&[vec![1025]]).is_ok());
}

#[test]
fn rejects_text_without_tokens() {
    let error = load("base").forward(&[vec![1], vec![]]).unwrap_err();
    assert!(matches!(error, Error::EmptyText { text: 1 }), "{error}");
}
