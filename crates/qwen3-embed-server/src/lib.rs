//! The HTTP server as a library: [`app`] is a router that a program serves, nests in its own, or
//! calls without a socket in tests.
//!
//! So far it answers two routes:
//!
//! | route | answer |
//! |---|---|
//! | `GET /livez` | 200 while the process runs |
//! | `GET /v1/models` | the model that is served, in OpenAI's shape |
#![forbid(unsafe_code)]

use std::sync::Arc;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

/// What the server's routes share.
#[derive(Debug, Clone)]
pub struct AppState {
    model_name: Arc<str>,
}

impl AppState {
    /// The state of a server whose model clients call `model_name`.
    pub fn new(model_name: impl Into<Arc<str>>) -> Self {
        Self { model_name: model_name.into() }
    }
}

/// The server's routes.
///
/// # Examples
///
/// ```
/// use qwen3_embed_server::{AppState, app};
///
/// let router = app(AppState::new("Qwen/Qwen3-Embedding-0.6B"));
/// # let _ = router;
/// ```
pub fn app(state: AppState) -> Router {
    Router::new()
        .route("/livez", get(async || "ok"))
        .route("/v1/models", get(models))
        .with_state(state)
}

#[derive(Serialize)]
struct ModelList {
    object: &'static str,
    data: [Model; 1],
}

#[derive(Serialize)]
struct Model {
    id: String,
    object: &'static str,
    owned_by: &'static str,
}

async fn models(State(state): State<AppState>) -> Json<ModelList> {
    let model =
        Model { id: state.model_name.to_string(), object: "model", owned_by: "qwen3-embed" };
    Json(ModelList { object: "list", data: [model] })
}
