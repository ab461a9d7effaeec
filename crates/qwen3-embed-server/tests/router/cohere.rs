//! `POST /v2/embed`: the types of vectors, options and errors.

use qwen3_embed::{EmbedOptions, Embedder, Embeddings, Overflow, Prompt};
use qwen3_embed_server::{AppState, Models, ServerOptions};
use serde_json::{Value, json};

use crate::common::*;

const PATH: &str = "/v2/embed";

/// The vectors of a response as f32.
fn vectors(list: &Value) -> Vec<f32> {
    list.as_array().unwrap().iter().flat_map(vector).collect()
}

/// Asserts that the vectors of a request, as floating-point values, are exactly the expected ones.
async fn check(state: &AppState, request: Value, expected: &Embeddings) {
    let body = post(state, PATH, request.clone()).await.ok();
    assert_eq!(
        bits(&vectors(&body["embeddings"]["float"])),
        bits(expected.as_slice()),
        "{request}"
    );
}

#[tokio::test]
async fn response_has_the_fields_of_cohere() {
    let expected = embedder().embed_documents(&TEXTS).unwrap();
    let n_tokens: usize = embedder().count_tokens(&TEXTS).unwrap().iter().sum();
    for types in [Value::Null, json!([]), json!(["float"]), json!(["float", "float"])] {
        let request = json!({
            "model": "wide", "texts": TEXTS, "input_type": "search_document", "embedding_types": types,
        });
        let mut body = post(ready().await, PATH, request).await.ok();
        assert_eq!(bits(&vectors(&body["embeddings"]["float"])), bits(expected.as_slice()));
        assert!(body["id"].take().as_str().unwrap().starts_with("embed-"));
        body["embeddings"]["float"].take();
        let golden = json!({
            "id": null,
            "embeddings": { "float": null },
            "texts": TEXTS,
            "meta": { "api_version": { "version": "2" }, "billed_units": { "input_tokens": n_tokens } },
            "response_type": "embeddings_by_type",
        });
        assert_eq!(body, golden);
    }
}

#[tokio::test]
async fn every_type_has_the_vectors_of_the_library() {
    let expected = embedder().embed_documents(&TEXTS).unwrap();
    let (integers, bytes) = (expected.to_int8_per_vector(), expected.to_binary());
    let types = ["ubinary", "base64", "int8", "binary", "uint8", "float"];
    let request = json!({ "texts": TEXTS, "embedding_types": types });
    let body = post(ready().await, PATH, request).await.ok();
    let embeddings = &body["embeddings"];
    assert_eq!(embeddings.as_object().unwrap().len(), types.len());
    for kind in ["float", "base64"] {
        assert_eq!(embeddings[kind][0].is_string(), kind == "base64");
        assert_eq!(bits(&vectors(&embeddings[kind])), bits(expected.as_slice()));
    }
    let shifted = |values: &[i16], by: i16| values.iter().map(|v| v + by).collect::<Vec<_>>();
    for index in 0..TEXTS.len() {
        let int8: Vec<i16> = integers.row(index).iter().map(|&v| v.into()).collect();
        let packed: Vec<i16> = bytes.row(index).iter().map(|&v| v.into()).collect();
        assert_eq!(int8.iter().map(|v| v.abs()).max(), Some(127));
        assert_eq!(embeddings["int8"][index], json!(int8));
        assert_eq!(embeddings["uint8"][index], json!(shifted(&int8, 128)));
        assert_eq!(embeddings["ubinary"][index], json!(packed));
        assert_eq!(embeddings["binary"][index], json!(shifted(&packed, -128)));
    }
}

#[tokio::test]
async fn input_type_chooses_the_prompt() {
    let state = ready().await;
    let documents = embedder().embed_documents(&TEXTS).unwrap();
    let queries = embedder().embed_queries(&TEXTS).unwrap();
    assert_ne!(documents, queries);
    let request = |input_type: &str| json!({ "texts": TEXTS, "input_type": input_type });
    check(state, request("search_query"), &queries).await;
    for input_type in ["search_document", "classification", "clustering"] {
        check(state, request(input_type), &documents).await;
    }
    let prompt = Prompt::Instruction("Find songs".to_owned());
    let options = EmbedOptions::new().prompt(prompt);
    let expected = embedder().embed_with(&TEXTS, &options).unwrap();
    let request = json!({ "texts": TEXTS, "input_type": "search_query", "instruct": "Find songs" });
    check(state, request, &expected).await;
}

#[tokio::test]
async fn options_have_the_names_and_defaults_of_cohere() {
    let state = ready().await;
    let options = EmbedOptions::new().dimensions(32);
    let expected = embedder().embed_with(&TEXTS, &options).unwrap();
    check(state, json!({ "texts": TEXTS, "output_dimension": 32 }), &expected).await;
    let expected = embedder().embed_with(&TEXTS, &EmbedOptions::new().normalize(false)).unwrap();
    check(state, json!({ "texts": TEXTS, "normalize": false }), &expected).await;
}

#[tokio::test]
async fn truncate_cuts_the_end_unless_the_request_says_otherwise() {
    let embedder = || Embedder::builder(fixtures::model("wide")).max_tokens(8).build().unwrap();
    let models = Models { embedder: Some(("wide".into(), embedder())), reranker: None };
    let state = started(models, ServerOptions::default()).await;
    let long = ["one two three four five six seven eight nine ten"];
    let cut =
        |overflow| embedder().embed_with(&long, &EmbedOptions::new().overflow(overflow)).unwrap();
    let (end, start) = (cut(Overflow::TruncateRight), cut(Overflow::TruncateLeft));
    assert_ne!(end, start);
    check(&state, json!({ "texts": long }), &end).await;
    for (truncate, expected) in
        [(json!("END"), &end), (json!(true), &end), (Value::Null, &end), (json!("START"), &start)]
    {
        check(&state, json!({ "texts": long, "truncate": truncate }), expected).await;
    }
    for truncate in [json!("NONE"), json!(false)] {
        let refused = post(&state, PATH, json!({ "texts": long, "truncate": truncate })).await;
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("texts[0]")));
    }
}

#[tokio::test]
async fn errors_name_the_field_and_the_value() {
    let cases = [
        (r#"{}"#, "texts", "missing field `texts` at line 1 column 2"),
        (r#"{"texts":[]}"#, "texts", "texts has 0 items; expected 1 to 2048"),
        (r#"{"texts":["a",""]}"#, "texts[1]", "texts[1] is empty"),
        (
            r#"{"texts":["a"],"embedding_types":["float","int4"]}"#,
            "embedding_types[1]",
            "embedding_types[1]: expected `float`, `int8`, `uint8`, `binary`, `ubinary` or `base64`, got `int4` at line 1 column 49",
        ),
        (
            r#"{"texts":["a"],"input_type":"image"}"#,
            "input_type",
            "input_type: expected `search_query`, `search_document`, `classification` or `clustering`, got `image` at line 1 column 36",
        ),
        (
            r#"{"texts":["a"],"truncate":"MIDDLE"}"#,
            "truncate",
            "truncate: expected `NONE`, `START` or `END`, got `MIDDLE` at line 1 column 34",
        ),
        (
            r#"{"texts":["a"],"truncate":3}"#,
            "truncate",
            "truncate: invalid type: integer `3`, expected `NONE`, `START` or `END` at line 1 column 27",
        ),
    ];
    check_refused(ready().await, PATH, &cases).await;
}
