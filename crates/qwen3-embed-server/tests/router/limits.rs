//! Limits on concurrent requests, and requests whose clients have disconnected.

use std::convert::Infallible;
use std::fmt::Debug;
use std::pin::{Pin, pin};
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::{StreamExt, stream};
use qwen3_embed::{EmbedOptions, ServiceOptions};
use qwen3_embed_server::{AppState, ServerOptions, app};
use serde_json::json;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

use crate::common::*;

/// Runs a request until it waits for something.
pub(crate) async fn begin(request: &mut Pin<&mut impl Future<Output: Debug>>) {
    tokio::select! {
        biased;
        done = request => panic!("{done:?}"),
        () = std::future::ready(()) => {}
    }
}

/// A server that computes one text at a time and whose queue has room for one text.
pub(crate) async fn slow(options: ServerOptions) -> AppState {
    let state = AppState::new(options);
    let options = ServiceOptions::new().batch_tokens(1).max_waiting_texts(1);
    state.start(both(), options).await.unwrap();
    state
}

/// Sends texts to the embedder whose computation takes a minute, unless this future is dropped.
pub(crate) async fn take_long(state: &AppState) {
    let text = |i: u32| (0..1000).map(|j| (i * 7 + j * 13) % 1000).collect::<Vec<u32>>();
    let texts = (0..2048).map(text);
    let embedded = state.embedder().unwrap().embed(texts, EmbedOptions::new()).await;
    panic!("{:?}", embedded.map(|embedded| embedded.timings));
}

fn retry_after(reply: &Reply) -> u64 {
    reply.header("retry-after").parse().unwrap()
}

#[tokio::test]
async fn rejects_more_concurrent_requests_than_the_limit() {
    let options = ServerOptions { max_concurrent_requests: 1, ..ServerOptions::default() };
    let state = started(both(), options).await;
    let message = "the limit of 1 concurrent requests is reached; try again later";
    let expected = error("rate_limit_error", None::<&str>, "overloaded", message);
    let posts = [
        ("/v1/embeddings", json!({ "input": "a" })),
        ("/v2/embed", json!({ "texts": ["a"] })),
        ("/v1/rerank", json!({ "query": "a", "documents": ["b"] })),
        ("/v2/rerank", json!({ "query": "a", "documents": ["b"] })),
        ("/rerank", json!({ "query": "a", "texts": ["b"] })),
        ("/v1/score", json!({ "text_1": "a", "text_2": "b" })),
        ("/score", json!({ "text_1": "a", "text_2": "b" })),
        ("/embed", json!({ "inputs": "a" })),
        ("/similarity", json!({ "inputs": { "source_sentence": "a", "sentences": ["b"] } })),
        ("/tokenize", json!({ "inputs": "a" })),
        ("/decode", json!({ "ids": [1] })),
    ];
    {
        // The response to this request has not been read yet.
        let first = json!({ "inputs": "a" }).to_string();
        let _first = app(state.clone()).oneshot(post_request("/embed", first)).await.unwrap();
        for (path, request) in &posts {
            let reply = post(&state, path, request.clone()).await;
            assert_eq!((reply.status, reply.json()), (429, expected.clone()));
            assert_eq!(retry_after(&reply), 1);
        }
        for path in ["/livez", "/readyz", "/health", "/metrics", "/info", "/v1/models", "/"] {
            assert_eq!(get(&state, path).await.status, 200, "{path}");
        }
    }
    // After the first request has been dropped, other requests are processed. A request whose body has not arrived does
    // not count.
    let body = || Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
    let mut slow = pin!(call(&state, post_request("/embed", body())));
    begin(&mut slow).await;
    for (path, request) in posts {
        post(&state, path, request).await.ok();
    }
}

#[tokio::test]
async fn limits_the_memory_of_unfinished_bodies() {
    let options = ServerOptions { payload_limit: 1 << 20, ..ServerOptions::default() };
    let state = started(embedder_alone(), options).await;
    let unfinished = || {
        let sent = Bytes::from(vec![b' '; 1 << 20]);
        let chunks = stream::iter([Ok::<_, Infallible>(sent)]).chain(stream::pending());
        post_request("/embed", Body::from_stream(chunks))
    };
    let mut waiting = Vec::new();
    for _ in 0..32 {
        let mut request = Box::pin(call(&state, unfinished()));
        begin(&mut request.as_mut()).await;
        waiting.push(request);
    }
    let message = "the bodies of other requests fill the limit of 33554432 bytes for all bodies; try again later";
    let expected = error("rate_limit_error", None::<&str>, "overloaded", message);
    let reply = call(&state, unfinished()).await;
    assert_eq!((reply.status, reply.json()), (429, expected));
    // A small body needs no permit.
    post(&state, "/embed", json!({ "inputs": "a" })).await.ok();
    drop(waiting);
    let large = json!({ "inputs": "a", "unknown": " ".repeat(1 << 19) });
    post(&state, "/embed", large).await.ok();
}

#[tokio::test]
async fn disconnected_request_counts_until_its_work_ends() {
    let options = ServerOptions { max_concurrent_requests: 1, ..ServerOptions::default() };
    let state = started(embedder_alone(), options).await;
    let request = json!({ "inputs": "some words ".repeat(400_000) });
    // The timeout is long enough to parse the body on a busy machine, and too short to tokenize 4 MB.
    let parsed = Duration::from_millis(300);
    assert!(timeout(parsed, post(&state, "/tokenize", request)).await.is_err());
    let ask = || post(&state, "/decode", json!({ "ids": [1] }));
    assert_eq!(ask().await.status, 429);
    while ask().await.status == 429 {
        sleep(Duration::from_millis(50)).await;
    }
    ask().await.ok();
}

#[tokio::test]
async fn full_queue_rejects_requests_until_there_is_room() {
    let state = slow(ServerOptions::default()).await;
    {
        let mut first = pin!(take_long(&state));
        begin(&mut first).await;
        let requests = [
            ("/v1/embeddings", json!({ "input": "a" })),
            ("/embed", json!({ "inputs": "a" })),
            ("/similarity", json!({ "inputs": { "source_sentence": "a", "sentences": ["b"] } })),
        ];
        for (path, request) in requests {
            let reply = post(&state, path, request).await;
            assert_eq!(reply.status, 429);
            assert!(retry_after(&reply) >= 1);
            let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
            let (n_waiting, rest) = message.split_once(' ').unwrap();
            assert!((1..=2048).contains(&n_waiting.parse::<usize>().unwrap()), "{message}");
            assert!(rest.starts_with("texts are waiting, the limit is 1: try again in "), "{rest}");
        }
        // The other model has its own queue.
        let request = json!({ "query": "a", "documents": ["b"] });
        post(&state, "/rerank", request).await.ok();
    }
    assert_eq!(state.embedder().unwrap().waiting_texts(), 0);
    post(&state, "/v1/embeddings", json!({ "input": "a" })).await.ok();
}
