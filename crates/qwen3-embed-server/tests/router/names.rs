//! Model names in requests: served names, unknown names, and names of the other kind of model.

use qwen3_embed_server::{AppState, ModelNames, Models, ServerOptions};
use serde_json::{Value, json};

use crate::common::*;

/// Both models, each with two names.
fn named() -> Models {
    let names = |served: &str, other: &str| {
        ModelNames::new(served).with_others([other.to_owned(), served.to_owned()])
    };
    let mut models = both();
    models.embedder.as_mut().unwrap().0 = names("Qwen/Embedding", "Embedding");
    models.reranker.as_mut().unwrap().0 = names("Qwen/Reranker", "Reranker");
    models
}

fn strict() -> ServerOptions {
    ServerOptions { strict_model_names: true, ..ServerOptions::default() }
}

/// A request for each route that has a model name, and the name in its response.
fn requests(model: &Value) -> [(&'static str, Value, &'static str); 4] {
    let (embedder, reranker) = ("Qwen/Embedding", "Qwen/Reranker");
    [
        ("/v1/embeddings", json!({ "model": model, "input": "a" }), embedder),
        ("/embeddings", json!({ "model": model, "input": "a" }), embedder),
        ("/v1/rerank", json!({ "model": model, "query": "a", "documents": ["b"] }), reranker),
        ("/v1/score", json!({ "model": model, "text_1": "a", "text_2": "b" }), reranker),
    ]
}

/// Sends requests with the given names, and without a name, to the routes of the model `expected`. Asserts that the
/// responses contain the name of this model.
async fn check_answered(state: &AppState, names: &[&str], expected: &str) {
    for name in names.iter().map(|name| json!(name)).chain([Value::Null]) {
        for (path, request, served) in requests(&name) {
            if served == expected {
                assert_eq!(post(state, path, request).await.ok()["model"], served, "{name}");
            }
        }
    }
}

fn check_unknown(reply: &Reply, name: &str) {
    let message = format!(
        "the model `{name}` does not exist; this server has [\"Qwen/Embedding\", \"Embedding\", \
         \"Qwen/Reranker\", \"Reranker\"]"
    );
    let expected = error("invalid_request_error", "model", "model_not_found", &message);
    assert_eq!((reply.status, reply.json()), (404, expected));
}

/// Names that this server does not have, but that clients may send.
const OTHERS: [&str; 5] = [
    "Qwen3-Embedding-4B",
    "text-embedding-3-small",
    "openai/Qwen/Embedding",
    "qwen/embedding",
    "天 \"",
];

#[tokio::test]
async fn any_name_selects_the_model_of_the_routes_kind() {
    let state = started(named(), ServerOptions::default()).await;
    let own = ["Qwen/Embedding", "Embedding", ""];
    check_answered(&state, &[&own[..], &OTHERS].concat(), "Qwen/Embedding").await;
    let own = ["Qwen/Reranker", "Reranker", ""];
    check_answered(&state, &[&own[..], &OTHERS].concat(), "Qwen/Reranker").await;
}

#[tokio::test]
async fn strict_mode_accepts_served_names_only() {
    let state = started(named(), strict()).await;
    check_answered(&state, &["Qwen/Embedding", "Embedding", ""], "Qwen/Embedding").await;
    check_answered(&state, &["Qwen/Reranker", "Reranker", ""], "Qwen/Reranker").await;
    for name in OTHERS {
        for (path, request, _) in requests(&json!(name)) {
            check_unknown(&post(&state, path, request).await, name);
        }
    }
}

#[tokio::test]
async fn rejects_name_of_the_other_kind_of_model() {
    for options in [ServerOptions::default(), strict()] {
        let state = started(named(), options).await;
        for (embedder, reranker) in [("Qwen/Embedding", "Qwen/Reranker"), ("Embedding", "Reranker")]
        {
            let no_embedder = format!(
                "`{reranker}` is a reranker and computes no embeddings; use the model \
                 `Qwen/Embedding`"
            );
            let no_reranker = format!(
                "`{embedder}` is an embedding model, loaded with `--model-path`; a reranker is loaded with \
                 `--reranker-path`; use the model `Qwen/Reranker`"
            );
            for (path, request, served) in requests(&json!(embedder)) {
                if served == "Qwen/Reranker" {
                    check_wrong(&post(&state, path, request).await, &no_reranker);
                }
            }
            for (path, request, served) in requests(&json!(reranker)) {
                if served == "Qwen/Embedding" {
                    check_wrong(&post(&state, path, request).await, &no_embedder);
                }
            }
        }
    }
}

fn check_wrong(reply: &Reply, message: &str) {
    let expected = error("invalid_request_error", "model", "wrong_model", message);
    assert_eq!((reply.status, reply.json()), (400, expected));
}

/// Any name other than the reranker's own has the same effect as no name.
#[tokio::test]
async fn model_of_one_kind_never_serves_the_other() {
    let alone = started(reranker_alone(), ServerOptions::default()).await;
    let message =
        "`tied` is a reranker and computes no embeddings; it is the only model that is loaded";
    for name in [Value::Null, json!(""), json!("tied"), json!("Qwen3-Embedding-4B")] {
        let request = json!({ "model": name, "input": "a" });
        check_wrong(&post(&alone, "/v1/embeddings", request).await, message);
    }
    for (path, request) in [
        ("/embed", json!({ "inputs": "a" })),
        ("/similarity", json!({ "inputs": { "source_sentence": "a", "sentences": ["b"] } })),
    ] {
        check_wrong(&post(&alone, path, request).await, message);
    }
    let empty = started(Models::default(), ServerOptions::default()).await;
    for (path, request, _) in requests(&json!("a")) {
        check_wrong(&post(&empty, path, request).await, "no model is loaded");
    }
}

#[tokio::test]
async fn lists_and_finds_all_names() {
    let state = started(named(), ServerOptions::default()).await;
    let list = get(&state, "/v1/models").await.ok();
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(ids, ["Qwen/Embedding", "Embedding", "Qwen/Reranker", "Reranker"]);
    for model in list["data"].as_array().unwrap() {
        let id = model["id"].as_str().unwrap();
        assert_eq!(get(&state, &format!("/v1/models/{id}")).await.ok(), *model);
    }
    check_unknown(&get(&state, "/v1/models/Qwen3-Embedding-4B").await, "Qwen3-Embedding-4B");
    let info = get(&state, "/info").await.ok();
    assert_eq!(info["model_id"], "Qwen/Embedding");
    assert_eq!(info["embedder"]["id"], "Qwen/Embedding");
    assert_eq!(info["reranker"]["id"], "Qwen/Reranker");
}
