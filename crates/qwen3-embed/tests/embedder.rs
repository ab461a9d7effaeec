//! [`Embedder`] on the fixtures: its vectors, its settings and its errors.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, iter};

use qwen3_embed::{
    Arithmetic, DEFAULT_INSTRUCTION, EmbedOptions, Embedder, EmbedderBuilder, Embeddings, Error,
    ModelError, Overflow, Precision, Prompt, Source, SpecialTokens, Summary, Text, instruct,
};
use qwen3_embed_testing::fixtures::{self, model};
use qwen3_embed_testing::golden::{self, Vectors};
use qwen3_embed_testing::vectors::{max_difference, unit};
use rayon::prelude::*;
use serde_json::{Value, json};

fn builder(name: &str) -> EmbedderBuilder {
    Embedder::builder(model(name))
}

fn embedder(name: &str) -> Embedder {
    builder(name).build().unwrap()
}

/// A copy of a model with a change to one of its JSON files.
fn changed(name: &str, file: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let dir = fixtures::copy(&format!("models/{name}"));
    fixtures::edit_json(&dir.path().join(file), change);
    dir
}

/// The texts of a model's golden file, and the vectors that transformers computes for them.
fn golden(name: &str) -> (Vec<String>, Vec<Vec<f64>>) {
    let path = fixtures::path("models").join(name).join("golden.json");
    let golden: Vectors = golden::read(&path).unwrap();
    (golden.texts.into_iter().map_while(|text| text).collect(), golden.embeddings)
}

const TEXTS: [&str; 4] = [
    "今天天气真好,适合出去散步",
    "The weather is great today, perfect for a walk",
    "今日の天気はとても良いです、散歩に最適です",
    "오늘 날씨가 정말 좋네요, 산책하기 딱 좋아요",
];

fn assert_unit_length(embeddings: &Embeddings) {
    for row in embeddings {
        let square: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
        assert!((square - 1.0).abs() < 1e-6, "{square}");
    }
}

#[test]
fn preloaded_token_embeddings_give_the_same_vectors_without_the_file() {
    for (name, file) in [("base", "model.safetensors"), ("gguf-q8-0", "model.gguf")] {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let dir = fixtures::copy(&format!("models/{name}"));
            let builder = || Embedder::builder(dir.path()).precision(precision);
            let expected = builder().build().unwrap().embed_documents(&TEXTS).unwrap();
            let preloaded = builder().preload(true).build().unwrap();
            #[cfg(target_os = "linux")]
            {
                let maps = fs::read_to_string("/proc/self/maps").unwrap();
                assert!(!maps.contains(dir.path().to_str().unwrap()), "{maps}");
            }
            fs::File::create(dir.path().join(file)).unwrap();
            assert_eq!(preloaded.embed_documents(&TEXTS).unwrap(), expected, "{name}");
        }
    }
}

#[test]
fn embeddings_match_transformers() {
    for name in ["base", "causal-lm-untied", "wide"] {
        let (texts, expected) = golden(name);
        assert!(texts.len() >= 9 && texts.contains(&String::new()));
        let exact = builder(name).precision(Precision::F32).build().unwrap();
        let embeddings = exact.embed_documents(&texts).unwrap();
        assert_unit_length(&embeddings);
        for (row, expected) in embeddings.iter().zip(&expected) {
            let difference = max_difference(row, &unit(expected));
            assert!(difference <= 1e-5, "{name}: {difference:e}");
        }
    }
}

#[test]
fn query_is_embedded_with_the_default_instruction() {
    let embedder = embedder("base");
    let query = ["What is the capital of China?"];
    let by_hand = [instruct(DEFAULT_INSTRUCTION, query[0])];
    let queries = embedder.embed_queries(&query).unwrap();
    assert_eq!(queries, embedder.embed_documents(&by_hand).unwrap());
    let with = |instruction: &str| {
        let prompt = Prompt::Instruction(instruction.to_owned());
        embedder.embed_with(query, &EmbedOptions::new().prompt(prompt)).unwrap()
    };
    assert_eq!(queries, with(DEFAULT_INSTRUCTION));
    assert_ne!(queries, embedder.embed_documents(&query).unwrap());
    assert_ne!(queries, with("Find a duplicate"));
}

