//! The router, called without a socket.
#![allow(clippy::unwrap_used)]

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use qwen3_embed_server::{AppState, app};
use serde_json::json;
use tower::ServiceExt;

async fn fetch(path: &str) -> (StatusCode, Vec<u8>) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = app(AppState::new("Qwen/Qwen3-Embedding-0.6B")).oneshot(request).await.unwrap();
    let status = response.status();
    (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

#[tokio::test]
async fn the_process_is_alive() {
    assert_eq!(fetch("/livez").await, (StatusCode::OK, b"ok".to_vec()));
}

#[tokio::test]
async fn the_model_is_listed_in_openai_shape() {
    let (status, body) = fetch("/v1/models").await;
    assert_eq!(status, StatusCode::OK);
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let model = json!({
        "id": "Qwen/Qwen3-Embedding-0.6B", "object": "model", "owned_by": "qwen3-embed"
    });
    assert_eq!(body, json!({ "object": "list", "data": [model] }));
}

#[tokio::test]
async fn an_unknown_path_is_not_found() {
    assert_eq!(fetch("/v1/nothing").await.0, StatusCode::NOT_FOUND);
}
