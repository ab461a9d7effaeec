//! Fine-tunes: sentence-transformers repositories against that package, and adapters.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use qwen3_embed::{
    EmbedOptions, Embedder, Embeddings, Error, Head, Overflow, Pooling, Precision, Prompt, Source,
};
use serde_json::{Value, json};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// A copy of a fixture's folder that a test may change.
fn copy(name: &str) -> TempDir {
    fn copy_folder(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let (from, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
            match from.is_dir() {
                true => copy_folder(&from, &to.join(name)),
                false => fs::write(to.join(name), fs::read(&from).unwrap()).unwrap(),
            }
        }
    }
    let to = tempfile::tempdir().unwrap();
    copy_folder(&fixture(name), to.path());
    to
}

fn edit(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn golden(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("golden.json")).unwrap()).unwrap()
}

fn texts(golden: &Value) -> Vec<&str> {
    golden["texts"].as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

/// Asserts that vectors are these, which need not be of unit length, to 1e-5.
fn assert_vectors(ours: &Embeddings, expected: &Value, what: &str) {
    assert!(!ours.is_empty());
    for (i, row) in ours.iter().enumerate() {
        let expected = expected[i].as_array().unwrap();
        let expected: Vec<f64> = expected.iter().map(|v| v.as_f64().unwrap()).collect();
        let norm = expected.iter().map(|v| v * v).sum::<f64>().sqrt();
        assert_eq!(row.len(), expected.len(), "{what}");
        let differences = row.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b / norm).abs());
        let largest = differences.fold(0.0, f64::max);
        assert!(largest <= 1e-5, "{what}, text {i}: {largest:e}");
    }
}

/// The options of a request with the prompt of this name.
fn named(prompt: &str) -> EmbedOptions {
    EmbedOptions::new().prompt(Prompt::Named(prompt.to_owned()))
}

#[test]
fn repositories_give_the_vectors_of_sentence_transformers_behind_every_prompt() {
    for name in ["mean-dense", "weighted-mean", "last-token"] {
        let folder = fixture("sentence-transformers").join(name);
        let golden = golden(&folder);
        let (texts, vectors) = (texts(&golden), &golden["vectors"]);
        let embedder = Embedder::builder(folder).precision(Precision::F32).build().unwrap();
        let queries = embedder.embed_queries(&texts).unwrap();
        assert_vectors(&queries, &vectors["query"], &format!("{name}, queries"));
        let documents = embedder.embed_documents(&texts).unwrap();
        assert_vectors(&documents, &vectors["document"], &format!("{name}, documents"));
        for prompt in embedder.prompts().keys() {
            let ours = embedder.embed_with(&texts, &named(prompt)).unwrap();
            assert_vectors(&ours, &vectors[prompt], &format!("{name}, {prompt}"));
        }
    }
}

#[test]
fn a_dense_layer_sets_the_dimensions() {
    let folder = fixture("sentence-transformers/mean-dense");
    assert_eq!(Embedder::builder(folder.as_path()).build().unwrap().dimensions(), 24);
    assert!(Embedder::builder(folder.as_path()).dimensions(24).build().is_ok());
    let error = Embedder::builder(folder).dimensions(25).build().unwrap_err();
    assert!(matches!(error, Error::Dimensions { got: 25, max: 24, .. }), "{error}");
}

