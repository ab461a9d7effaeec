//! `POST /v1/embeddings`: forms of input, options and errors.

use std::fs;
use std::path::Path;

use qwen3_embed::{
    EmbedOptions, Embedder, Embeddings, Overflow, Prompt, ServiceOptions, instruct, normalize,
};
use qwen3_embed_server::{AppState, Models, ServerOptions};
use serde_json::{Value, json};

use crate::common::*;

const PATH: &str = "/v1/embeddings";

/// Sends a request and asserts its whole response, including the bits of the vectors.
async fn check(state: &AppState, request: Value, expected: &Embeddings, n_tokens: usize) {
    let is_base64 = request["encoding_format"] == "base64";
    let reply = post(state, PATH, request.clone()).await;
    let mut body = reply.ok();
    let mut rows = Vec::new();
    for item in body["data"].as_array_mut().unwrap() {
        let embedding = item["embedding"].take();
        assert_eq!(embedding.is_string(), is_base64, "{request}");
        rows.extend(vector(&embedding));
    }
    assert_eq!(bits(&rows), bits(expected.as_slice()), "{request}");
    let item = |index| json!({ "object": "embedding", "index": index, "embedding": null });
    let data: Vec<Value> = (0..expected.len()).map(item).collect();
    let usage = json!({ "prompt_tokens": n_tokens, "total_tokens": n_tokens });
    let golden = json!({ "object": "list", "data": data, "model": "wide", "usage": usage });
    assert_eq!(body, golden, "{request}");
}

fn count(texts: &[&str]) -> usize {
    embedder().count_tokens(texts).unwrap().iter().sum()
}

fn embed_with_instruction(embedder: &Embedder, instruction: &str, texts: &[&str]) -> Embeddings {
    let prompt = Prompt::Instruction(instruction.to_owned());
    embedder.embed_with(texts, &EmbedOptions::new().prompt(prompt)).unwrap()
}

fn documents(texts: &[&str]) -> Embeddings {
    embedder().embed_documents(texts).unwrap()
}

#[tokio::test]
async fn all_forms_of_input_give_the_embedders_vectors() {
    let state = ready().await;
    let (text, all) = (TEXTS[1], documents(&TEXTS));
    let (one, tokens) = (documents(&[text]), embedder().tokenize(&TEXTS).unwrap());
    let (n_one, n_all) = (count(&[text]), count(&TEXTS));
    assert_eq!(tokens.iter().map(Vec::len).sum::<usize>(), n_all);
    let text_tokens = &tokens[1];
    for encoding_format in [Value::Null, json!("float"), json!("base64")] {
        let request = |input: Value| json!({ "model": "wide", "input": input, "encoding_format": encoding_format });
        check(state, request(json!(text)), &one, n_one).await;
        check(state, request(json!([text])), &one, n_one).await;
        check(state, request(json!(TEXTS)), &all, n_all).await;
        check(state, request(json!(text_tokens)), &one, n_one).await;
        check(state, request(json!([text_tokens])), &one, n_one).await;
        check(state, request(json!(tokens)), &all, n_all).await;
    }
}

#[tokio::test]
async fn token_ids_are_embedded_unchanged() {
    let ids = vec![vec![5, 1000, 7, 1000], vec![1000]];
    let expected = embedder().embed_tokens(&ids).unwrap();
    check(ready().await, json!({ "input": ids }), &expected, 5).await;
}

#[tokio::test]
async fn rejects_token_ids_without_end_of_text() {
    let message = |name: &str| {
        format!(
            "{name} does not end with this model's end-of-text token 1000, so its token ids may come from \
             another tokenizer; in LangChain, set check_embedding_ctx_length=False"
        )
    };
    for (path, name) in [(PATH, "input"), ("/embed", "inputs")] {
        for (ids, name) in [
            (json!([5, 6]), name.to_owned()),
            (json!([[5, 6]]), format!("{name}[0]")),
            (json!([[5, 1000], [5, 1000, 6]]), format!("{name}[1]")),
        ] {
            let body = json!({ "input": ids, "inputs": ids }).to_string();
            check_refused(ready().await, path, &[(&body, &name, &message(&name))]).await;
        }
    }
}