/// A model with fewer than 1024 dimensions can be truncated to any number of dimensions.
#[test]
fn truncates_dimensions_before_normalizing() {
    let full = embedder("wide").embed_documents(&TEXTS).unwrap();
    assert_eq!(full.dimensions(), 256);
    for dim in [1, 2, 31, 32, 255, 256] {
        let short = builder("wide").dimensions(dim).build().unwrap();
        assert_eq!(short.dimensions(), dim);
        let short = short.embed_documents(&TEXTS).unwrap();
        assert_eq!((short.len(), short.dimensions()), (4, dim));
        assert_unit_length(&short);
        let truncated = full.truncate(dim).unwrap();
        assert!(max_difference(short.as_slice(), truncated.as_slice()) <= 1e-6);
    }
}

#[test]
fn without_normalization_vectors_keep_their_length() {
    let (texts, expected) = golden("base");
    let exact = builder("base").precision(Precision::F32).dimensions(7);
    let raw = exact.clone().normalize(false).build().unwrap().embed_documents(&texts).unwrap();
    for (row, expected) in raw.iter().zip(&expected) {
        let norm = expected.iter().map(|v| v * v).sum::<f64>().sqrt();
        let difference = max_difference(row, &expected[..7]);
        assert!(difference <= 1e-5 * norm, "{difference:e}");
    }
    let unit = exact.build().unwrap().embed_documents(&texts).unwrap();
    assert_eq!(raw.truncate(7).unwrap(), unit);
}

#[test]
fn source_converts_from_strings_and_paths() {
    let path = model("base");
    let text = path.to_str().unwrap().to_owned();
    let infos = [
        Source::from(&text).info().unwrap(),
        Source::from(text.as_str()).info().unwrap(),
        Source::from(text).info().unwrap(),
        Source::from(&path).info().unwrap(),
        Source::from(path.as_path()).info().unwrap(),
        Source::from(path).info().unwrap(),
    ];
    let summary: &Summary = &infos[0].summary;
    assert!(infos.iter().all(|info| info.summary == *summary));
}

#[test]
fn rejects_settings_out_of_range_and_says_the_range() {
    let cases = [
        (builder("base").dimensions(0), "`dimensions` is 0, expected 1 to 64"),
        (builder("base").dimensions(65), "`dimensions` is 65, expected 1 to 64"),
        (builder("base").max_tokens(0), "`max_tokens` is 0, expected 1 to 8192"),
        (builder("base").max_tokens(8193), "`max_tokens` is 8193, expected 1 to 8192"),
        (builder("base").threads(0), "`threads` is 0, expected 1 to 1024"),
        (builder("base").threads(1025), "`threads` is 1025, expected 1 to 1024"),
    ];
    for (builder, message) in cases {
        assert_eq!(builder.build().unwrap_err().to_string(), message);
    }
    assert!(matches!(
        builder("base").batch_tokens(0).build(),
        Err(Error::Setting { setting: "batch_tokens", got: 0, min: 1, .. })
    ));
}

#[test]
fn folder_without_config_stands_for_its_only_gguf_file() {
    let dir = tempfile::tempdir().unwrap();
    let build = || Embedder::builder(dir.path()).build();
    let error = build().unwrap_err();
    assert!(matches!(error, Error::NoConfig { snapshot: None, .. }), "{error}");
    assert!(error.to_string().ends_with(" is not the folder of a model: it has no config.json"));
    // In the hub's cache, the files of a model are in `snapshots/REVISION`.
    let snapshot = dir.path().join("snapshots/0123");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir(dir.path().join("refs")).unwrap();
    fs::write(dir.path().join("refs/main"), "0123").unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    let error = build().unwrap_err();
    assert!(
        error.to_string().ends_with(&format!(", but {} has one", snapshot.display())),
        "{error}"
    );
    let file = model("gguf-q8-0");
    fs::copy(&file, dir.path().join("b.gguf")).unwrap();
    let ours = build().unwrap().embed_documents(&TEXTS).unwrap();
    assert_eq!(ours, Embedder::builder(file).build().unwrap().embed_documents(&TEXTS).unwrap());
    fs::write(dir.path().join("a.GGUF"), "").unwrap();
    let error = build().unwrap_err();
    assert!(error.to_string().ends_with(": use one of a.GGUF, b.gguf"), "{error}");
}