#[test]
fn a_repository_may_cut_the_dimensions_unless_others_are_asked_for() {
    let copy = copy("sentence-transformers/mean-dense");
    let file = copy.path().join("config_sentence_transformers.json");
    let build = || Embedder::builder(copy.path());
    let text = ["two or more tokens"];
    let full = build().build().unwrap().embed_documents(&text).unwrap();
    for (truncate_dim, expected) in
        [(json!(8), 8), (json!(24), 24), (json!(25), 24), (json!(4096), 24), (Value::Null, 24)]
    {
        edit(&file, |config| config["truncate_dim"] = truncate_dim.clone());
        let embedder = build().build().unwrap();
        assert_eq!((embedder.dimensions(), embedder.max_dimensions()), (expected, 24));
        let cut = full.truncate(expected).unwrap();
        let ours = embedder.embed_documents(&text).unwrap();
        assert_eq!(ours.dimensions(), expected, "{truncate_dim}");
        for (ours, cut) in ours.as_slice().iter().zip(cut.as_slice()) {
            assert!((ours - cut).abs() <= 1e-6, "{truncate_dim}: {ours} for {cut}");
        }
        assert_eq!(build().dimensions(16).build().unwrap().dimensions(), 16);
    }
    for truncate_dim in [json!(0), json!(-1), json!(8.5), json!("8"), json!([8])] {
        edit(&file, |config| config["truncate_dim"] = truncate_dim.clone());
        let error = build().build().unwrap_err();
        let is_named = error.to_string().contains("config_sentence_transformers.json");
        assert!(is_named, "{truncate_dim}: {error}");
    }
}

#[test]
fn prompts_are_chosen_as_sentence_transformers_does() {
    let prompts = |config: Value| {
        let copy = copy("sentence-transformers/last-token");
        let file = copy.path().join("config_sentence_transformers.json");
        fs::write(file, config.to_string()).unwrap();
        let embedder = Embedder::builder(copy.path()).build()?;
        Ok((embedder.query_prompt().to_owned(), embedder.document_prompt().to_owned()))
    };
    let chosen = |config| -> (String, String) { prompts(config).map_err(|e: Error| e).unwrap() };
    let pair = |query: &str, document: &str| (query.to_owned(), document.to_owned());
    assert_eq!(chosen(json!({})), pair("", ""));
    assert_eq!(chosen(json!({"prompts": {"query": "q: ", "document": null}})), pair("q: ", ""));
    let several = json!({"prompts": {"corpus": "c", "passage": "p", "other": "o"}});
    assert_eq!(chosen(several), pair("", "p"));
    let default = json!({"prompts": {"a": "A ", "query": "q "}, "default_prompt_name": "a"});
    assert_eq!(chosen(default), pair("q ", "A "));
    let error = prompts(json!({"prompts": {"a": ""}, "default_prompt_name": "b"})).unwrap_err();
    assert_eq!(error.to_string(), "the model has no prompt `b`, expected one of [\"a\"]");
    let error = prompts(json!({"prompts": "none"})).unwrap_err();
    assert!(error.to_string().contains("config_sentence_transformers.json"), "{error}");
    // Without the file they are those of the published models.
    let embedder = Embedder::builder(fixture("models/base")).build().unwrap();
    assert!(embedder.query_prompt().ends_with("\nQuery:") && embedder.document_prompt().is_empty());
    assert_eq!(embedder.prompts().keys().collect::<Vec<_>>(), ["document", "query"]);
    let error = embedder.embed_with(["a"], &named("code")).unwrap_err();
    assert!(matches!(error, Error::NoSuchPrompt { .. }), "{error}");
}

#[test]
fn the_longest_text_is_the_repositorys_unless_another_is_asked_for() {
    let copy = copy("sentence-transformers/last-token");
    let file = copy.path().join("sentence_bert_config.json");
    edit(&file, |config| config["max_seq_length"] = json!(77));
    let build = || Embedder::builder(copy.path());
    assert_eq!(build().build().unwrap().max_tokens(), 77);
    assert_eq!(build().max_tokens(500).build().unwrap().max_tokens(), 500);
    edit(&file, |config| config["do_lower_case"] = json!(true));
    let error = build().build().unwrap_err().to_string();
    assert!(error.contains("field `do_lower_case`: expected false, got true"), "{error}");
}

#[test]
fn models_with_known_code_give_the_vectors_of_its_forward_pass() {
    for (name, dimensions) in [("projected", 48), ("quantized", 32)] {
        let folder = fixture("sentence-transformers").join(name);
        let golden = golden(&folder);
        let (texts, vectors) = (texts(&golden), &golden["vectors"]);
        let embedder = Embedder::builder(folder.as_path()).build().unwrap();
        assert_eq!((embedder.dimensions(), embedder.pooling()), (dimensions, Pooling::Mean));
        let queries = embedder.embed_queries(&texts).unwrap();
        assert_vectors(&queries, &vectors["query"], &format!("{name}, queries"));
        let documents = embedder.embed_documents(&texts).unwrap();
        assert_vectors(&documents, &vectors["document"], &format!("{name}, documents"));
        let info = Source::from(folder).info().unwrap();
        assert_eq!((info.dimensions(), info.head()), ([1, dimensions], Head::None), "{name}");
    }
}

