//! Requests of clients that were written for other servers: fields with the default values of other schemas, unknown
//! fields, and texts that already contain the model's prompt (the *frame*).

use qwen3_embed::{DEFAULT_INSTRUCTION, Reranker, ScoreOptions};
use qwen3_embed_server::{Models, ServerOptions};
use serde_json::{Value, json};

use crate::common::*;

/// The text that the model card's code puts before the instruction.
const PREFIX: &str = "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the answer can only be \"yes\" or \"no\".<|im_end|>\n<|im_start|>user\n";

/// The text that the model card's code puts after the document.
const SUFFIX: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

const TASK: &str = "Find documents about the weather";

/// The fields of vLLM's schema with their default values.
fn vllm_defaults() -> Value {
    json!({
        "model": null, "user": null, "truncate_prompt_tokens": null, "truncation_side": null,
        "padding": null, "request_id": "0123", "priority": 0, "mm_processor_kwargs": null,
        "cache_salt": null, "use_activation": null, "activation": null, "softmax": null,
        "add_special_tokens": true, "encoding_format": "float", "dimensions": null,
        "embed_dtype": "float32", "endianness": "native", "normalize": null,
        "top_n": 0, "max_tokens_per_doc": 0, "instruction": null, "chat_template_kwargs": null,
    })
}

/// An object with the fields of both objects.
fn with(mut fields: Value, more: Value) -> Value {
    fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    fields
}

