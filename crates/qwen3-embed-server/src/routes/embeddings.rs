use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{EmbedParameters, Side, Usage};
use crate::AppState;
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorBody};
use crate::input::Input;
use crate::respond::{self, Format, Rows};

/// Request for embeddings: OpenAI's fields and optional extensions. Other fields, such as OpenAI's `user`, are ignored
/// and may have any type.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct EmbeddingsRequest {
    /// Name of the model, as in `GET /v1/models`.
    model: Option<String>,
    /// Texts to embed. No text may be empty. The limit is 2048 texts, unless the server has another setting.
    input: Input,
    /// Number of dimensions of the vectors. For the published models, 32 to the model's hidden size. Default: the
    /// hidden size.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
    /// Format of the vectors. Default: `float`.
    encoding_format: Option<EncodingFormat>,
    /// Instruction that is put before the texts: one sentence, preferably in English, that describes the task. It is
    /// meant for queries.
    instruct: Option<String>,
    /// Name of the prompt that is put before the texts: `query`, `document`, or another prompt of the model. Default:
    /// `document`, unless the server was started with `--default-instruct`.
    prompt_name: Option<String>,
    /// Whether a text that is too long is truncated. If not, such a text is an error. Default: `false`, or `true` if
    /// the server was started with `--truncate`.
    truncate: Option<bool>,
    /// The side on which texts are truncated. Default: `right`.
    truncation_side: Option<Side>,
    /// Maximum number of tokens of a text, including the instruction and the end-of-text token, as in vLLM. Longer
    /// texts are truncated, but keep the end-of-text token. -1 stands for the model's limit.
    #[schema(minimum = -1)]
    truncate_prompt_tokens: Option<i64>,
    /// Whether vectors are normalized to unit length. Default: `true`.
    normalize: Option<bool>,
}

/// Format of vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub(crate) enum EncodingFormat {
    /// Lists of numbers.
    Float,
    /// Base64 of f32 values in little-endian byte order.
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

/// Embeddings in the order of the texts.
#[derive(Serialize, ToSchema)]
pub(crate) struct EmbeddingsResponse {
    #[schema(example = "list")]
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: Usage,
}

/// The embedding of one text.
#[derive(Serialize, ToSchema)]
pub(crate) struct Embedding {
    #[schema(example = "embedding")]
    object: &'static str,
    /// Index of the text in the request.
    index: usize,
    embedding: Vector,
}

/// A vector in the requested format.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "this type describes the response in OpenAPI; the response is written piece by piece"
)]
pub(crate) enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

/// Embeds texts, with the request and the response of OpenAI's API.
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
    JsonBody(request): JsonBody<EmbeddingsRequest>,
) -> Result<Response, ApiError> {
    let model = state.served()?.embedder(request.model.as_deref())?;
    let limit = state.options().max_client_batch_size;
    let (texts, field) = request.input.into_texts("input", limit)?;
    let parameters = EmbedParameters {
        instruct: request.instruct,
        prompt_name: request.prompt_name,
        dimensions: request.dimensions,
        truncate: request.truncate,
        truncation_side: request.truncation_side,
        truncate_prompt_tokens: request.truncate_prompt_tokens,
        normalize: request.normalize,
    };
    let embeddings = parameters.embed(&state, model, texts, field).await?;
    let format = match request.encoding_format {
        Some(EncodingFormat::Base64) => Format::Base64,
        _ => Format::Floats,
    };
    let usage = Usage::new(embeddings.n_tokens());
    let rest = serde_json::json!({ "model": model.name, "usage": usage }).to_string();
    // The fields `model` and `usage` follow the list of vectors.
    let tail = format!("],{}", &rest[1..]);
    let section = (r#"{"object":"list","data":["#.to_owned(), Rows::Objects(format));
    Ok(respond::json([section], embeddings, tail))
}