#[test]
fn quantized_vectors_are_whole_numbers_before_they_are_brought_to_unit_length() {
    let folder = fixture("sentence-transformers/quantized");
    let golden = golden(&folder);
    let embedder = Embedder::builder(folder).normalize(false).build().unwrap();
    let rows = embedder.embed_documents(&texts(&golden)).unwrap();
    for (row, expected) in rows.iter().zip(golden["vectors"]["document"].as_array().unwrap()) {
        assert_eq!(json!(row), *expected);
    }
}

#[test]
fn without_prompts_of_its_own_a_repository_has_none() {
    let copy = copy("sentence-transformers/last-token");
    fs::remove_file(copy.path().join("config_sentence_transformers.json")).unwrap();
    let embedder = Embedder::builder(copy.path()).build().unwrap();
    assert_eq!((embedder.query_prompt(), embedder.prompts().len()), ("", 0));
}

/// With `modules.json` the tokenizer's file alone says whether one is appended; without, one always is.
#[test]
fn an_end_of_text_token_is_appended_as_sentence_transformers_does() {
    for (name, has_modules, appended) in [
        ("mean-dense", true, 0),
        ("last-token", true, 0),
        ("mean-dense", false, 1),
        ("last-token", false, 1),
    ] {
        let copy = copy(&format!("sentence-transformers/{name}"));
        if !has_modules {
            fs::remove_file(copy.path().join("modules.json")).unwrap();
        }
        let tokenize = || {
            let embedder = Embedder::builder(copy.path()).build().unwrap();
            embedder.tokenize(&["a"]).unwrap().remove(0)
        };
        let with = tokenize();
        edit(&copy.path().join("tokenizer.json"), |file| file["post_processor"] = Value::Null);
        assert_eq!(tokenize(), with[..1 + appended], "{name}, {has_modules}");
    }
}

#[test]
fn a_text_that_is_cut_keeps_its_end_of_text_token_and_else_its_beginning() {
    for (appends, kept) in [(false, 0..3), (true, 0..2)] {
        let copy = copy("sentence-transformers/last-token");
        if !appends {
            edit(&copy.path().join("tokenizer.json"), |file| file["post_processor"] = Value::Null);
        }
        let builder = Embedder::builder(copy.path()).max_tokens(3);
        let embedder = builder.overflow(Overflow::TruncateRight).build().unwrap();
        let text = "The weather is great today";
        let tokens = embedder.tokenize(&[text]).unwrap().remove(0);
        let end = appends.then(|| *tokens.last().unwrap());
        let expected: Vec<u32> = tokens[kept].iter().copied().chain(end).collect();
        let got = embedder.embed_documents(&[text]).unwrap();
        assert_eq!(got, embedder.embed_tokens(&[expected]).unwrap(), "{appends}");
    }
}

#[test]
fn an_adapter_is_loaded_with_its_base_or_given_to_it() {
    let folder = fixture("adapters/lora");
    let golden = golden(&folder);
    let texts = texts(&golden);
    let alone = Embedder::builder(folder.as_path());
    let given = Embedder::builder(fixture("models/base")).adapter(folder.as_path());
    for builder in [alone, given] {
        let embedder = builder.precision(Precision::F32).build().unwrap();
        let ours = embedder.embed_documents(&texts).unwrap();
        assert_vectors(&ours, &golden["embeddings"], "adapter");
    }
}

