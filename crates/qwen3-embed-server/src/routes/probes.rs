use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use qwen3_embed::ServiceState;

use crate::error::{ApiError, ErrorBody};
use crate::state::{AppState, Readiness, Served};

/// Returns 200 while the process runs.
#[utoipa::path(get, path = "/livez", tag = "Operations", responses((status = 200)))]
pub(crate) async fn livez() -> &'static str {
    "ok"
}

/// Returns 200 if requests can be processed.
///
/// Returns 503 while models are being loaded, during shutdown, and after a model has crashed. `/health` is the same
/// route.
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

/// Returns metrics for Prometheus, in the OpenMetrics format.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "Operations",
    responses((status = 200, body = String, content_type = "application/openmetrics-text")),
)]
pub(crate) async fn metrics(State(state): State<AppState>) -> Result<Response, ApiError> {
    let models = state.served_if_loaded().into_iter().flat_map(Served::model_states);
    let text = state.metrics().text(models);
    let text = text.map_err(|error| ApiError::internal(error.to_string()))?;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}