/// Other programs name GGUF files by their hashes, and the hub's cache has symbolic links.
#[test]
fn loads_gguf_file_with_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("sha256-06507c7b42688469"), dir.path().join("link"));
    let original = model("gguf-q8-0");
    fs::write(&file, fs::read(&original).unwrap()).unwrap();
    let expected = Embedder::builder(original).build().unwrap().embed_documents(&TEXTS).unwrap();
    let name = file.to_str().unwrap();
    for source in [Source::from(name), Source::from(file.as_path()), Source::from(dir.path())] {
        let embedder = Embedder::builder(source.clone()).build().unwrap();
        assert_eq!(embedder.embed_documents(&TEXTS).unwrap(), expected);
        assert!(source.info().unwrap().summary.stored.contains_key("Q8_0"));
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let embedder = Embedder::builder(link.as_path()).build().unwrap();
        assert_eq!(embedder.embed_documents(&TEXTS).unwrap(), expected);
        fs::remove_file(&link).unwrap();
    }
    // A file that is shorter than the magic number is not a GGUF file, and neither is a folder with the extension.
    fs::write(&link, "GGU").unwrap();
    let error = Embedder::builder(link.as_path()).build().unwrap_err();
    assert!(matches!(error, Error::Model(ModelError::NotGguf { .. })), "{error}");
    fs::create_dir(dir.path().join("folder.gguf")).unwrap();
    assert!(Embedder::builder(dir.path()).build().is_ok());
}

#[test]
fn rejects_source_that_is_not_a_model_and_names_it() {
    let error = Embedder::builder("models/of/mine").build().unwrap_err();
    assert!(matches!(&error, Error::NoSuchModel { path } if path.ends_with("models/of/mine")));
    for expected in ["models/of/mine", "folder", ".gguf", "id on the hub"] {
        assert!(error.to_string().contains(expected), "{error}");
    }
    let file = model("base").join("config.json");
    let error = Embedder::builder(file.as_path()).build().unwrap_err();
    let is_named =
        matches!(&error, Error::Model(ModelError::NotGguf { path, .. }) if *path == file);
    assert!(is_named, "{error}");
    assert!(error.to_string().contains("expected a file that begins with `GGUF`"), "{error}");
    let dir = changed("base", "config.json", |_| {});
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let error = Embedder::builder(dir.path()).build().unwrap_err();
    assert!(
        matches!(&error, Error::Model(ModelError::Io { path, .. }) if path.ends_with("tokenizer.json")),
        "{error}"
    );
}

#[test]
fn rejects_tokenizer_with_ids_outside_the_models_vocabulary() {
    let dir = changed("causal-lm-tied", "tokenizer.json", |json| {
        for id in 1026..1100 {
            json["model"]["vocab"][format!("token {id}")] = json!(id);
        }
    });
    let error = Embedder::builder(dir.path()).build().unwrap_err();
    assert!(matches!(error, Error::Vocabulary { vocab_size: 1026, .. }), "{error}");
    // An end-of-text token outside the vocabulary is enough for the error.
    let dir = changed("causal-lm-tied", "tokenizer.json", |json| {
        json["added_tokens"][0]["id"] = json!(5000);
        json["post_processor"]["processors"][1]["special_tokens"]["<|endoftext|>"]["ids"] =
            json!([5000]);
    });
    let error = Embedder::builder(dir.path()).build().unwrap_err();
    assert!(matches!(error, Error::Vocabulary { max_token: 5000, .. }), "{error}");
}