/// A request for each route, with required fields only.
fn bare_requests() -> [(&'static str, Value); 8] {
    [
        ("/v1/embeddings", json!({ "input": TEXTS })),
        ("/v1/rerank", json!({ "query": TEXTS[0], "documents": TEXTS })),
        ("/v2/rerank", json!({ "query": TEXTS[0], "documents": TEXTS })),
        ("/rerank", json!({ "query": TEXTS[0], "texts": TEXTS })),
        ("/v1/score", json!({ "text_1": TEXTS[0], "text_2": TEXTS })),
        ("/embed", json!({ "inputs": TEXTS })),
        ("/tokenize", json!({ "inputs": TEXTS })),
        ("/decode", json!({ "ids": [1, 2] })),
    ]
}

/// The body of the response, without its id.
async fn answer(path: &str, request: &Value) -> Value {
    let mut body = post(ready().await, path, request.clone()).await.ok();
    if let Some(id) = body.get_mut("id") {
        id.take();
    }
    body
}

#[tokio::test]
async fn default_values_of_vllms_fields_change_nothing() {
    for (path, request) in bare_requests() {
        let expected = answer(path, &request).await;
        let request = with(vllm_defaults(), request);
        assert_eq!(answer(path, &request).await, expected, "{path}");
    }
}

#[tokio::test]
async fn unused_fields_are_not_validated() {
    for (path, request) in bare_requests() {
        let expected = answer(path, &request).await;
        for value in [json!(null), json!(42), json!("u"), json!({ "id": "u1" }), json!([[-1.5]])] {
            let mut request = request.clone();
            for name in ["user", "extra_body", "metadata", "rank_fields", "max_chunks_per_doc"] {
                request[name] = value.clone();
            }
            assert_eq!(answer(path, &request).await, expected, "{path} {value}");
        }
    }
}

fn framed_query(instruction: &str, query: &str) -> String {
    format!("{PREFIX}<Instruct>: {instruction}\n<Query>: {query}\n")
}

fn framed_document(document: &str) -> String {
    format!("<Document>: {document}{SUFFIX}")
}

/// Asserts that a request with the prompt frame has the scores and the usage of a request without it.
async fn check_unframed(path: &str, framed: Value, bare: Value) {
    let (framed, bare) = (answer(path, &framed).await, answer(path, &bare).await);
    assert_eq!(framed["usage"], bare["usage"], "{path}");
    let results = |body: &Value| match body {
        Value::Array(ranks) => ranks.clone(),
        body => body.get("results").unwrap_or(&body["data"]).as_array().unwrap().clone(),
    };
    let (framed, bare) = (results(&framed), results(&bare));
    assert_eq!(framed.len(), bare.len());
    for (framed, bare) in framed.iter().zip(&bare) {
        assert_eq!(framed["index"], bare["index"]);
        for name in ["relevance_score", "score"] {
            assert_eq!(framed.get(name), bare.get(name), "{path}");
        }
    }
}

#[tokio::test]
async fn removes_the_model_cards_prompt_frame() {
    for instruction in [DEFAULT_INSTRUCTION, TASK, ""] {
        let query = framed_query(instruction, TEXTS[0]);
        let documents: Vec<String> = TEXTS.iter().map(|text| framed_document(text)).collect();
        for path in ["/v1/rerank", "/v2/rerank", "/rerank"] {
            for list in ["documents", "texts"] {
                let framed = json!({ "query": query, list: documents });
                let bare = json!({ "query": TEXTS[0], list: TEXTS, "instruct": instruction });
                check_unframed(path, framed, bare).await;
            }
        }
        let queries: Vec<String> =
            TEXTS.iter().map(|text| framed_query(instruction, text)).collect();
        for (first, second) in [("text_1", "text_2"), ("queries", "documents")] {
            for (framed, bare) in [(json!(query), json!(TEXTS[0])), (json!(queries), json!(TEXTS))]
            {
                let framed = json!({ first: framed, second: documents });
                let bare = json!({ first: bare, second: TEXTS, "instruct": instruction });
                check_unframed("/v1/score", framed, bare).await;
            }
        }
    }
    // The request may also have the same instruction in a field. Documents are returned unchanged.
    let documents = [framed_document("a")];
    let request = json!({
        "query": framed_query(TASK, "q"), "documents": documents, "instruction": TASK,
    });
    let body = answer("/v1/rerank", &request).await;
    assert_eq!(body["results"][0]["document"]["text"], documents[0]);
    let expected = reranker()
        .score_with(&[("q", "a")], &ScoreOptions::new().instruction(TASK))
        .unwrap()
        .to_vec();
    let score: f32 = serde_json::from_value(body["results"][0]["relevance_score"].clone()).unwrap();
    assert_eq!(score.to_bits(), expected[0].to_bits());
    // The frame is removed before documents are truncated.
    let request = json!({
        "query": framed_query(TASK, "q"), "max_tokens_per_doc": 2,
        "documents": [framed_document(TEXTS[1])],
    });
    let bare =
        json!({ "query": "q", "max_tokens_per_doc": 2, "documents": [TEXTS[1]], "instruct": TASK });
    check_unframed("/v1/rerank", request, bare).await;
}

#[tokio::test]
async fn keeps_prompt_frame_around_a_document_alone() {
    let document = framed_document("a");
    let request = json!({ "query": "q", "documents": [document, framed_query(TASK, "q")] });
    let body = answer("/v1/rerank", &request).await;
    let documents = [document, framed_query(TASK, "q")];
    let expected = reranker().rank("q", &documents).unwrap();
    for (result, expected) in body["results"].as_array().unwrap().iter().zip(expected) {
        let score: f32 = serde_json::from_value(result["relevance_score"].clone()).unwrap();
        assert_eq!(score.to_bits(), expected.score.to_bits());
    }
}

#[tokio::test]
async fn rejects_text_that_only_resembles_the_prompt_frame() {
    let not_the_frame = |name: &str| {
        format!(
            "the query begins like the model's prompt, but `{name}` does not match the prompt: this server adds the prompt, \
             so send the query and the documents without it, and the instruction in `instruct`"
        )
    };
    let exact = framed_query(TASK, "q");
    let framed = framed_document("a");
    let other = exact.replace("Judge", "Decide");
    let cases = [
        ("/v1/rerank", "query", json!({ "query": other, "documents": [framed] })),
        ("/v1/rerank", "query", json!({ "query": exact.trim_end(), "documents": [framed] })),
        ("/rerank", "query", json!({ "query": other, "texts": [framed] })),
        ("/v1/rerank", "documents[1]", json!({ "query": exact, "documents": [framed, "b"] })),
        ("/v2/rerank", "documents[0]", json!({ "query": exact, "documents": ["<Document>: a"] })),
        ("/rerank", "texts[0]", json!({ "query": exact, "texts": [framed.trim_end()] })),
        ("/v1/score", "text_1", json!({ "text_1": other, "text_2": framed })),
        ("/v1/score", "text_2", json!({ "text_1": exact, "text_2": "a" })),
        ("/v1/score", "text_1[1]", json!({ "text_1": [exact, other], "text_2": [framed, framed] })),
        ("/v1/score", "documents[1]", json!({ "queries": exact, "documents": [framed, ""] })),
    ];
    for (path, name, request) in cases {
        let request = request.to_string();
        check_refused(ready().await, path, &[(&request, name, &not_the_frame(name))]).await;
    }
    let two = |name: &str, place: &str| {
        format!(
            "`{name}` and `{place}` have different instructions: all queries of a request need the same instruction, in \
             `instruct` or in the prompt around the query"
        )
    };
    let another = framed_query("Find jokes", "q");
    let cases = [
        (
            "/v1/rerank",
            ["query", "instruct"],
            json!({ "query": exact, "documents": [framed], "instruct": "Find jokes" }),
        ),
        (
            "/v1/score",
            ["text_1[1]", "text_1[0]"],
            json!({ "text_1": [exact, another], "text_2": [framed, framed] }),
        ),
        (
            "/v1/score",
            ["text_1[1]", "text_1[0]"],
            json!({ "text_1": [exact, "q"], "text_2": [framed, "a"] }),
        ),
        (
            "/v1/score",
            ["text_1[1]", "text_1[0]"],
            json!({ "text_1": ["q", exact], "text_2": ["a", framed] }),
        ),
    ];
    for (path, [name, place], request) in cases {
        let request = request.to_string();
        check_refused(ready().await, path, &[(&request, name, &two(name, place))]).await;
    }
    // A query without a frame has the instruction of the request.
    let framed = json!({ "text_1": [exact, "q"], "text_2": [framed, "a"], "instruct": TASK });
    let bare = json!({ "text_1": ["q", "q"], "text_2": ["a", "a"], "instruct": TASK });
    check_unframed("/v1/score", framed, bare).await;
}

#[tokio::test]
async fn truncate_prompt_tokens_never_cuts_the_frame() {
    let builder = || Reranker::builder(fixtures::reranker("tied")).max_tokens(200);
    let models =
        Models { embedder: None, reranker: Some(("r".into(), builder().build().unwrap())) };
    let state = started(models, ServerOptions::default()).await;
    let long = "many words ".repeat(300);
    for (asked, n_tokens) in [(-1, 200), (200, 200), (160, 160)] {
        let cut =
            Reranker::builder(fixtures::reranker("tied")).max_tokens(n_tokens).build().unwrap();
        let expected = cut.scores(&[("q", &long)]).unwrap();
        for (path, list, request) in [
            ("/v1/rerank", "results", json!({ "query": "q", "documents": [long] })),
            ("/v1/score", "data", json!({ "text_1": "q", "text_2": long })),
        ] {
            let request = with(request, json!({ "truncate_prompt_tokens": asked }));
            let body = post(&state, path, request).await.ok();
            assert_eq!(body["usage"]["prompt_tokens"], n_tokens, "{path}");
            let result = &body[list][0];
            let score = result.get("relevance_score").unwrap_or(&result["score"]);
            let score: f32 = serde_json::from_value(score.clone()).unwrap();
            assert_eq!(score.to_bits(), expected[0].to_bits());
        }
    }
    let name = "truncate_prompt_tokens";
    for asked in [0_i64, -2, 201, i64::MIN, i64::MAX] {
        let message = format!("{name} is {asked}; expected 1 to 200, or -1 for 200");
        let rerank = json!({ "query": "q", "documents": ["a"], name: asked }).to_string();
        let score = json!({ "text_1": "q", "text_2": "a", name: asked }).to_string();
        check_refused(&state, "/v1/rerank", &[(&rerank, name, &message)]).await;
        check_refused(&state, "/v1/score", &[(&score, name, &message)]).await;
    }
    let n_tokens = reranker().tokenize(&[("", "")], &ScoreOptions::new()).unwrap()[0].len();
    let message =
        format!("the prompt takes {n_tokens} tokens without query and document, the limit is 9");
    let request = json!({ "query": "q", "documents": ["a"], name: 9 }).to_string();
    check_refused(&state, "/v1/rerank", &[(&request, name, &message)]).await;
}
