//! The route for embeddings of Cohere's API, with vectors in several types.

use std::fmt;

use axum::extract::State;
use axum::response::Response;
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::{EmbedParameters, Side, new_id};
use crate::AppState;
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorBody};
use crate::input::Input;
use crate::respond::{self, Format, Rows, Section};

/// Request for embeddings: the fields of Cohere's API for texts, and the extensions `instruct` and `normalize`. Other
/// fields are ignored.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct TypedEmbeddingsRequest {
    /// Name of the model, as in `GET /v1/models`.
    model: Option<String>,
    /// Texts to embed. No text may be empty. The limit is 2048 texts, unless the server has another setting.
    #[schema(min_items = 1)]
    texts: Vec<String>,
    /// Purpose of the vectors. For `search_query`, the texts are embedded with the model's prompt for queries, and for
    /// the others with its prompt for documents. Default: `search_document`, unless the server was started with
    /// `--default-instruct`.
    input_type: Option<InputType>,
    /// Types of the vectors in the response. Default: `float`.
    embedding_types: Option<Vec<EmbeddingType>>,
    /// Number of dimensions of the vectors. For the published models, 32 to the model's hidden size. Default: the
    /// hidden size.
    #[schema(minimum = 1)]
    output_dimension: Option<usize>,
    /// What happens to a text that is too long. Default: `END`.
    #[serde(default)]
    truncate: Truncate,
    /// Instruction that is put before the texts instead of the prompt of `input_type`: one sentence, preferably in
    /// English, that describes the task.
    instruct: Option<String>,
    /// Whether vectors in `float` and `base64` are normalized to unit length. Default: `true`.
    normalize: Option<bool>,
}

/// Purpose of vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", try_from = "String")]
pub(crate) enum InputType {
    /// Queries of a search.
    SearchQuery,
    /// Documents that are searched.
    SearchDocument,
    /// Input of a classifier.
    Classification,
    /// Texts that are grouped.
    Clustering,
}

impl TryFrom<String> for InputType {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "search_query" => Ok(Self::SearchQuery),
            "search_document" => Ok(Self::SearchDocument),
            "classification" => Ok(Self::Classification),
            "clustering" => Ok(Self::Clustering),
            _ => Err(format!(
                "expected `search_query`, `search_document`, `classification` or `clustering`, got `{name}`"
            )),
        }
    }
}

/// Type of vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub(crate) enum EmbeddingType {
    /// Lists of numbers.
    Float,
    /// Lists of integers from −127 to 127: `round(127 · v / m)`, where `m` is the largest magnitude in the vector. The
    /// cosine similarity does not depend on `m`.
    Int8,
    /// The integers of `int8` plus 128. Subtract 128 before vectors are compared.
    Uint8,
    /// The bytes of `ubinary` minus 128.
    Binary,
    /// Lists of bytes with eight bits each, the first in the highest bit, as by NumPy's `packbits`. A bit is 1 if the
    /// value is greater than 0. The last byte is filled up with bits that are 0.
    Ubinary,
    /// Base64 of f32 values in little-endian byte order.
    Base64,
}

impl EmbeddingType {
    fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Int8 => "int8",
            Self::Uint8 => "uint8",
            Self::Binary => "binary",
            Self::Ubinary => "ubinary",
            Self::Base64 => "base64",
        }
    }

    fn format(self) -> Format {
        match self {
            Self::Float => Format::Floats,
            Self::Int8 => Format::Int8,
            Self::Uint8 => Format::Uint8,
            Self::Binary => Format::Binary,
            Self::Ubinary => Format::Ubinary,
            Self::Base64 => Format::Base64,
        }
    }
}

impl TryFrom<String> for EmbeddingType {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let all = [Self::Float, Self::Int8, Self::Uint8, Self::Binary, Self::Ubinary, Self::Base64];
        all.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            format!(
                "expected `float`, `int8`, `uint8`, `binary`, `ubinary` or `base64`, got `{name}`"
            )
        })
    }
}

/// What happens to a text that is too long. `false` stands for `NONE` and `true` for `END`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Truncate {
    /// The request is refused.
    None,
    /// The text loses its beginning.
    Start,
    /// The text loses its end.
    #[default]
    End,
}

impl<'de> Deserialize<'de> for Truncate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TruncateVisitor)
    }
}

struct TruncateVisitor;

