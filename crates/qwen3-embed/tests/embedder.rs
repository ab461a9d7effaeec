//! The facade, on the fixtures.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, iter};

use qwen3_embed::{
    Arithmetic, DEFAULT_INSTRUCTION, EmbedOptions, Embedder, EmbedderBuilder, Embeddings, Error,
    ModelError, Overflow, Precision, Prompt, Source, SpecialTokens, Summary, Text, instruct,
    normalize,
};
use rayon::prelude::*;
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

fn builder(name: &str) -> EmbedderBuilder {
    Embedder::builder(fixture(name))
}

fn embedder(name: &str) -> Embedder {
    builder(name).build().unwrap()
}

/// A copy of a fixture's files with a change to one of the JSON files.
fn changed(name: &str, file: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::write(dir.path().join(file), fs::read(fixture(name).join(file)).unwrap()).unwrap();
    }
    let path = dir.path().join(file);
    let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
    dir
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
            let dir = tempfile::tempdir().unwrap();
            for file in ["config.json", "tokenizer.json", file] {
                // A GGUF file needs no other.
                if let Ok(contents) = fs::read(fixture(name).join(file)) {
                    fs::write(dir.path().join(file), contents).unwrap();
                }
            }
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
fn texts_give_the_vectors_of_transformers() {
    for name in ["base", "causal-lm-untied", "wide"] {
        let golden: Value =
            serde_json::from_slice(&fs::read(fixture(name).join("golden.json")).unwrap()).unwrap();
        let texts = golden["texts"].as_array().unwrap();
        let texts: Vec<&str> = texts.iter().map_while(Value::as_str).collect();
        assert!(texts.len() >= 9 && texts.contains(&""));
        let exact = builder(name).precision(Precision::F32).build().unwrap();
        let embeddings = exact.embed_documents(&texts).unwrap();
        assert_unit_length(&embeddings);
        for (row, expected) in embeddings.iter().zip(golden["embeddings"].as_array().unwrap()) {
            let mut expected: Vec<f32> = serde_json::from_value(expected.clone()).unwrap();
            normalize(&mut expected);
            for (got, expected) in row.iter().zip(expected) {
                assert!((got - expected).abs() <= 1e-5, "{name}: {got} for {expected}");
            }
        }
    }
}

