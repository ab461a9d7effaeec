use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::AppState;
use crate::error::{ApiError, ErrorBody};

/// List of the models of the server.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    #[schema(example = "list")]
    object: &'static str,
    data: Vec<Model>,
}

/// A model of the server, under one of its names.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Model {
    /// Name of the model.
    id: String,
    #[schema(example = "model")]
    object: &'static str,
    /// Time at which the model was loaded, in seconds since 1970.
    created: u64,
    owned_by: &'static str,
}

impl Model {
    fn new(id: &str, created: u64) -> Self {
        Self { id: id.to_owned(), object: "model", created, owned_by: "qwen3-embed" }
    }
}

/// Lists the models of the server. A model with several names is listed once for each name.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "OpenAI",
    responses((status = 200, body = ModelList), (status = 503, body = ErrorBody)),
)]
pub(crate) async fn list(State(state): State<AppState>) -> Result<Json<ModelList>, ApiError> {
    let served = state.served()?;
    let data = served.names().into_iter().map(|name| Model::new(name, served.created)).collect();
    Ok(Json(ModelList { object: "list", data }))
}

/// Returns one model.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "OpenAI",
    params(("id" = String, Path, description = "Name of the model")),
    responses(
        (status = 200, body = Model),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 503, body = ErrorBody),
    ),
)]
pub(crate) async fn one(
    State(state): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let not_utf8 = |_| ApiError::invalid("the model name is not valid UTF-8").about("model");
    let Path(id) = id.map_err(not_utf8)?;
    let served = state.served()?;
    let names = served.names();
    // A slash at the end of the path has been removed before routing, but it may be part of the name.
    let with_slash = format!("{id}/");
    match [id.as_str(), &with_slash].into_iter().find(|name| names.contains(name)) {
        Some(name) => Ok(Json(Model::new(name, served.created))),
        None => Err(ApiError::no_such_model(&id, &names)),
    }
}
