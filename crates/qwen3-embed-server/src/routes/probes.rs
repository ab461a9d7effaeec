use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use qwen3_embed::ServiceState;

use crate::error::{ApiError, ErrorBody};
use crate::{AppState, Readiness};

/// 200 while the process runs.
#[utoipa::path(get, path = "/livez", tag = "Operations", responses((status = 200)))]
pub(crate) async fn livez() -> &'static str {
    "ok"
}

/// 200 when requests are answered: not while the models are loaded, while the server is about to end, or when
/// a thread that computes has died. `/health` is the same.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "Operations",
    responses((status = 200), (status = 503, body = ErrorBody)),
)]
pub(crate) async fn readyz(State(state): State<AppState>) -> Result<&'static str, ApiError> {
    match state.readiness() {
        Readiness::Ready => Ok("ready"),
        Readiness::Loading => Err(ApiError::loading()),
        Readiness::Draining => Err(ApiError::not_running(ServiceState::Draining)),
        Readiness::Dead => Err(ApiError::not_running(ServiceState::Stopped)),
    }
}

/// What the server has done and how long it took, in the format of OpenMetrics, for Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "Operations",
    responses((status = 200, body = String, content_type = "application/openmetrics-text")),
)]
pub(crate) async fn metrics(State(state): State<AppState>) -> Result<Response, ApiError> {
    let text = state.metrics().text(state.served_if_loaded());
    let text = text.map_err(|error| ApiError::internal(error.to_string()))?;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}
