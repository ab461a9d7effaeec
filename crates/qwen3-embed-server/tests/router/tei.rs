//! The routes of text-embeddings-inference.

use qwen3_embed::{Embedder, Overflow, cosine};
use qwen3_embed_server::{AppState, Models, ServerOptions};
use serde_json::{Value, json};

use crate::common::*;

/// Sends a request and asserts the bits of the vectors in the response.
async fn check_embed(state: &AppState, request: Value, expected: &qwen3_embed::Embeddings) {
    let body = post(state, "/embed", request.clone()).await.ok();
    let rows: Vec<f32> = body.as_array().unwrap().iter().flat_map(vector).collect();
    assert_eq!(body.as_array().unwrap().len(), expected.len());
    assert_eq!(bits(&rows), bits(expected.as_slice()), "{request}");
}

#[tokio::test]
async fn embed_responds_with_bare_vectors() {
    let (state, embedder) = (ready().await, embedder());
    let (one, all) =
        (embedder.embed_documents(&[TEXTS[0]]).unwrap(), embedder.embed_documents(&TEXTS).unwrap());
    let small = Embedder::builder(fixtures::model("wide")).dimensions(64).build().unwrap();
    let small = small.embed_documents(&TEXTS).unwrap();
    let queries = embedder.embed_queries(&TEXTS).unwrap();
    let tokens = embedder.tokenize(&TEXTS).unwrap();
    for (request, expected) in [
        (json!({ "inputs": TEXTS[0] }), &one),
        (json!({ "inputs": [TEXTS[0]], "truncate": null, "prompt_name": null }), &one),
        (json!({ "inputs": TEXTS, "normalize": true, "truncate": false, "x": 1 }), &all),
        (json!({ "inputs": TEXTS, "dimensions": 64 }), &small),
        (json!({ "inputs": TEXTS, "prompt_name": "query" }), &queries),
        (json!({ "inputs": tokens[0] }), &one),
        (json!({ "inputs": tokens }), &all),
    ] {
        check_embed(state, request, expected).await;
    }
    let body = post(state, "/embed", json!({ "inputs": "a", "normalize": false })).await.ok();
    let length = vector(&body[0]).iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((length - 1.0).abs() > 0.01, "{length}");
}

#[tokio::test]
async fn embed_truncates_at_either_end() {
    let builder = || Embedder::builder(fixtures::model("wide")).max_tokens(8);
    let models =
        Models { embedder: Some(("w".into(), builder().build().unwrap())), reranker: None };
    let state = started(models, ServerOptions::default()).await;
    for (direction, overflow) in [
        (Value::Null, Overflow::TruncateRight),
        (json!("right"), Overflow::TruncateRight),
        (json!("Right"), Overflow::TruncateRight),
        (json!("left"), Overflow::TruncateLeft),
        (json!("Left"), Overflow::TruncateLeft),
    ] {
        let expected = builder().overflow(overflow).build().unwrap();
        let expected = expected.embed_documents(&TEXTS).unwrap();
        let request =
            json!({ "inputs": TEXTS, "truncate": true, "truncation_direction": direction });
        check_embed(&state, request, &expected).await;
    }
    let body = json!({ "inputs": ["a", TEXTS[1]] }).to_string();
    let message = format!("inputs[1] has 19 tokens, the limit is 8{TRUNCATE_HINT}");
    check_refused(&state, "/embed", &[(&body, "inputs[1]", &message)]).await;
}