#[test]
fn overlong_text_is_rejected_or_truncated() {
    let limited = |overflow| builder("base").max_tokens(6).overflow(overflow).build().unwrap();
    let whole = embedder("base");
    let tokens = whole.tokenize(&TEXTS[1..2]).unwrap().remove(0);
    let n_tokens = tokens.len();
    assert!(n_tokens > 6);

    assert_eq!(limited(Overflow::Error).count_tokens(&["", TEXTS[1]]).unwrap(), [1, n_tokens]);
    let error = limited(Overflow::Error).embed_documents(&["short", TEXTS[1]]).unwrap_err();
    assert_eq!(error.to_string(), format!("text 1 has {n_tokens} tokens, the limit is 6"));
    let error = limited(Overflow::Error).embed_tokens(&[vec![1; 7]]).unwrap_err();
    assert!(matches!(error, Error::TextTooLong { text: 0, n_tokens: 7, max_tokens: 6 }));

    let right = [&tokens[..5], &tokens[n_tokens - 1..]].concat();
    let left = tokens[n_tokens - 6..].to_vec();
    for (overflow, kept) in [(Overflow::TruncateRight, right), (Overflow::TruncateLeft, left)] {
        let limited = limited(overflow);
        let kept = [kept];
        assert_eq!(limited.tokenize(&TEXTS[1..2]).unwrap(), kept);
        let expected = whole.embed_tokens(&kept).unwrap();
        assert_eq!(limited.embed_documents(&TEXTS[1..2]).unwrap(), expected);
        assert_eq!(limited.embed_tokens(&[&tokens]).unwrap(), expected);
    }
}

/// Other engines hang or fail on a text of exactly the maximum length, and on a text with more tokens than the batch
/// budget.
#[test]
fn vectors_do_not_depend_on_batch_tokens() {
    let embedder = embedder("base");
    let tokens = embedder.tokenize(&TEXTS).unwrap();
    let exact = tokens.iter().map(Vec::len).max().unwrap();
    let expected = embedder.embed_documents(&TEXTS).unwrap();
    for batch_tokens in [1, 2, exact - 1, exact, exact + 1, 2 * exact, usize::MAX] {
        let embedder =
            builder("base").batch_tokens(batch_tokens).max_tokens(exact).build().unwrap();
        assert_eq!(embedder.embed_documents(&TEXTS).unwrap(), expected, "{batch_tokens}");
    }
}

#[test]
fn vectors_do_not_depend_on_the_number_of_threads() {
    let expected = embedder("wide").embed_documents(&TEXTS).unwrap();
    for threads in [1, 2, 5] {
        let embedder = builder("wide").threads(threads).build().unwrap();
        assert_eq!(embedder.threads(), threads);
        assert_eq!(embedder.embed_documents(&TEXTS).unwrap(), expected, "{threads} threads");
    }
}

/// Concurrent calls from threads of rayon's pool neither deadlock nor mix up their results.
#[test]
fn threads_share_an_embedder() {
    fn is_send_and_sync<T: Send + Sync>(_: &T) {}
    for embedder in [embedder("base"), builder("base").threads(2).build().unwrap()] {
        is_send_and_sync(&embedder);
        let expected = embedder.embed_documents(&TEXTS).unwrap();
        (0..32usize).into_par_iter().for_each(|i| {
            let row = embedder.embed_documents(&TEXTS[i % 4..=i % 4]).unwrap();
            assert_eq!(row.row(0), expected.row(i % 4));
        });
    }
}

#[test]
fn embed_query_and_embed_document_embed_one_text() {
    let embedder = embedder("base");
    let query = embedder.embed_queries(&TEXTS[..1]).unwrap();
    assert_eq!(embedder.embed_query(TEXTS[0]).unwrap(), query.row(0));
    let document = embedder.embed_documents(&TEXTS[..1]).unwrap();
    assert_eq!(embedder.embed_document(TEXTS[0]).unwrap(), document.row(0));
}

