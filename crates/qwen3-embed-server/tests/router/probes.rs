//! `/livez`, `/readyz` and `/health`, and the responses to requests, in every state of the server.

use std::pin::pin;

use qwen3_embed_server::{AppState, Readiness, ServerOptions};
use serde_json::{Value, json};

use crate::common::*;
use crate::limits::{begin, slow};

/// Asserts the responses of the probes. `not_ready` is the code and the message if the server is not ready.
async fn check(state: &AppState, readiness: Readiness, not_ready: Option<(&str, &str)>) {
    assert_eq!(state.readiness(), readiness);
    let live = get(state, "/livez").await;
    assert_eq!((live.status, live.text()), (200, "ok"));
    for path in ["/readyz", "/health"] {
        let reply = get(state, path).await;
        match not_ready {
            None => assert_eq!((reply.status, reply.text()), (200, "ready")),
            Some((code, message)) => check_unavailable(&reply, code, message),
        }
        assert_eq!(call(state, request("HEAD", path)).await.status, reply.status);
    }
}

fn check_unavailable(reply: &Reply, code: &str, message: &str) {
    let expected = error("server_error", Value::Null, code, message);
    assert_eq!((reply.status, reply.json()), (503, expected));
    assert_eq!(reply.header("retry-after"), "1");
}

/// A valid request for each route of the embedder, and for each route of the reranker.
fn requests() -> [Vec<(&'static str, Value)>; 2] {
    let sentences = json!({ "source_sentence": "a", "sentences": ["b"] });
    let embed = vec![
        ("/v1/embeddings", json!({ "input": "a" })),
        ("/v2/embed", json!({ "texts": ["a"] })),
        ("/embed", json!({ "inputs": "a" })),
        ("/similarity", json!({ "inputs": sentences })),
    ];
    let rank = vec![
        ("/v1/rerank", json!({ "query": "a", "documents": ["b"] })),
        ("/v1/score", json!({ "text_1": "a", "text_2": "b" })),
    ];
    [embed, rank]
}

const LOADING: (&str, &str) = ("loading", "the model is still being loaded");
const DRAINING: (&str, &str) = ("draining", "the server is shutting down");
const STOPPED: (&str, &str) = ("stopped", "the model has crashed; restart the server");

#[tokio::test]
async fn probes_while_models_load() {
    let state = AppState::new(ServerOptions::default());
    check(&state, Readiness::Loading, Some(LOADING)).await;
    let others = [("/tokenize", json!({ "inputs": "a" })), ("/decode", json!({ "ids": [1] }))];
    for (path, request) in requests().into_iter().flatten().chain(others) {
        check_unavailable(&post(&state, path, request).await, LOADING.0, LOADING.1);
    }
    for path in ["/info", "/v1/models", "/v1/models/wide"] {
        check_unavailable(&get(&state, path).await, LOADING.0, LOADING.1);
    }
    for path in ["/metrics", "/", "/openapi.json", "/docs/"] {
        assert_eq!(get(&state, path).await.status, 200, "{path}");
    }
    state.start(embedder_alone(), Default::default()).await.unwrap();
    check(&state, Readiness::Ready, None).await;
}

#[tokio::test]
async fn probes_when_ready() {
    check(ready().await, Readiness::Ready, None).await;
}

#[tokio::test]
async fn probes_while_draining() {
    let state = started(both(), ServerOptions::default()).await;
    state.announce_shutdown();
    check(&state, Readiness::Draining, Some(DRAINING)).await;
    // New requests are still processed.
    for (path, request) in requests().into_iter().flatten() {
        post(&state, path, request).await.ok();
    }
    state.drain().await;
    check(&state, Readiness::Draining, Some(DRAINING)).await;
    for (path, request) in requests().into_iter().flatten() {
        check_unavailable(&post(&state, path, request).await, DRAINING.0, DRAINING.1);
    }
}

#[tokio::test]
async fn finishes_accepted_requests_before_stopping() {
    let state = slow(ServerOptions::default()).await;
    let request = json!({ "input": vec![TEXTS[1]; 20] });
    let mut accepted = pin!(post(&state, "/v1/embeddings", request));
    begin(&mut accepted).await;
    let (reply, ()) = tokio::join!(accepted, state.drain());
    assert_eq!(reply.ok()["data"].as_array().unwrap().len(), 20);
}

#[tokio::test]
async fn probes_after_the_worker_thread_panics_with_a_waiting_request() {
    let state = slow(ServerOptions::default()).await;
    check(&state, Readiness::Ready, None).await;
    let mut waiting =
        pin!(post(&state, "/v1/embeddings", json!({ "input": vec![TEXTS[1]; 2048] })));
    begin(&mut waiting).await;
    state.embedder().unwrap().panic();
    check_unavailable(&waiting.await, STOPPED.0, STOPPED.1);
    check(&state, Readiness::Dead, Some(STOPPED)).await;
    let [embed, rank] = requests();
    for (path, request) in embed {
        check_unavailable(&post(&state, path, request).await, STOPPED.0, STOPPED.1);
    }
    // The reranker still works.
    for (path, request) in rank {
        post(&state, path, request).await.ok();
    }
}

#[tokio::test]
async fn probes_after_the_rerankers_worker_thread_panics() {
    let state = slow(ServerOptions::default()).await;
    let request = json!({ "query": "a", "documents": vec!["b"; 500] });
    let mut waiting = pin!(post(&state, "/rerank", request));
    begin(&mut waiting).await;
    state.reranker().unwrap().panic();
    check_unavailable(&waiting.await, STOPPED.0, STOPPED.1);
    check(&state, Readiness::Dead, Some(STOPPED)).await;
    let [embed, rank] = requests();
    for (path, request) in rank {
        check_unavailable(&post(&state, path, request).await, STOPPED.0, STOPPED.1);
    }
    for (path, request) in embed {
        post(&state, path, request).await.ok();
    }
}