/// Clients that know only the server's address send requests to `/`.
#[tokio::test]
async fn post_to_the_root_embeds_or_reranks() {
    let state = ready().await;
    let request = json!({ "inputs": TEXTS, "normalize": false, "dimensions": 32 });
    let embedded = post(state, "/embed", request.clone()).await.ok();
    assert_eq!(post(state, "/", request).await.ok(), embedded);
    let alone = started(embedder_alone(), ServerOptions::default()).await;
    check_refused(&alone, "/", &[(r#"{"inputs":["a",""]}"#, "inputs[1]", "inputs[1] is empty")])
        .await;

    let alone = started(reranker_alone(), ServerOptions::default()).await;
    let request = json!({ "query": "a", "texts": ["b", "c"], "return_text": true });
    let ranked = post(&alone, "/rerank", request.clone()).await.ok();
    assert_eq!(ranked.as_array().unwrap().len(), 2);
    assert_eq!(post(&alone, "/", request).await.ok(), ranked);

    let loading = AppState::new(ServerOptions::default());
    assert_eq!(post(&loading, "/", json!({ "inputs": "a" })).await.status, 503);
    assert!(get(&loading, "/").await.text().starts_with("<!doctype html>"));
}

#[tokio::test]
async fn embed_rejects_invalid_fields_and_names_them() {
    let cases = [
        ("{}", "inputs", "missing field `inputs` at line 1 column 2"),
        (r#"{"inputs":[]}"#, "inputs", "inputs has 0 items; expected 1 to 2048"),
        (r#"{"inputs":["a",""]}"#, "inputs[1]", "inputs[1] is empty"),
        (
            r#"{"inputs":["a",1]}"#,
            "inputs[1]",
            "inputs[1]: invalid type: integer `1`, expected a string at line 1 column 16",
        ),
        (
            r#"{"inputs":7}"#,
            "inputs",
            "inputs: invalid type: integer `7`, expected a string, a list of strings, a list of token ids, or a list of such lists at line 1 column 11",
        ),
        (
            r#"{"inputs":[[5,1000]],"prompt_name":"query"}"#,
            "prompt_name",
            "`prompt_name` needs texts: token ids are embedded without a prompt",
        ),
        (
            r#"{"inputs":"a","dimensions":300}"#,
            "dimensions",
            "dimensions is 300; expected 1 to 256",
        ),
        (
            r#"{"inputs":"a","truncation_direction":"up"}"#,
            "truncation_direction",
            "truncation_direction: expected `left` or `right`, got `up` at line 1 column 42",
        ),
        (
            r#"{"inputs":"a","prompt_name":"x"}"#,
            "prompt_name",
            r#"the model has no prompt `x`, expected one of ["document", "query"]"#,
        ),
    ];
    check_refused(ready().await, "/embed", &cases).await;
}

#[tokio::test]
async fn similarity_gives_the_cosine_to_each_sentence() {
    let state = ready().await;
    let inputs = json!({ "source_sentence": TEXTS[0], "sentences": TEXTS });
    for (parameters, embeddings) in [
        (Value::Null, embedder().embed_documents(&TEXTS).unwrap()),
        (json!({ "prompt_name": "query" }), embedder().embed_queries(&TEXTS).unwrap()),
    ] {
        let request = json!({ "inputs": inputs, "parameters": parameters });
        let body = post(state, "/similarity", request).await.ok();
        let cosines = embeddings.iter().map(|row| cosine(embeddings.row(0), row).unwrap());
        assert_eq!(bits(&vector(&body)), bits(&cosines.collect::<Vec<_>>()));
    }
}

#[tokio::test]
async fn similarity_rejects_invalid_fields_and_names_them() {
    let long = "a ".repeat(embedder().max_tokens());
    let n_tokens = embedder().count_tokens(&[&long]).unwrap()[0];
    let limit = embedder().max_tokens();
    let message =
        |name: &str| format!("{name} has {n_tokens} tokens, the limit is {limit}{TRUNCATE_HINT}");
    let (source, sentence) = ("inputs.source_sentence", "inputs.sentences[1]");
    let (of_source, of_sentence) = (message(source), message(sentence));
    let long_source =
        json!({ "inputs": { "source_sentence": long, "sentences": ["a"] } }).to_string();
    let long_sentence =
        json!({ "inputs": { "source_sentence": "a", "sentences": ["a", long] } }).to_string();
    let cases = [
        ("{}", "inputs", "missing field `inputs` at line 1 column 2"),
        (
            r#"{"inputs":{}}"#,
            "inputs",
            "inputs: missing field `source_sentence` at line 1 column 12",
        ),
        (
            r#"{"inputs":["a",["b"]]}"#,
            "inputs",
            "inputs: invalid type: sequence, expected an object at line 1 column 11",
        ),
        (
            r#"{"inputs":{"source_sentence":"a"}}"#,
            "inputs",
            "inputs: missing field `sentences` at line 1 column 33",
        ),
        (
            r#"{"inputs":{"source_sentence":"a","sentences":[]}}"#,
            "inputs.sentences",
            "inputs.sentences has 0 items; expected 1 to 2048",
        ),
        (
            r#"{"inputs":{"source_sentence":"a","sentences":"b"}}"#,
            "inputs.sentences",
            r#"inputs.sentences: invalid type: string "b", expected a sequence at line 1 column 48"#,
        ),
        (
            r#"{"inputs":{"source_sentence":"a","sentences":["b",1]}}"#,
            "inputs.sentences[1]",
            "inputs.sentences[1]: invalid type: integer `1`, expected a string at line 1 column 51",
        ),
        (
            r#"{"inputs":{"source_sentence":"a","sentences":["b",""]}}"#,
            "inputs.sentences[1]",
            "inputs.sentences[1] is empty",
        ),
        (
            r#"{"inputs":{"source_sentence":"","sentences":["b"]}}"#,
            "inputs.source_sentence",
            "inputs.source_sentence is empty",
        ),
        (
            r#"{"inputs":{"source_sentence":"a","sentences":["b"]},"parameters":{"truncate":1}}"#,
            "parameters.truncate",
            "parameters.truncate: invalid type: integer `1`, expected a boolean at line 1 column 78",
        ),
        (&long_source, source, &of_source),
        (&long_sentence, sentence, &of_sentence),
    ];
    check_refused(ready().await, "/similarity", &cases).await;
}

#[tokio::test]
async fn tokenize_gives_the_models_tokens_with_offsets() {
    let state = ready().await;
    let texts = ["The weather 天气 😀", "<|im_end|>x", "", "caf\u{e9} au lait"];
    let body = post(state, "/tokenize", json!({ "inputs": texts })).await.ok();
    let ids = embedder().tokenize(&texts).unwrap();
    for ((text, tokens), ids) in texts.iter().zip(body.as_array().unwrap()).zip(ids) {
        let tokens = tokens.as_array().unwrap();
        assert_eq!(tokens.iter().map(|token| token["id"].clone()).collect::<Vec<_>>(), ids);
        let end = json!({
            "id": 1000, "text": "<|endoftext|>", "special": true, "start": null, "stop": null,
        });
        assert_eq!(tokens.last(), Some(&end));
        let mut reached = 0;
        for token in tokens.iter().filter(|token| token["special"] == false) {
            let (start, stop) = (token["start"].as_u64().unwrap(), token["stop"].as_u64().unwrap());
            let place = start as usize..stop as usize;
            let characters: String =
                text.chars().skip(place.start).take(place.end - place.start).collect();
            assert_eq!(token["text"], characters.as_str(), "{text}");
            // The tokens cover the whole text.
            assert!(place.start <= reached || text.starts_with('<'), "{token}");
            assert!(!characters.is_empty(), "{token}");
            reached = place.end;
        }
        assert_eq!(reached, text.chars().count());
    }
    assert_eq!(body[1][0]["id"], 1002);
    assert_eq!(body[1][0]["special"], true);
    assert_eq!(body[1][0]["start"], Value::Null);
}

#[tokio::test]
async fn tokenize_applies_prompt_and_omits_end_of_text() {
    let state = ready().await;
    let ids = |body: &Value| -> Vec<u32> {
        let tokens = body.as_array().unwrap().iter();
        tokens.map(|token| u32::try_from(token["id"].as_u64().unwrap()).unwrap()).collect()
    };
    let text = TEXTS[1];
    let mut expected = embedder().tokenize(&[text]).unwrap().remove(0);
    let body = post(state, "/tokenize", json!({ "inputs": text })).await.ok();
    assert_eq!(ids(&body[0]), expected);
    let request = json!({ "inputs": text, "add_special_tokens": true, "prompt_name": "document" });
    assert_eq!(ids(&post(state, "/tokenize", request).await.ok()[0]), expected);
    expected.pop();
    let request = json!({ "inputs": [text, "<|endoftext|>"], "add_special_tokens": false });
    let body = post(state, "/tokenize", request).await.ok();
    assert_eq!(ids(&body[0]), expected);
    // An end-of-text token in the text itself is kept.
    assert_eq!(ids(&body[1]), [1000]);
    let query = format!("{}{text}", embedder().query_prompt());
    let request = json!({ "inputs": text, "prompt_name": "query" });
    let body = post(state, "/tokenize", request).await.ok();
    assert_eq!(ids(&body[0]), embedder().tokenize(&[query]).unwrap()[0]);
}

#[tokio::test]
async fn tokenize_of_a_reranker_treats_special_tokens_as_text() {
    let state = started(reranker_alone(), ServerOptions::default()).await;
    let body = post(&state, "/tokenize", json!({ "inputs": "<|im_end|>" })).await.ok();
    let tokens = body[0].as_array().unwrap();
    assert!(tokens.iter().all(|token| token["id"] != 1002), "{body}");
    let cases = [(
        r#"{"inputs":"a","prompt_name":"query"}"#,
        "prompt_name",
        "a reranker has no named prompts",
    )];
    check_refused(&state, "/tokenize", &cases).await;
}

/// The positions of the tokens of a long text are found in one pass over the text.
#[tokio::test]
async fn tokenizes_long_text_in_linear_time() {
    let text = "word and 词 ".repeat(100_000);
    let body = post(ready().await, "/tokenize", json!({ "inputs": text })).await.ok();
    let tokens = body[0].as_array().unwrap();
    assert_eq!(tokens.len(), embedder().count_tokens(&[&text]).unwrap()[0]);
    assert_eq!(tokens[tokens.len() - 2]["stop"], text.chars().count());
}

#[tokio::test]
async fn tokenize_rejects_invalid_fields_and_names_them() {
    let spaces = json!({ "inputs": ["a", " ".repeat(600_000)] }).to_string();
    let cases = [
        ("{}", "inputs", "missing field `inputs` at line 1 column 2"),
        (r#"{"inputs":[]}"#, "inputs", "inputs has 0 items; expected 1 to 2048"),
        (
            r#"{"inputs":[1]}"#,
            "inputs[0]",
            "inputs[0]: invalid type: integer `1`, expected a string at line 1 column 12",
        ),
        (
            r#"{"inputs":"a","add_special_tokens":"no"}"#,
            "add_special_tokens",
            r#"add_special_tokens: invalid type: string "no", expected a boolean at line 1 column 39"#,
        ),
        (
            r#"{"inputs":"a","prompt_name":"x"}"#,
            "prompt_name",
            r#"the model has no prompt `x`, expected one of ["document", "query"]"#,
        ),
        (
            &spaces,
            "inputs[1]",
            "inputs[1] has 600000 white-space characters in a row, the limit is 500000",
        ),
    ];
    check_refused(ready().await, "/tokenize", &cases).await;
}

#[tokio::test]
async fn decode_gives_the_text_of_tokens() {
    let state = ready().await;
    let ids = embedder().tokenize(&TEXTS).unwrap();
    let body = post(state, "/decode", json!({ "ids": ids })).await.ok();
    assert_eq!(body, json!(TEXTS));
    let body = post(state, "/decode", json!({ "ids": ids[1], "skip_special_tokens": true })).await;
    assert_eq!(body.ok(), json!([TEXTS[1]]));
    let body = post(state, "/decode", json!({ "ids": ids[1], "skip_special_tokens": false })).await;
    assert_eq!(body.ok(), json!([format!("{}<|endoftext|>", TEXTS[1])]));
    // The ids may end within a character, and a list may be empty.
    let body = post(state, "/decode", json!({ "ids": [ids[0][..1], []] })).await.ok();
    assert_eq!(body[1], "");
}

#[tokio::test]
async fn decode_rejects_invalid_fields_and_names_them() {
    let cases = [
        ("{}", "ids", "missing field `ids` at line 1 column 2"),
        (r#"{"ids":[]}"#, "ids", "ids has 0 items; expected 1 to 2048"),
        (
            r#"{"ids":7}"#,
            "ids",
            "ids: invalid type: integer `7`, expected a list of token ids, or a list of such lists at line 1 column 8",
        ),
        (
            r#"{"ids":"a"}"#,
            "ids",
            r#"ids: invalid type: string "a", expected a list of token ids, or a list of such lists at line 1 column 10"#,
        ),
        (
            r#"{"ids":["a"]}"#,
            "ids",
            "ids: invalid type: strings, expected a list of token ids, or a list of such lists at line 1 column 13",
        ),
        (
            r#"{"ids":[1,-2]}"#,
            "ids[1]",
            "ids[1]: invalid type: integer `-2`, expected a token id, 0 to 4294967295 at line 1 column 12",
        ),
        (
            r#"{"ids":[1,[2]]}"#,
            "ids[1]",
            "ids[1]: invalid type: sequence, expected a token id, 0 to 4294967295 at line 1 column 11",
        ),
        (r#"{"ids":[5,1026]}"#, "ids", "ids: token id 1026 at position 1 is not in the vocabulary"),
        (
            r#"{"ids":[[1],[5,4294967295]]}"#,
            "ids[1]",
            "ids[1]: token id 4294967295 at position 1 is not in the vocabulary",
        ),
    ];
    check_refused(ready().await, "/decode", &cases).await;
}

#[tokio::test]
async fn info_describes_the_served_models() {
    let mut info = get(ready().await, "/info").await.ok();
    // The number of workers depends on the machine.
    assert!(info["tokenization_workers"].take().as_u64().unwrap() >= 1);
    let golden = json!({
        "model_id": "wide",
        "model_sha": null,
        "model_dtype": "bfloat16",
        "model_type": { "embedding": { "pooling": "last_token" } },
        "max_concurrent_requests": 512,
        "max_input_length": 8192,
        "max_batch_tokens": 1024,
        "max_batch_requests": null,
        "max_client_batch_size": 2048,
        "auto_truncate": false,
        "tokenization_workers": null,
        "version": env!("CARGO_PKG_VERSION"),
        "sha": null,
        "docker_label": null,
        "embedder": {
            "id": "wide",
            "dimensions": 256,
            "min_dimensions": 1,
            "max_input_length": 8192,
            "prompts": { "document": "", "query": embedder().query_prompt() },
            "default_instruct": null,
        },
        "reranker": { "id": "tied", "max_input_length": 8192 },
        "notice": null,
    });
    assert_eq!(info, golden);
}

#[tokio::test]
async fn info_returns_the_notice_that_the_playground_shows() {
    let notice = Some("This model is small.".to_owned());
    let options = ServerOptions { notice, ..ServerOptions::default() };
    let state = started(embedder_alone(), options).await;
    assert_eq!(get(&state, "/info").await.ok()["notice"], "This model is small.");
    assert!(get(&state, "/").await.text().contains("<p id=\"notice\" hidden></p>"));
    let script = get(&state, "/playground/script.js").await;
    assert!(script.text().contains("server.info.notice"));
}

#[tokio::test]
async fn info_of_a_reranker_alone_describes_a_classifier() {
    let options = ServerOptions {
        max_concurrent_requests: 3,
        max_client_batch_size: 5,
        truncate: true,
        ..ServerOptions::default()
    };
    let info = get(&started(reranker_alone(), options).await, "/info").await.ok();
    let labels = json!({ "id2label": { "0": "LABEL_0" }, "label2id": { "LABEL_0": 0 } });
    assert_eq!(info["model_id"], "tied");
    assert_eq!(info["model_type"], json!({ "reranker": labels }));
    assert_eq!(info["embedder"], Value::Null);
    assert_eq!(info["reranker"], json!({ "id": "tied", "max_input_length": 8192 }));
    assert_eq!(info["max_concurrent_requests"], 3);
    assert_eq!(info["max_client_batch_size"], 5);
    assert_eq!(info["auto_truncate"], true);
}
