use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::AppState;
use crate::error::{ApiError, ErrorBody};

/// The models that are served.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    #[schema(example = "list")]
    object: &'static str,
    data: Vec<Model>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Model {
    /// Its name.
    id: String,
    #[schema(example = "model")]
    object: &'static str,
    /// When it was loaded, in seconds since 1970.
    created: u64,
    owned_by: &'static str,
}

impl Model {
    fn new(id: &str, created: u64) -> Self {
        Self { id: id.to_owned(), object: "model", created, owned_by: "qwen3-embed" }
    }
}

/// The models that are served.
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

/// One of the models.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "OpenAI",
    params(("id" = String, Path, description = "The model's name")),
    responses(
        (status = 200, body = Model),
        (status = 404, body = ErrorBody),
        (status = 503, body = ErrorBody),
    ),
)]
pub(crate) async fn one(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<Model>, ApiError> {
    find(&state, &id)
}

/// The same for a name with a slash in it.
pub(crate) async fn two_parts(
    State(state): State<AppState>,
    Path((owner, name)): Path<(String, String)>,
) -> Result<Json<Model>, ApiError> {
    find(&state, &format!("{owner}/{name}"))
}

fn find(state: &AppState, id: &str) -> Result<Json<Model>, ApiError> {
    let served = state.served()?;
    let names = served.names();
    if names.contains(&id) {
        Ok(Json(Model::new(id, served.created)))
    } else {
        Err(ApiError::no_such_model(id, &names))
    }
}