#[test]
fn options_of_a_call_replace_the_settings_of_the_builder() {
    let options = || EmbedOptions::new();
    let cases = [
        (options().dimensions(7), builder("base").dimensions(7)),
        (options().normalize(false), builder("base").normalize(false)),
        (
            options().max_tokens(6).overflow(Overflow::TruncateLeft),
            builder("base").max_tokens(6).overflow(Overflow::TruncateLeft),
        ),
        (
            options().max_tokens(6).overflow(Overflow::TruncateRight),
            builder("base").max_tokens(6).overflow(Overflow::TruncateRight),
        ),
    ];
    let embedder = embedder("base");
    for (options, builder) in cases {
        let expected = builder.build().unwrap().embed_documents(&TEXTS).unwrap();
        assert_eq!(embedder.embed_with(TEXTS, &options).unwrap(), expected, "{options:?}");
        assert_ne!(embedder.embed_documents(&TEXTS).unwrap(), expected, "{options:?}");
    }
    let raw = builder("base").normalize(false).build().unwrap();
    let expected = embedder.embed_documents(&TEXTS).unwrap();
    assert_eq!(raw.embed_with(TEXTS, &options().normalize(true)).unwrap(), expected);
    for options in [options().dimensions(65), options().max_tokens(8193), options().max_tokens(0)] {
        let error = embedder.embed_with(TEXTS, &options).unwrap_err();
        assert!(matches!(error, Error::Dimensions { .. } | Error::Setting { .. }), "{error}");
        assert_eq!(
            embedder.embed_iter(TEXTS, &options).unwrap_err().to_string(),
            error.to_string()
        );
    }
}

#[test]
fn strings_and_tokens_are_embedded_in_one_call() {
    let embedder = embedder("base");
    let tokens = embedder.tokenize(&TEXTS).unwrap();
    let texts = [Text::from(TEXTS[0]), Text::from(&tokens[1]), Text::from(TEXTS[2])];
    let options = EmbedOptions::new().prompt(Prompt::Query);
    let mixed = embedder.embed_with(&texts, &options).unwrap();
    let (queries, documents) =
        (embedder.embed_queries(&TEXTS).unwrap(), embedder.embed_documents(&TEXTS).unwrap());
    assert_eq!(mixed.row(0), queries.row(0));
    assert_eq!(mixed.row(1), documents.row(1));
    assert_eq!(mixed.row(2), queries.row(2));
    let n_tokens = [queries.n_tokens()[0], tokens[1].len(), queries.n_tokens()[2]];
    assert_eq!(mixed.n_tokens(), n_tokens);
    assert_eq!(documents.n_tokens(), embedder.count_tokens(&TEXTS).unwrap());
}

/// An embedder whose embedding of token 75 is NaN, so that a text with this token has no finite vector.
fn embedder_with_nan_in_token_75() -> Embedder {
    let dir = with_nan_in_token(75);
    Embedder::builder(dir.path()).batch_tokens(64).preload(true).build().unwrap()
}

#[test]
fn an_iterator_is_embedded_in_order_with_the_vectors_of_a_single_call() {
    let embedder = embedder("base");
    let texts: Vec<String> =
        (0..5000).map(|i| format!("{} {}", TEXTS[i % 4], "word ".repeat(i % 7))).collect();
    let options = EmbedOptions::new().prompt(Prompt::Query);
    let expected = embedder.embed_queries(&texts).unwrap();
    let embeddings = embedder.embed_iter(texts.iter(), &options).unwrap();
    let mut n = 0;
    for (i, embedding) in embeddings.enumerate() {
        let embedding = embedding.unwrap();
        assert_eq!(embedding.vector, expected.row(i), "text {i}");
        assert_eq!(embedding.n_tokens, expected.n_tokens()[i], "text {i}");
        n += 1;
    }
    assert_eq!(n, texts.len());
}

#[test]
fn an_iterator_is_read_window_by_window() {
    let embedder = embedder("base");
    let n_read = Cell::new(0);
    let short = iter::repeat("a").inspect(|_| n_read.set(n_read.get() + 1));
    let mut embeddings = embedder.embed_iter(short, &EmbedOptions::new()).unwrap();
    assert_eq!(n_read.get(), 0);
    for i in 0..3000 {
        embeddings.next().unwrap().unwrap();
        assert_eq!(n_read.get(), (i / 1024 + 1) * 1024, "after {i} texts");
    }
    // A window is complete when it has at least 1 MiB of text: here, two texts.
    n_read.set(0);
    let long = "a".repeat(600_000);
    let options = EmbedOptions::new().max_tokens(2).overflow(Overflow::TruncateRight);
    let long = iter::repeat(&long).inspect(|_| n_read.set(n_read.get() + 1));
    embedder.embed_iter(long, &options).unwrap().next().unwrap().unwrap();
    assert_eq!(n_read.get(), 2);
    assert_eq!(embedder.embed_iter([] as [&str; 0], &options).unwrap().count(), 0);
}