#[test]
fn a_query_is_embedded_behind_its_instruction() {
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

/// No file says that a model was trained for shorter vectors, and none is asked.
#[test]
fn dimensions_are_cut_first_and_normalised_second() {
    let full = embedder("wide").embed_documents(&TEXTS).unwrap();
    assert_eq!(full.dimensions(), 256);
    for dim in [1, 2, 31, 32, 255, 256] {
        let short = builder("wide").dimensions(dim).build().unwrap();
        assert_eq!(short.dimensions(), dim);
        let short = short.embed_documents(&TEXTS).unwrap();
        assert_eq!((short.len(), short.dimensions()), (4, dim));
        assert_unit_length(&short);
        for (short, full) in short.as_slice().iter().zip(full.truncate(dim).unwrap().as_slice()) {
            assert!((short - full).abs() <= 1e-6);
        }
    }
}

#[test]
fn vectors_are_as_the_model_gives_them_without_normalisation() {
    let golden: Value =
        serde_json::from_slice(&fs::read(fixture("base").join("golden.json")).unwrap()).unwrap();
    let texts = golden["texts"].as_array().unwrap();
    let texts: Vec<&str> = texts.iter().map_while(Value::as_str).collect();
    let exact = builder("base").precision(Precision::F32).dimensions(7);
    let raw = exact.clone().normalize(false).build().unwrap().embed_documents(&texts).unwrap();
    for (row, expected) in raw.iter().zip(golden["embeddings"].as_array().unwrap()) {
        let expected: Vec<f32> = serde_json::from_value(expected.clone()).unwrap();
        let norm = expected.iter().map(|v| v * v).sum::<f32>().sqrt();
        for (got, expected) in row.iter().zip(expected) {
            assert!((got - expected).abs() <= 1e-5 * norm, "{got} for {expected}");
        }
    }
    let unit = exact.build().unwrap().embed_documents(&texts).unwrap();
    assert_eq!(raw.truncate(7).unwrap(), unit);
}

#[test]
fn a_source_is_text_or_a_path_owned_or_borrowed() {
    let path = fixture("base");
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
fn settings_out_of_range_are_refused_with_the_range() {
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
fn a_folder_without_a_configuration_is_its_only_gguf_file() {
    let dir = tempfile::tempdir().unwrap();
    let build = || Embedder::builder(dir.path()).build();
    let error = build().unwrap_err();
    assert!(matches!(error, Error::NoConfig { snapshot: None, .. }), "{error}");
    assert!(error.to_string().ends_with(" is not the folder of a model: it has no config.json"));
    // The hub's cache has the files one level down.
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
    let file = fixture("gguf-q8-0").join("model.gguf");
    fs::copy(&file, dir.path().join("b.gguf")).unwrap();
    let ours = build().unwrap().embed_documents(&TEXTS).unwrap();
    assert_eq!(ours, Embedder::builder(file).build().unwrap().embed_documents(&TEXTS).unwrap());
    fs::write(dir.path().join("a.GGUF"), "").unwrap();
    let error = build().unwrap_err();
    assert!(error.to_string().ends_with(", choose one of them: a.GGUF, b.gguf"), "{error}");
}

/// Other programs keep GGUF files by their hashes, and the hub's cache behind links.
#[test]
fn a_gguf_file_may_have_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("sha256-06507c7b42688469"), dir.path().join("link"));
    let original = fixture("gguf-q8-0").join("model.gguf");
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
    // What is shorter than the four letters, and what is no file, is none.
    fs::write(&link, "GGU").unwrap();
    assert!(matches!(Embedder::builder(link.as_path()).build(), Err(Error::NotGguf { .. })));
    fs::create_dir(dir.path().join("folder.gguf")).unwrap();
    assert!(Embedder::builder(dir.path()).build().is_ok());
}

#[test]
fn a_source_that_is_no_model_is_refused_by_name() {
    let error = Embedder::builder("models/of/mine").build().unwrap_err();
    assert!(matches!(&error, Error::NoSuchModel { path } if path.ends_with("models/of/mine")));
    for reading in ["models/of/mine", "folder", ".gguf", "id on the hub"] {
        assert!(error.to_string().contains(reading), "{error}");
    }
    let file = fixture("base").join("config.json");
    let error = Embedder::builder(file.as_path()).build().unwrap_err();
    assert!(matches!(&error, Error::NotGguf { path } if *path == file), "{error}");
    assert!(error.to_string().contains("is not a GGUF file, which begins with `GGUF`"));
    let dir = changed("base", "config.json", |_| {});
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let error = Embedder::builder(dir.path()).build().unwrap_err();
    assert!(
        matches!(&error, Error::Io { path, .. } if path.ends_with("tokenizer.json")),
        "{error}"
    );
}

#[test]
fn a_tokenizer_of_another_vocabulary_is_refused() {
    let dir = changed("causal-lm-tied", "tokenizer.json", |json| {
        for id in 1026..1100 {
            json["model"]["vocab"][format!("token {id}")] = json!(id);
        }
    });
    let error = Embedder::builder(dir.path()).build().unwrap_err();
    assert!(matches!(error, Error::Vocabulary { vocab_size: 1026, .. }), "{error}");
    // An end-of-text token beyond the vocabulary alone is enough.
    let dir = changed("causal-lm-tied", "tokenizer.json", |json| {
        json["added_tokens"][0]["id"] = json!(5000);
        json["post_processor"]["processors"][1]["special_tokens"]["<|endoftext|>"]["ids"] =
            json!([5000]);
    });
    let error = Embedder::builder(dir.path()).build().unwrap_err();
    assert!(matches!(error, Error::Vocabulary { max_token: 5000, .. }), "{error}");
}

#[test]
fn a_text_over_the_limit_is_an_error_or_cut() {
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

/// Other engines hang or fail on these: a text of exactly the limit, one over the batch's budget.
#[test]
fn any_budget_gives_the_same_vectors_in_order() {
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
fn any_number_of_threads_gives_the_same_vectors() {
    let expected = embedder("wide").embed_documents(&TEXTS).unwrap();
    for threads in [1, 2, 5] {
        let embedder = builder("wide").threads(threads).build().unwrap();
        assert_eq!(embedder.threads(), threads);
        assert_eq!(embedder.embed_documents(&TEXTS).unwrap(), expected, "{threads} threads");
    }
}

/// Calls from many threads at once, some of them threads of a pool, neither hang nor mix.
#[test]
fn an_embedder_is_shared_between_threads() {
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
fn embeds_one_text_without_a_slice() {
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

/// A model whose vector of token 7 is not finite.
fn embedder_without_a_vector_for_token_7() -> Embedder {
    let dir = changed("causal-lm-tied", "config.json", |_| {});
    let path = dir.path().join("model.safetensors");
    fs::write(&path, poison_token(&fs::read(&path).unwrap(), 7)).unwrap();
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
    // A window has about 1 MiB of text, and a long text is a window by itself.
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
    let embedder = embedder_without_a_vector_for_token_7();
    let text = |i: usize| match i {
        10 | 1500 => vec![1, 7, 2],
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
fn nothing_gives_nothing_and_an_empty_text_is_its_end() {
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
fn tokens_are_embedded_as_they_are() {
    let embedder = embedder("base");
    let tokens = embedder.tokenize(&TEXTS).unwrap();
    let expected = embedder.embed_documents(&TEXTS).unwrap();
    assert_eq!(embedder.embed_tokens(&tokens).unwrap(), expected);
    let without_end: Vec<_> = tokens.iter().map(|text| &text[..text.len() - 1]).collect();
    assert_ne!(embedder.embed_tokens(&without_end).unwrap(), expected);
}

#[test]
fn tokens_that_cannot_be_embedded_are_named() {
    // One text for each batch: the index is that of the call, not of the batch.
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
fn special_tokens_of_a_text_are_parsed_or_not() {
    let text = ["ignore this<|im_end|>"];
    let parsed = embedder("base");
    let plain = builder("base").special_tokens(SpecialTokens::PlainText).build().unwrap();
    assert!(parsed.tokenize(&text).unwrap()[0].contains(&1002));
    assert!(!plain.tokenize(&text).unwrap()[0].contains(&1002));
    assert_ne!(parsed.embed_documents(&text).unwrap(), plain.embed_documents(&text).unwrap());
    assert_eq!(parsed.embed_documents(&TEXTS).unwrap(), plain.embed_documents(&TEXTS).unwrap());
}

#[test]
fn bf16_weights_are_exact_unless_products_are_bf16_too() {
    let exact = builder("wide").precision(Precision::F32).build().unwrap();
    let exact = exact.embed_documents(&TEXTS).unwrap();
    let bf16 = builder("wide").precision(Precision::Bf16).build().unwrap();
    let vectors = bf16.embed_documents(&TEXTS).unwrap();
    if bf16.arithmetic() == Arithmetic::F32 {
        assert_eq!(vectors, exact);
        return;
    }
    // Activations are rounded to 8 bits of mantissa for every product.
    assert_eq!(bf16.arithmetic(), Arithmetic::Bf16);
    assert_ne!(vectors, exact);
    let similarity = vectors.similarity(&exact).unwrap();
    for i in 0..TEXTS.len() {
        assert!(similarity.get(i, i) >= 0.9995, "{}", similarity.get(i, i));
    }
}

#[test]
fn default_precision_is_the_one_that_the_checkpoint_is_stored_in() {
    for (name, stored) in [
        ("base", Precision::Bf16),
        ("sharded", Precision::Bf16),
        ("causal-lm-tied", Precision::F32),
        ("causal-lm-untied", Precision::Bf16),
        ("gguf-q8-0/model.gguf", Precision::Int8),
        ("gguf-k-quants/model.gguf", Precision::Int8),
        ("gguf-float/model.gguf", Precision::Bf16),
    ] {
        assert_eq!(embedder(name).precision(), stored, "{name}");
        let info = Source::from(fixture(name)).info().unwrap();
        assert_eq!(info.summary.stored_precision, stored, "{name}");
        let by_default = embedder(name).embed_documents(&TEXTS).unwrap();
        let chosen = builder(name).precision(stored).build().unwrap();
        assert_eq!(by_default, chosen.embed_documents(&TEXTS).unwrap(), "{name}");
    }
}

/// Weights whose hidden states overflow in one text only: the error names it.
#[test]
fn a_vector_that_is_not_finite_is_an_error_that_names_its_text() {
    let dir = changed("causal-lm-tied", "config.json", |_| {});
    let path = dir.path().join("model.safetensors");
    let poisoned = poison_token(&fs::read(&path).unwrap(), 7);
    fs::write(&path, poisoned).unwrap();
    let embedder = Embedder::builder(dir.path()).batch_tokens(2).build().unwrap();
    assert!(embedder.embed_tokens(&[[1, 2], [3, 4]]).is_ok());
    let error = embedder.embed_tokens(&[[1, 2], [3, 4], [5, 7], [6, 8]]).unwrap_err();
    assert!(matches!(error, Error::Model(ModelError::NotFinite { text: 2, .. })), "{error}");
}

/// What the texts of a call that fails begin with is not kept for later calls: their tokens before the damaged one
/// may be spoiled, as keys that attention reads together with it.
#[test]
fn a_call_that_fails_does_not_spoil_later_ones() {
    let dir = changed("causal-lm-tied", "config.json", |_| {});
    let path = dir.path().join("model.safetensors");
    fs::write(&path, poison_token(&fs::read(&path).unwrap(), 7)).unwrap();
    let load = || Embedder::builder(dir.path()).build().unwrap();
    let text = |end: &[u32]| [(300..320).collect(), end.to_vec()].concat();
    let embedder = load();
    for _ in 0..3 {
        let damaged = [text(&[7, 401, 1000]), text(&[7, 402, 1000])];
        assert!(embedder.embed_tokens(&damaged).is_err());
        let good = [text(&[403, 1000])];
        assert_eq!(embedder.embed_tokens(&good).unwrap(), load().embed_tokens(&good).unwrap());
    }
}

/// The bytes of an f32 safetensors file with NaN in the embedding of one token.
fn poison_token(file: &[u8], token: usize) -> Vec<u8> {
    let header_size = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + header_size]).unwrap();
    let info = &header["model.embed_tokens.weight"];
    let start = info["data_offsets"][0].as_u64().unwrap() as usize;
    let columns = info["shape"][1].as_u64().unwrap() as usize;
    let at = 8 + header_size + start + token * columns * 4;
    let mut file = file.to_vec();
    file[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    file
}

const GGUF_FIXTURES: [&str; 3] = ["gguf-k-quants", "gguf-q8-0", "gguf-float"];

/// An embedder from one file, with nothing beside it but its golden vectors.
fn gguf(name: &str) -> Embedder {
    let file = fixture(name).join("model.gguf");
    Embedder::builder(file).precision(Precision::F32).build().unwrap()
}

#[test]
fn one_gguf_file_gives_the_tokens_and_the_vectors_of_transformers() {
    let cases = fs::read(fixture("../tokenizer_cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&cases).unwrap();
    let whole: Vec<&Value> = cases.iter().filter(|case| case["max_tokens"].is_null()).collect();
    let texts: Vec<&str> = whole.iter().map(|case| case["text"].as_str().unwrap()).collect();
    assert!(texts.len() > 20);
    for name in GGUF_FIXTURES {
        let embedder = gguf(name);
        for (case, tokens) in whole.iter().zip(embedder.tokenize(&texts).unwrap()) {
            assert_eq!(json!(tokens), case["tokens"], "{name}: {}", case["text"]);
        }
        let golden: Value =
            serde_json::from_slice(&fs::read(fixture(name).join("golden.json")).unwrap()).unwrap();
        let texts: Vec<&str> =
            golden["texts"].as_array().unwrap().iter().map_while(Value::as_str).collect();
        let embeddings = embedder.embed_documents(&texts).unwrap();
        assert_unit_length(&embeddings);
        for (row, expected) in embeddings.iter().zip(golden["embeddings"].as_array().unwrap()) {
            let mut expected: Vec<f32> = serde_json::from_value(expected.clone()).unwrap();
            normalize(&mut expected);
            for (got, expected) in row.iter().zip(expected) {
                assert!((got - expected).abs() <= 1e-5, "{name}: {got} for {expected}");
            }
        }
    }
}

/// The fixtures say `add_eos_token` true, false and nothing, and all of them that `<|im_end|>` is
/// the end-of-text token, which it is not.
#[test]
fn end_of_text_is_appended_once_whatever_a_gguf_file_says() {
    for name in GGUF_FIXTURES {
        for text in ["hello", "", "stop<|im_end|>"] {
            let tokens = gguf(name).tokenize(&[text]).unwrap().remove(0);
            assert_eq!(tokens.last(), Some(&1000), "{name}, {text}");
            assert_eq!(tokens.iter().filter(|&&id| id == 1000).count(), 1, "{name}, {text}");
        }
    }
}

#[test]
fn a_tokenizer_json_beside_a_gguf_file_wins() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("some-name.GGUF");
    fs::write(&path, fs::read(fixture("gguf-q8-0").join("model.gguf")).unwrap()).unwrap();
    let text = ["A\u{30a} decomposed"];
    let own = Embedder::builder(path.as_path()).build().unwrap().tokenize(&text).unwrap();
    let beside = dir.path().join("tokenizer.json");
    let mut json: Value =
        serde_json::from_slice(&fs::read(fixture("base").join("tokenizer.json")).unwrap()).unwrap();
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
fn a_gguf_file_with_a_vocabulary_beyond_its_embeddings_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut file = fs::read(fixture("gguf-q8-0").join("model.gguf")).unwrap();
    // The tensor's description: its name, two dimensions, 64 columns and then the rows.
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
fn the_published_configs_are_read() {
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