#[test]
fn adapters_cannot_be_stacked_and_their_base_must_be_there() {
    let folder = fixture("adapters/lora");
    let error = Embedder::builder(folder.as_path()).adapter(folder.as_path()).build().unwrap_err();
    assert!(matches!(error, Error::TwoAdapters { .. }), "{error}");
    let copy = copy("adapters/lora");
    let file = copy.path().join("adapter_config.json");
    edit(&file, |config| config["base_model_name_or_path"] = json!(folder));
    let error = Embedder::builder(copy.path()).build().unwrap_err();
    assert!(matches!(error, Error::TwoAdapters { .. }), "{error}");
    edit(&file, |config| config["base_model_name_or_path"] = json!("/no/such/model"));
    let error = Embedder::builder(copy.path()).build().unwrap_err();
    let Error::AdapterBase { path, base, source } = &error else { panic!("{error}") };
    assert_eq!((path, base.as_str()), (&file, "/no/such/model"));
    assert!(matches!(**source, Error::NoSuchModel { .. }), "{source}");
    assert!(error.to_string().contains("adapter_config.json: field `base_model_name_or_path`"));
    assert!(error.to_string().contains("`--model BASE --adapter "), "{error}");
    let info = Source::from(copy.path()).info().unwrap_err();
    assert!(matches!(info, Error::AdapterBase { .. }), "{info}");
    edit(&file, |config| config["base_model_name_or_path"] = Value::Null);
    let error = Embedder::builder(copy.path()).build().unwrap_err();
    assert!(error.to_string().contains("adapter_config.json"), "{error}");
}

#[test]
fn an_adapter_beside_a_configuration_without_weights_is_an_adapter() {
    let copy = copy("adapters/lora");
    let base = json!(fixture("models/base"));
    edit(&copy.path().join("adapter_config.json"), |c| c["base_model_name_or_path"] = base);
    let add = |file: &str| {
        let contents = fs::read(fixture("models/base").join(file)).unwrap();
        fs::write(copy.path().join(file), contents).unwrap();
    };
    add("config.json");
    let golden = golden(copy.path());
    let embedder = Embedder::builder(copy.path()).precision(Precision::F32).build().unwrap();
    let ours = embedder.embed_documents(&texts(&golden)).unwrap();
    assert_vectors(&ours, &golden["embeddings"], "config.json alone");
    assert!(Source::from(copy.path()).info().is_ok());
    // With weights it is a model, whose adapter was merged into it and is added only if it is given.
    add("model.safetensors");
    add("tokenizer.json");
    let merged = Embedder::builder(copy.path()).build().unwrap();
    let plain = Embedder::builder(fixture("models/base")).build().unwrap();
    let text = ["two or more tokens"];
    assert_eq!(merged.embed_documents(&text).unwrap(), plain.embed_documents(&text).unwrap());
    let given = Embedder::builder(copy.path()).adapter(copy.path()).precision(Precision::F32);
    let given = given.build().unwrap();
    assert_eq!(given.embed_documents(&text).unwrap(), embedder.embed_documents(&text).unwrap());
}

#[test]
fn an_adapters_folder_may_have_the_repositorys_settings() {
    let copy = copy("adapters/lora");
    let settings = fixture("sentence-transformers/mean-dense");
    let base = json!(fixture("models/base"));
    edit(&copy.path().join("adapter_config.json"), |c| c["base_model_name_or_path"] = base);
    let prompts = settings.join("config_sentence_transformers.json");
    fs::copy(prompts, copy.path().join("config_sentence_transformers.json")).unwrap();
    let embedder = Embedder::builder(copy.path()).build().unwrap();
    assert_eq!(embedder.query_prompt(), "Represent the query: ");
    // And its modules: here a pooling and nothing else.
    fs::create_dir(copy.path().join("1_Pooling")).unwrap();
    fs::copy(settings.join("1_Pooling/config.json"), copy.path().join("1_Pooling/config.json"))
        .unwrap();
    let modules = json!([
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]);
    fs::write(copy.path().join("modules.json"), modules.to_string()).unwrap();
    let pooled = Embedder::builder(copy.path()).build().unwrap();
    let text = ["two or more tokens"];
    assert!(pooled.embed_documents(&text).unwrap() != embedder.embed_documents(&text).unwrap());
}