#[test]
fn an_iterator_continues_after_an_error_about_a_text() {
    let embedder = embedder_with_nan_in_token_75();
    let text = |i: usize| match i {
        10 | 1500 => vec![1, 75, 2],
        700 | 701 => Vec::new(),
        2000 => vec![1, 9999],
        _ => vec![1, 2, 10 + (i % 50) as u32],
    };
    let options = EmbedOptions::new();
    let mut failed = Vec::new();
    let mut expected = BTreeMap::new();
    for (i, embedding) in embedder.embed_iter((0..2500).map(text), &options).unwrap().enumerate() {
        match embedding {
            Ok(embedding) => {
                let expected = expected
                    .entry(text(i))
                    .or_insert_with(|| embedder.embed_tokens(&[text(i)]).unwrap().into_vec());
                assert_eq!(embedding.vector, *expected, "text {i}");
            }
            Err(error) => {
                assert_eq!(error.text_index(), Some(i), "{error}");
                failed.push(i);
            }
        }
    }
    assert_eq!(failed, [10, 700, 701, 1500, 2000]);
}

#[test]
fn empty_text_is_embedded_as_its_end_of_text_token() {
    let embedder = embedder("base");
    let none = embedder.embed_documents(&[] as &[&str]).unwrap();
    assert_eq!((none.len(), none.dimensions()), (0, 64));
    assert!(embedder.embed_tokens(&[] as &[Vec<u32>]).unwrap().is_empty());
    assert_eq!(embedder.tokenize(&[""]).unwrap(), [[1000]]);
    let empty = embedder.embed_documents(&[""]).unwrap();
    assert_eq!(empty, embedder.embed_tokens(&[[1000]]).unwrap());
    assert_unit_length(&empty);
}

#[test]
fn embed_tokens_adds_no_end_of_text_token() {
    let embedder = embedder("base");
    let tokens = embedder.tokenize(&TEXTS).unwrap();
    let expected = embedder.embed_documents(&TEXTS).unwrap();
    assert_eq!(embedder.embed_tokens(&tokens).unwrap(), expected);
    let without_end: Vec<_> = tokens.iter().map(|text| &text[..text.len() - 1]).collect();
    assert_ne!(embedder.embed_tokens(&without_end).unwrap(), expected);
}

#[test]
fn rejects_invalid_tokens_with_the_index_of_the_text() {
    // Each batch has one text. The index in the error is the index in the call, not in the batch.
    let embedder = builder("base").batch_tokens(1).build().unwrap();
    let error = embedder.embed_tokens(&[vec![1], vec![2], vec![3, 151_643]]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "text 2: token id 151643 at position 1 is not below the vocabulary size 1026"
    );
    let error = embedder.embed_tokens(&[vec![1], vec![]]).unwrap_err();
    assert!(matches!(error, Error::Model(ModelError::EmptyText { text: 1 })));
    let error = error.map_text_index(|text| text + 10);
    assert!(matches!(error, Error::Model(ModelError::EmptyText { text: 11 })));
}

#[test]
fn special_tokens_in_texts_are_parsed_unless_disabled() {
    let text = ["ignore this<|im_end|>"];
    let parsed = embedder("base");
    let plain = builder("base").special_tokens(SpecialTokens::PlainText).build().unwrap();
    assert!(parsed.tokenize(&text).unwrap()[0].contains(&1002));
    assert!(!plain.tokenize(&text).unwrap()[0].contains(&1002));
    assert_ne!(parsed.embed_documents(&text).unwrap(), plain.embed_documents(&text).unwrap());
    assert_eq!(parsed.embed_documents(&TEXTS).unwrap(), plain.embed_documents(&TEXTS).unwrap());
}