impl Visitor<'_> for TruncateVisitor {
    type Value = Truncate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`NONE`, `START` or `END`")
    }

    fn visit_unit<E: Error>(self) -> Result<Truncate, E> {
        Ok(Truncate::default())
    }

    fn visit_bool<E: Error>(self, is_cut: bool) -> Result<Truncate, E> {
        Ok(if is_cut { Truncate::End } else { Truncate::None })
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Truncate, E> {
        match name {
            "NONE" => Ok(Truncate::None),
            "START" => Ok(Truncate::Start),
            "END" => Ok(Truncate::End),
            _ => Err(E::custom(format!("expected `NONE`, `START` or `END`, got `{name}`"))),
        }
    }
}

/// Vectors in each requested type.
#[derive(Serialize, ToSchema)]
pub(crate) struct TypedEmbeddingsResponse {
    /// Id of the response.
    id: String,
    embeddings: TypedEmbeddings,
    /// The texts of the request.
    texts: Vec<String>,
    meta: Meta,
    #[schema(example = "embeddings_by_type")]
    response_type: &'static str,
}

/// Vectors in the order of the texts, in each requested type.
#[derive(Serialize, ToSchema)]
pub(crate) struct TypedEmbeddings {
    float: Option<Vec<Vec<f32>>>,
    int8: Option<Vec<Vec<i8>>>,
    uint8: Option<Vec<Vec<u8>>>,
    binary: Option<Vec<Vec<i8>>>,
    ubinary: Option<Vec<Vec<u8>>>,
    base64: Option<Vec<String>>,
}

/// The version of the API, and token counts.
#[derive(Serialize, ToSchema)]
pub(crate) struct Meta {
    api_version: ApiVersion,
    billed_units: BilledUnits,
}

/// The version of the API.
#[derive(Serialize, ToSchema)]
pub(crate) struct ApiVersion {
    #[schema(example = "2")]
    version: &'static str,
}

/// Token counts.
#[derive(Serialize, ToSchema)]
pub(crate) struct BilledUnits {
    /// Tokens of the request's texts, including instructions and end-of-text tokens.
    input_tokens: usize,
}

/// Embeds texts, with the request and the response of version 2 of Cohere's API. Vectors are in one or more types:
/// floating-point values, 8-bit integers, or bits.
#[utoipa::path(
    post,
    path = "/v2/embed",
    operation_id = "v2_embed",
    tag = "Cohere",
    request_body = TypedEmbeddingsRequest,
    responses(
        (status = 200, body = TypedEmbeddingsResponse),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn embed(
    State(state): State<AppState>,
    JsonBody(request): JsonBody<TypedEmbeddingsRequest>,
) -> Result<Response, ApiError> {
    let model = state.served()?.embedder(request.model.as_deref())?;
    let sections = sections(request.embedding_types.as_deref().unwrap_or_default());
    let limit = state.options().max_client_batch_size;
    let (texts, field) = Input::Many(request.texts.clone()).into_texts("texts", limit)?;
    let prompt_name = request.input_type.filter(|_| request.instruct.is_none());
    let prompt_name = prompt_name.map(|input_type| match input_type {
        InputType::SearchQuery => "query".to_owned(),
        _ => "document".to_owned(),
    });
    let side = if request.truncate == Truncate::Start { Side::Left } else { Side::Right };
    let parameters = EmbedParameters {
        instruct: request.instruct,
        prompt_name,
        dimensions: request.output_dimension,
        truncate: Some(request.truncate != Truncate::None),
        truncation_side: Some(side),
        truncate_prompt_tokens: None,
        normalize: request.normalize,
    };
    let embeddings = parameters.embed(&state, model, texts, field).await?;
    let n_tokens: usize = embeddings.n_tokens().iter().sum();
    let meta = Meta {
        api_version: ApiVersion { version: "2" },
        billed_units: BilledUnits { input_tokens: n_tokens },
    };
    let rest = json!({
        "texts": request.texts,
        "meta": meta,
        "response_type": "embeddings_by_type",
    });
    // The other fields follow the vectors.
    Ok(respond::json(sections, embeddings, format!("]}},{}", &rest.to_string()[1..])))
}

/// The sections of a response: the vectors in each type once, in the order of the request.
fn sections(types: &[EmbeddingType]) -> Vec<Section> {
    let types = if types.is_empty() { &[EmbeddingType::Float] } else { types };
    let mut sections: Vec<Section> = Vec::new();
    for (index, kind) in types.iter().enumerate() {
        if types[..index].contains(kind) {
            continue;
        }
        let head = match index {
            0 => format!(r#"{{"id":"{}","embeddings":{{"{}":["#, new_id("embed"), kind.name()),
            _ => format!(r#"],"{}":["#, kind.name()),
        };
        sections.push((head, Rows::Bare(kind.format())));
    }
    sections
}
