//! Fine-tuned models: repositories of sentence-transformers, whose vectors are compared with the vectors of that
//! package, and LoRA adapters.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use qwen3_embed::{
    EmbedOptions, Embedder, Embeddings, Error, Head, Overflow, Pooling, Precision, Prompt, Source,
};
use qwen3_embed_testing::fixtures::{self, copy, edit_json as edit, path as fixture};
use qwen3_embed_testing::vectors::{max_difference, unit};
use serde_json::{Value, json};

fn golden(folder: &Path) -> Value {
    fixtures::read_json(&folder.join("golden.json"))
}

fn texts(golden: &Value) -> Vec<&str> {
    golden["texts"].as_array().unwrap().iter().filter_map(Value::as_str).collect()
}

/// Asserts that vectors are equal to the normalized expected vectors.
fn assert_vectors(ours: &Embeddings, expected: &Value, what: &str) {
    assert!(!ours.is_empty());
    for (i, row) in ours.iter().enumerate() {
        let expected: Vec<f64> = serde_json::from_value(expected[i].clone()).unwrap();
        let largest = max_difference(row, &unit(&expected));
        assert!(largest <= 1e-5, "{what}, text {i}: {largest:e}");
    }
}

/// The options of a request with the prompt of this name.
fn named(prompt: &str) -> EmbedOptions {
    EmbedOptions::new().prompt(Prompt::Named(prompt.to_owned()))
}

#[test]
fn embeddings_with_every_prompt_match_sentence_transformers() {
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
fn dense_layer_sets_the_dimensions() {
    let folder = fixture("sentence-transformers/mean-dense");
    assert_eq!(Embedder::builder(folder.as_path()).build().unwrap().dimensions(), 24);
    assert!(Embedder::builder(folder.as_path()).dimensions(24).build().is_ok());
    let error = Embedder::builder(folder).dimensions(25).build().unwrap_err();
    assert!(matches!(error, Error::Dimensions { got: 25, max: 24, .. }), "{error}");
}

#[test]
fn truncate_dim_is_the_default_for_dimensions() {
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
        assert!(max_difference(ours.as_slice(), cut.as_slice()) <= 1e-6, "{truncate_dim}");
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
fn chooses_prompts_like_sentence_transformers() {
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
    // A model without the file has the prompts of the published models.
    let embedder = Embedder::builder(fixture("models/base")).build().unwrap();
    assert!(embedder.query_prompt().ends_with("\nQuery:") && embedder.document_prompt().is_empty());
    assert_eq!(embedder.prompts().keys().collect::<Vec<_>>(), ["document", "query"]);
    let error = embedder.embed_with(["a"], &named("code")).unwrap_err();
    assert!(matches!(error, Error::NoSuchPrompt { .. }), "{error}");
}

#[test]
fn max_seq_length_is_the_default_for_max_tokens() {
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
fn models_with_known_custom_code_match_its_forward_pass() {
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
fn quantized_vectors_are_integers_before_normalization() {
    let folder = fixture("sentence-transformers/quantized");
    let golden = golden(&folder);
    let embedder = Embedder::builder(folder).normalize(false).build().unwrap();
    let rows = embedder.embed_documents(&texts(&golden)).unwrap();
    for (row, expected) in rows.iter().zip(golden["vectors"]["document"].as_array().unwrap()) {
        assert_eq!(json!(row), *expected);
    }
}

#[test]
fn repository_without_prompts_has_no_default_prompts() {
    let copy = copy("sentence-transformers/last-token");
    fs::remove_file(copy.path().join("config_sentence_transformers.json")).unwrap();
    let embedder = Embedder::builder(copy.path()).build().unwrap();
    assert_eq!((embedder.query_prompt(), embedder.prompts().len()), ("", 0));
}

/// With `modules.json`, the tokenizer's post-processor decides whether the end-of-text token is appended. Without
/// `modules.json`, the token is always appended.
#[test]
fn appends_end_of_text_like_sentence_transformers() {
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
fn truncated_text_keeps_its_end_of_text_token() {
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
fn adapter_is_the_source_or_is_added_to_its_base_model() {
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
fn rejects_stacked_adapters_and_missing_base() {
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
fn folder_with_adapter_and_config_but_no_weights_is_an_adapter() {
    let copy = copy("adapters/lora");
    let base = json!(fixture("models/base"));
    edit(&copy.path().join("adapter_config.json"), |c| c["base_model_name_or_path"] = base);
    let add = |file: &str| {
        fixtures::copy_file(&fixture("models/base").join(file), &copy.path().join(file));
    };
    add("config.json");
    let golden = golden(copy.path());
    let embedder = Embedder::builder(copy.path()).precision(Precision::F32).build().unwrap();
    let ours = embedder.embed_documents(&texts(&golden)).unwrap();
    assert_vectors(&ours, &golden["embeddings"], "config.json alone");
    assert!(Source::from(copy.path()).info().is_ok());
    // With weights, the folder is a model that the adapter has been merged into. The adapter is added only if the
    // caller sets it.
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
fn reads_settings_from_the_adapters_folder() {
    let copy = copy("adapters/lora");
    let settings = fixture("sentence-transformers/mean-dense");
    let base = json!(fixture("models/base"));
    edit(&copy.path().join("adapter_config.json"), |c| c["base_model_name_or_path"] = base);
    let add = |file: &str| fixtures::copy_file(&settings.join(file), &copy.path().join(file));
    add("config_sentence_transformers.json");
    let embedder = Embedder::builder(copy.path()).build().unwrap();
    assert_eq!(embedder.query_prompt(), "Represent the query: ");
    // Modules with a pooling only.
    fs::create_dir(copy.path().join("1_Pooling")).unwrap();
    add("1_Pooling/config.json");
    let modules = json!([
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]);
    fs::write(copy.path().join("modules.json"), modules.to_string()).unwrap();
    let pooled = Embedder::builder(copy.path()).build().unwrap();
    let text = ["two or more tokens"];
    assert!(pooled.embed_documents(&text).unwrap() != embedder.embed_documents(&text).unwrap());
}