#[test]
fn bf16_weights_are_exact_with_f32_arithmetic() {
    let exact = builder("wide").precision(Precision::F32).build().unwrap();
    let exact = exact.embed_documents(&TEXTS).unwrap();
    let bf16 = builder("wide").precision(Precision::Bf16).build().unwrap();
    let vectors = bf16.embed_documents(&TEXTS).unwrap();
    if bf16.arithmetic() == Arithmetic::F32 {
        assert_eq!(vectors, exact);
        return;
    }
    // Each matrix multiplication rounds its activations to 8 bits of mantissa.
    assert_eq!(bf16.arithmetic(), Arithmetic::Bf16);
    assert_ne!(vectors, exact);
    let similarity = vectors.similarity(&exact).unwrap();
    for i in 0..TEXTS.len() {
        assert!(similarity.get(i, i) >= 0.9995, "{}", similarity.get(i, i));
    }
}

#[test]
fn default_precision_is_that_of_the_checkpoint() {
    for (name, stored) in [
        ("base", Precision::Bf16),
        ("sharded", Precision::Bf16),
        ("causal-lm-tied", Precision::F32),
        ("causal-lm-untied", Precision::Bf16),
        ("gguf-q8-0", Precision::Int8),
        ("gguf-k-quants", Precision::Int8),
        ("gguf-float", Precision::Bf16),
    ] {
        assert_eq!(embedder(name).precision(), stored, "{name}");
        let info = Source::from(model(name)).info().unwrap();
        assert_eq!(info.summary.stored_precision, stored, "{name}");
        let by_default = embedder(name).embed_documents(&TEXTS).unwrap();
        let chosen = builder(name).precision(stored).build().unwrap();
        assert_eq!(by_default, chosen.embed_documents(&TEXTS).unwrap(), "{name}");
    }
}

/// Only the text with index 2 has the token whose embedding contains NaN.
#[test]
fn non_finite_vector_is_an_error_with_the_index_of_the_text() {
    let dir = with_nan_in_token(75);
    let embedder = Embedder::builder(dir.path()).batch_tokens(2).build().unwrap();
    assert!(embedder.embed_tokens(&[[1, 2], [3, 4]]).is_ok());
    let error = embedder.embed_tokens(&[[1, 2], [3, 4], [5, 75], [6, 8]]).unwrap_err();
    assert!(matches!(error, Error::Model(ModelError::NotFinite { text: 2, .. })), "{error}");
}

/// A call that fails caches no prefixes. Tokens before the NaN may have NaN in their hidden states too, because
/// attention reads keys in blocks.
#[test]
fn failed_call_does_not_affect_later_calls() {
    let dir = with_nan_in_token(75);
    let load = || Embedder::builder(dir.path()).build().unwrap();
    let text = |end: &[u32]| [(300..320).collect(), end.to_vec()].concat();
    let embedder = load();
    for _ in 0..3 {
        let damaged = [text(&[75, 401, 1000]), text(&[75, 402, 1000])];
        assert!(embedder.embed_tokens(&damaged).is_err());
        let good = [text(&[403, 1000])];
        assert_eq!(embedder.embed_tokens(&good).unwrap(), load().embed_tokens(&good).unwrap());
    }
}

