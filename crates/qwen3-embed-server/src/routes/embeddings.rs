use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Side, Usage, Wishes};
use crate::AppState;
use crate::body::Json;
use crate::error::{ApiError, ErrorBody};
use crate::input::Input;
use crate::respond::{self, Rows};

/// A request for embeddings: OpenAI's fields, and some more that are all optional. Other fields, OpenAI's `user`
/// among them, are ignored, whatever their type.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct EmbeddingsRequest {
    /// The name of the model, as `GET /v1/models` lists it.
    model: Option<String>,
    /// What is embedded: 1 to 2048 texts, unless the server is set up otherwise, none of them empty.
    input: Input,
    /// How many dimensions the vectors have: 32 to the model's hidden size, which is the default.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
    /// How the vectors are written. Default: as numbers.
    encoding_format: Option<EncodingFormat>,
    /// An instruction that says what the task is, in a sentence, best in English: for queries.
    instruct: Option<String>,
    /// What stands before the texts: `query`, `document`, or the name of one of the model's prompts.
    /// Default: `document`.
    prompt_name: Option<String>,
    /// Whether a text that is too long is cut. Default: it is an error.
    truncate: Option<bool>,
    /// At which end it is cut. Default: `right`.
    truncation_side: Option<Side>,
    /// vLLM's way to have texts cut: to so many tokens, those of an instruction and the end-of-text token
    /// included, or with -1 to as many as the model reads. The end-of-text token is kept.
    #[schema(minimum = -1)]
    truncate_prompt_tokens: Option<i64>,
    /// Whether vectors are brought to unit length. Default: true.
    normalize: Option<bool>,
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub(crate) enum EncodingFormat {
    /// As lists of numbers.
    Float,
    /// As the base64 of their bytes: f32 in little-endian order.
    Base64,
}

impl TryFrom<String> for EncodingFormat {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "float" => Ok(Self::Float),
            "base64" => Ok(Self::Base64),
            _ => Err(format!("expected `float` or `base64`, got `{name}`")),
        }
    }
}

/// Embeddings, in the order of the texts.
#[derive(Serialize, ToSchema)]
pub(crate) struct EmbeddingsResponse {
    #[schema(example = "list")]
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: Usage,
}

/// The embedding of a text.
#[derive(Serialize, ToSchema)]
pub(crate) struct Embedding {
    #[schema(example = "embedding")]
    object: &'static str,
    /// Which of the texts.
    index: usize,
    embedding: Vector,
}

/// A vector, in the form that was asked for.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it is written piece by piece")]
pub(crate) enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

/// Embeddings of texts, in the shape of OpenAI.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    operation_id = "v1_embeddings",
    tag = "OpenAI",
    request_body = EmbeddingsRequest,
    responses(
        (status = 200, body = EmbeddingsResponse),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn embeddings(
    State(state): State<AppState>,
    Json(request): Json<EmbeddingsRequest>,
) -> Result<Response, ApiError> {
    let model = state.served()?.embedder(request.model.as_deref())?;
    let limit = state.options().max_client_batch_size;
    let (texts, field) = request.input.into_texts("input", limit)?;
    let wishes = Wishes {
        instruct: request.instruct,
        prompt_name: request.prompt_name,
        dimensions: request.dimensions,
        truncate: request.truncate,
        truncation_side: request.truncation_side,
        truncate_prompt_tokens: request.truncate_prompt_tokens,
        normalize: request.normalize,
    };
    let embeddings = wishes.embed(&state, model, texts, field).await?;
    let rows = match request.encoding_format {
        Some(EncodingFormat::Base64) => Rows::Base64,
        _ => Rows::Floats,
    };
    let usage = Usage::new(embeddings.n_tokens());
    let rest = serde_json::json!({ "model": model.name, "usage": usage }).to_string();
    // Behind the list come the other fields.
    let tail = format!("],{}", &rest[1..]);
    Ok(respond::json(r#"{"object":"list","data":["#, embeddings, rows, tail))
}