#[tokio::test]
async fn accepts_token_ids_without_end_of_text_if_the_model_appends_none() {
    let name = format!("qwen3-embed-server-mean-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    without_end_of_text(&folder);
    let builder = || Embedder::builder(&*folder);
    let models =
        Models { embedder: Some(("wide".into(), builder().build().unwrap())), reranker: None };
    let state = started(models, ServerOptions::default()).await;
    let expected = builder().build().unwrap().embed_tokens(&[vec![5, 6]]).unwrap();
    check(&state, json!({ "input": [5, 6] }), &expected, 2).await;
    fs::remove_dir_all(folder).unwrap();
}

/// A model like `wide` with mean pooling, whose tokenizer appends no end-of-text token.
fn without_end_of_text(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for file in fs::read_dir(fixtures::model("wide")).unwrap().map(|entry| entry.unwrap().path()) {
        if file.is_file() {
            fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
        }
    }
    let path = folder.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["post_processor"] = Value::Null;
    fs::write(path, tokenizer.to_string()).unwrap();
    let modules = json!([
        { "path": "", "type": "sentence_transformers.models.Transformer" },
        { "path": "pooling", "type": "sentence_transformers.models.Pooling" },
    ]);
    fs::write(folder.join("modules.json"), modules.to_string()).unwrap();
    fs::create_dir_all(folder.join("pooling")).unwrap();
    let pooling = json!({ "pooling_mode_mean_tokens": true });
    fs::write(folder.join("pooling/config.json"), pooling.to_string()).unwrap();
}

#[tokio::test]
async fn truncate_prompt_tokens_truncates_texts() {
    let builder = || Embedder::builder(fixtures::model("wide")).max_tokens(64);
    let models =
        Models { embedder: Some(("wide".into(), builder().build().unwrap())), reranker: None };
    let state = started(models, ServerOptions::default()).await;
    let long = "one two three four five six seven eight ".repeat(20);
    let ids = embedder().tokenize(&[&long]).unwrap().remove(0);
    let name = "truncate_prompt_tokens";
    for (asked, n_tokens) in [(-1, 64), (64, 64), (4, 4), (1, 1)] {
        for (side, overflow) in
            [(Value::Null, Overflow::TruncateRight), (json!("left"), Overflow::TruncateLeft)]
        {
            let cut =
                Embedder::builder(fixtures::model("wide")).max_tokens(n_tokens).overflow(overflow);
            let cut = cut.build().unwrap();
            let expected = cut.embed_documents(&[&long]).unwrap();
            for input in [json!(long), json!([long]), json!(ids)] {
                for truncate in [json!(null), json!(true)] {
                    let request = json!({
                        "input": input, name: asked, "truncation_side": side, "truncate": truncate,
                    });
                    check(&state, request, &expected, n_tokens).await;
                }
            }
            // The tokens of the instruction count too.
            let expected = embed_with_instruction(&cut, "Find", &[&long]);
            let request = json!({
                "input": long, name: asked, "truncation_side": side, "instruct": "Find",
            });
            check(&state, request, &expected, n_tokens).await;
        }
    }
    // Shorter texts are not changed.
    check(&state, json!({ "input": "one", name: 64 }), &documents(&["one"]), count(&["one"])).await;
    let mut cases = Vec::new();
    for asked in [0_i64, -2, 65, i64::MIN, i64::MAX] {
        let message = format!("{name} is {asked}; expected 1 to 64, or -1 for 64");
        cases.push((json!({ "input": "a", name: asked }), message));
    }
    let message =
        "`truncate_prompt_tokens` cuts texts, but `truncate` is false: send only one of them";
    cases.push((json!({ "input": "a", name: 4, "truncate": false }), message.to_owned()));
    for (request, message) in cases {
        check_refused(&state, PATH, &[(&request.to_string(), name, &message)]).await;
    }
}

#[tokio::test]
async fn null_unknown_and_unused_fields_change_nothing() {
    let (state, input) = (ready().await, TEXTS[0]);
    let (expected, n_tokens) = (documents(&[input]), count(&[input]));
    let nulls = json!({
        "model": null, "input": input, "dimensions": null, "encoding_format": null, "user": null,
        "instruct": null, "prompt_name": null, "truncate": null, "truncation_side": null,
        "normalize": null,
    });
    for request in [
        json!({ "input": input }),
        json!({ "model": "", "input": input }),
        json!({ "model": "wide", "input": input, "user": "user-1234" }),
        json!({ "input": input, "user": 42 }),
        json!({ "input": input, "user": { "id": "u1" }, "extra_body": { "drop_params": true } }),
        json!({ "input": input, "truncate_prompt_tokens": null }),
        json!({ "input": input, "what": { "is": ["this", null, 1e300] }, "inputs": 3 }),
        nulls,
    ] {
        check(state, request, &expected, n_tokens).await;
    }
}

#[tokio::test]
async fn gives_the_requested_dimensions() {
    let (state, input) = (ready().await, TEXTS[0]);
    let n_tokens = count(&[input]);
    for dimensions in [1, 32, 33, 255, 256] {
        let embedder =
            Embedder::builder(fixtures::model("wide")).dimensions(dimensions).build().unwrap();
        let expected = embedder.embed_documents(&[input]).unwrap();
        assert_eq!(expected.dimensions(), dimensions);
        for encoding_format in ["float", "base64"] {
            let request = json!({
                "input": input, "dimensions": dimensions, "encoding_format": encoding_format,
            });
            check(state, request, &expected, n_tokens).await;
        }
    }
}

#[tokio::test]
async fn applies_instruction_or_prompt_to_texts() {
    let (state, input) = (ready().await, ["capital of China", "weather"]);
    let task = "Given a question, find its answer";
    let behind = |prompt: &str| {
        count(&input.map(|text| format!("{prompt}{text}")).each_ref().map(String::as_str))
    };
    let queries = embedder().embed_queries(&input).unwrap();
    let instructed = embed_with_instruction(embedder(), task, &input);
    let query = json!({ "input": input, "prompt_name": "query" });
    check(state, query, &queries, behind(embedder().query_prompt())).await;
    let document = json!({ "input": input, "prompt_name": "document" });
    check(state, document, &documents(&input), count(&input)).await;
    let instruct_ = json!({ "input": input, "instruct": task });
    check(state, instruct_, &instructed, behind(&instruct(task, ""))).await;
    assert_ne!(queries, instructed);
}

#[tokio::test]
async fn applies_the_servers_default_instruction() {
    let task = "Find similar sentences";
    let options =
        ServerOptions { default_instruct: Some(task.to_owned()), ..ServerOptions::default() };
    let state = started(embedder_alone(), options).await;
    let input = TEXTS[0];
    let tokens = embedder().tokenize(&[input]).unwrap();
    let instructed = embed_with_instruction(embedder(), task, &[input]);
    let n_tokens = count(&[&instruct(task, input)]);
    check(&state, json!({ "input": input }), &instructed, n_tokens).await;
    let plain = documents(&[input]);
    let document = json!({ "input": input, "prompt_name": "document" });
    check(&state, document, &plain, count(&[input])).await;
    // Token ids get no instruction or prompt.
    check(&state, json!({ "input": tokens }), &plain, count(&[input])).await;
    let reply = post(&state, "/embed", json!({ "inputs": input })).await;
    assert_eq!(bits(&vector(&reply.ok()[0])), bits(instructed.as_slice()));
}

#[tokio::test]
async fn without_normalization_vectors_keep_their_length() {
    let (state, expected) = (ready().await, documents(&TEXTS));
    let reply = post(state, PATH, json!({ "input": TEXTS, "normalize": false })).await;
    for (index, item) in reply.ok()["data"].as_array().unwrap().iter().enumerate() {
        let mut row = vector(&item["embedding"]);
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!((length - 1.0).abs() > 0.01, "{length}");
        normalize(&mut row);
        assert_eq!(bits(&row), bits(expected.row(index)));
    }
    let request = json!({ "input": TEXTS, "normalize": true });
    check(state, request, &expected, count(&TEXTS)).await;
}

#[tokio::test]
async fn keeps_the_order_of_many_texts() {
    let texts: Vec<String> =
        (0..300).map(|i| "word ".repeat(i * 7 % 13) + &i.to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let expected = documents(&texts);
    for encoding_format in ["float", "base64"] {
        let request = json!({ "input": texts, "encoding_format": encoding_format });
        check(ready().await, request, &expected, count(&texts)).await;
    }
}

/// A server with a limit of 8 tokens per text.
async fn short(options: ServerOptions) -> AppState {
    let embedder = Embedder::builder(fixtures::model("wide")).max_tokens(8).build().unwrap();
    let models = Models { embedder: Some(("wide".into(), embedder)), reranker: None };
    started(models, options).await
}

fn cut(overflow: Overflow, text: &str) -> Embeddings {
    let embedder = Embedder::builder(fixtures::model("wide"))
        .max_tokens(8)
        .overflow(overflow)
        .build()
        .unwrap();
    embedder.embed_documents(&[text]).unwrap()
}

#[tokio::test]
async fn truncates_overlong_text_only_on_request() {
    let input = TEXTS[1];
    let (right, left) = (cut(Overflow::TruncateRight, input), cut(Overflow::TruncateLeft, input));
    assert_ne!(right, left);
    let too_long =
        invalid("input[1]", &format!("input[1] has 19 tokens, the limit is 8{TRUNCATE_HINT}"));
    let cases = [
        (json!({ "input": input, "truncate": true }), &right),
        (json!({ "input": input, "truncate": true, "truncation_side": "right" }), &right),
        (json!({ "input": input, "truncate": true, "truncation_side": "left" }), &left),
    ];
    let state = short(ServerOptions::default()).await;
    for (request, expected) in cases {
        check(&state, request, expected, 8).await;
    }
    for truncate in [Value::Null, json!(false)] {
        for side in [Value::Null, json!("left")] {
            let request =
                json!({ "input": ["a", input], "truncate": truncate, "truncation_side": side });
            let reply = post(&state, PATH, request).await;
            assert_eq!((reply.status, reply.json()), (400, too_long.clone()));
        }
    }
    // Token ids are truncated too, and keep their last id.
    let tokens = embedder().tokenize(&[input]).unwrap();
    check(&state, json!({ "input": tokens, "truncate": true }), &right, 8).await;
    let reply = post(&state, PATH, json!({ "input": tokens[0] })).await;
    let message = format!("input has 19 tokens, the limit is 8{TRUNCATE_HINT}");
    assert_eq!((reply.status, reply.json()), (400, invalid("input", &message)));

    let state = short(ServerOptions { truncate: true, ..ServerOptions::default() }).await;
    check(&state, json!({ "input": input }), &right, 8).await;
    check(&state, json!({ "input": input, "truncation_side": "left" }), &left, 8).await;
    let reply = post(&state, PATH, json!({ "input": ["a", input], "truncate": false })).await;
    assert_eq!((reply.status, reply.json()), (400, too_long));
}

#[tokio::test]
async fn rejects_invalid_options() {
    let cases = [
        (r#"{"input":"a","dimensions":257}"#, "dimensions", "dimensions is 257; expected 1 to 256"),
        (r#"{"input":"a","dimensions":0}"#, "dimensions", "dimensions is 0; expected 1 to 256"),
        (
            r#"{"input":"a","dimensions":18446744073709551615}"#,
            "dimensions",
            "dimensions is 18446744073709551615; expected 1 to 256",
        ),
        (
            r#"{"input":"a","prompt_name":"question"}"#,
            "prompt_name",
            r#"the model has no prompt `question`, expected one of ["document", "query"]"#,
        ),
        (
            r#"{"input":"a","instruct":"b","prompt_name":"query"}"#,
            "instruct",
            "`instruct` and `prompt_name` both set the prompt: send only one of them",
        ),
        (
            r#"{"input":[5,6],"instruct":"b"}"#,
            "instruct",
            "`instruct` needs texts: token ids are embedded without a prompt",
        ),
        (
            r#"{"input":[[5,6]],"prompt_name":"query"}"#,
            "prompt_name",
            "`prompt_name` needs texts: token ids are embedded without a prompt",
        ),
    ];
    check_refused(ready().await, PATH, &cases).await;
}

#[tokio::test]
async fn rejects_more_texts_than_the_limit() {
    let options = ServerOptions { max_client_batch_size: 3, ..ServerOptions::default() };
    let state = started(embedder_alone(), options).await;
    let three = ["a", "b", "c"];
    check(&state, json!({ "input": three }), &documents(&three), count(&three)).await;
    let message = "input has 4 items; expected 1 to 3";
    for input in [json!(["a", "b", "c", "d"]), json!([[1], [2], [3], [4]])] {
        let reply = post(&state, PATH, json!({ "input": input })).await;
        assert_eq!((reply.status, reply.json()), (400, invalid("input", message)));
    }
    // A flat list of token ids is one text.
    let ids = vec![vec![1, 2, 3, 4, 1000]];
    let expected = embedder().embed_tokens(&ids).unwrap();
    check(&state, json!({ "input": ids[0] }), &expected, 5).await;
}

#[tokio::test]
async fn accepts_request_with_more_texts_than_the_queue_limit() {
    let state = AppState::new(ServerOptions::default());
    let options = ServiceOptions::new().max_waiting_texts(1).batch_tokens(8);
    state.start(embedder_alone(), options).await.unwrap();
    let request = json!({ "input": TEXTS });
    check(&state, request, &documents(&TEXTS), count(&TEXTS)).await;
    // The program that runs the server may use the models too.
    let service = state.embedder().unwrap();
    let embedded = service.embed([TEXTS[0]], EmbedOptions::new()).await.unwrap();
    assert_eq!(bits(embedded.embeddings.as_slice()), bits(documents(&TEXTS[..1]).as_slice()));
}