/// A copy of a model in which the embedding of one token contains NaN. The value is not among the samples that are
/// checked when the model is loaded.
fn with_nan_in_token(token: usize) -> tempfile::TempDir {
    let dir = fixtures::copy("models/causal-lm-tied");
    fixtures::edit_tensors(&dir.path().join("model.safetensors"), |tensors| {
        let embeddings = tensors.get_mut("model.embed_tokens.weight").unwrap();
        let at = token * embeddings.shape[1] * size_of::<f32>();
        embeddings.data[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    dir
}

const GGUF_FIXTURES: [&str; 3] = ["gguf-k-quants", "gguf-q8-0", "gguf-float"];

/// An embedder from one GGUF file. There is no tokenizer.json in its folder.
fn gguf(name: &str) -> Embedder {
    builder(name).precision(Precision::F32).build().unwrap()
}

#[test]
fn gguf_file_gives_the_tokens_and_vectors_of_transformers() {
    let cases = fixtures::read_json(&fixtures::path("tokenizer_cases.json"));
    let cases = cases.as_array().unwrap();
    let whole: Vec<&Value> = cases.iter().filter(|case| case["max_tokens"].is_null()).collect();
    let texts: Vec<&str> = whole.iter().map(|case| case["text"].as_str().unwrap()).collect();
    assert!(texts.len() > 20);
    for name in GGUF_FIXTURES {
        let embedder = gguf(name);
        for (case, tokens) in whole.iter().zip(embedder.tokenize(&texts).unwrap()) {
            assert_eq!(json!(tokens), case["tokens"], "{name}: {}", case["text"]);
        }
        let (texts, expected) = golden(name);
        let embeddings = embedder.embed_documents(&texts).unwrap();
        assert_unit_length(&embeddings);
        for (row, expected) in embeddings.iter().zip(&expected) {
            let difference = max_difference(row, &unit(expected));
            assert!(difference <= 1e-5, "{name}: {difference:e}");
        }
    }
}

/// In the fixtures, `add_eos_token` is true, false and absent. All of them name `<|im_end|>` as the end-of-text token,
/// which is wrong.
#[test]
fn end_of_text_is_appended_once_whatever_the_gguf_metadata_say() {
    for name in GGUF_FIXTURES {
        for text in ["hello", "", "stop<|im_end|>"] {
            let tokens = gguf(name).tokenize(&[text]).unwrap().remove(0);
            assert_eq!(tokens.last(), Some(&1000), "{name}, {text}");
            assert_eq!(tokens.iter().filter(|&&id| id == 1000).count(), 1, "{name}, {text}");
        }
    }
}

#[test]
fn tokenizer_json_takes_precedence_over_gguf_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("some-name.GGUF");
    fs::write(&path, fs::read(model("gguf-q8-0")).unwrap()).unwrap();
    let text = ["A\u{30a} decomposed"];
    let own = Embedder::builder(path.as_path()).build().unwrap().tokenize(&text).unwrap();
    let beside = dir.path().join("tokenizer.json");
    let mut json = fixtures::read_json(&model("base").join("tokenizer.json"));
    fs::write(&beside, json.to_string()).unwrap();
    assert_eq!(Embedder::builder(path.as_path()).build().unwrap().tokenize(&text).unwrap(), own);
    json["normalizer"] = Value::Null;
    fs::write(&beside, json.to_string()).unwrap();
    assert_ne!(Embedder::builder(path.as_path()).build().unwrap().tokenize(&text).unwrap(), own);
    fs::write(&beside, "{}").unwrap();
    let error = Embedder::builder(path.as_path()).build().unwrap_err();
    assert!(matches!(error, Error::Text(_)) && error.to_string().contains("tokenizer.json"));
}

#[test]
fn rejects_gguf_vocabulary_larger_than_the_embeddings() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut file = fs::read(model("gguf-q8-0")).unwrap();
    // The tensor's entry in the header: its name, the number of dimensions, 64 columns, and the number of rows.
    let name = b"token_embd.weight";
    let rows =
        file.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 12;
    assert_eq!(file[rows..rows + 8], 1040u64.to_le_bytes());
    file[rows..rows + 8].copy_from_slice(&1000u64.to_le_bytes());
    fs::write(&path, file).unwrap();
    let error = Embedder::builder(path.as_path()).build().unwrap_err();
    let named = matches!(&error, Error::Vocabulary { path: p, max_token: 1000, .. } if *p == path);
    assert!(named, "{error}");
}

#[test]
fn reads_published_configurations() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/configs");
    if !folder.is_dir() {
        return;
    }
    for (file, hidden_size, layers) in [("0.6b", 1024, 28), ("4b", 2560, 36), ("8b", 4096, 36)] {
        let path = folder.join(format!("{file}.json"));
        let config = qwen3_embed::Config::from_json(&fs::read(&path).unwrap(), &path).unwrap();
        assert_eq!((config.hidden_size, config.num_hidden_layers), (hidden_size, layers));
    }
}
