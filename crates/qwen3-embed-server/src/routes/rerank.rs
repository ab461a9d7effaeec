use std::fmt;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use qwen3_embed::RankedDocument;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::pairs::{Pairs, PromptLimits};
use super::{Usage, new_id};
use crate::AppState;
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorBody, Field};
use crate::input::{Strings, check_count};

/// Request to rank documents. The field `documents` belongs to the APIs of Jina, Cohere and vLLM, the field `texts` to
/// text-embeddings-inference.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct RerankRequest {
    /// Name of the model, as in `GET /v1/models`.
    model: Option<String>,
    /// The query. If it begins with the prompt of the model card, the prompt is removed from the query and from every
    /// document.
    query: String,
    /// Documents to rank. The limit is 2048 documents, unless the server has another setting.
    #[schema(min_items = 1)]
    documents: Option<Vec<Document>>,
    /// Documents to rank, instead of `documents`. The response then has the shape of text-embeddings-inference.
    #[schema(min_items = 1)]
    texts: Option<Vec<String>>,
    /// Number of documents to return. The documents with the highest scores are returned. Default: all; 0 also stands
    /// for all.
    top_n: Option<usize>,
    /// Another name for `top_n`, from Voyage's API.
    top_k: Option<usize>,
    /// Whether the response contains the documents. Default: `true` for `documents`, except for `/v2/rerank`; `false`
    /// for `texts`.
    return_documents: Option<bool>,
    /// Another name for `return_documents`, from text-embeddings-inference.
    return_text: Option<bool>,
    /// Instruction: one sentence, preferably in English, that describes which documents are relevant.
    instruct: Option<String>,
    /// Another name for `instruct`.
    instruction: Option<String>,
    /// Maximum number of tokens of each document. A longer document loses its end. Default: no limit; 0 also stands for
    /// no limit. Independently of this field, a prompt that is longer than the model's limit loses the end of its
    /// document.
    max_tokens_per_doc: Option<usize>,
    /// Maximum number of tokens of each prompt, from the system message to the end. A longer prompt loses the end of
    /// its document. Default: the model's limit; -1 also stands for the model's limit.
    #[schema(minimum = -1)]
    truncate_prompt_tokens: Option<i64>,
    /// Whether scores are logits instead of probabilities. Default: `false`.
    raw_scores: Option<bool>,
}

/// A document, as a string or as an object with the field `text`.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Document {
    /// The text of the document.
    Text(String),
    /// An object with the text of the document.
    Object {
        /// The text of the document.
        text: String,
    },
}

/// Ranked documents, best first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RerankResponse {
    /// Id of the response.
    id: String,
    model: String,
    usage: Usage,
    results: Vec<RankResult>,
}

/// The rank of one document.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RankResult {
    /// Index of the document in the request.
    index: usize,
    /// Probability, from 0 to 1, that the document answers the query. With `raw_scores`, the logit.
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<RankedText>,
}

/// A document in a response.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RankedText {
    text: String,
}

/// The rank of one text, in the shape of text-embeddings-inference.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Rank {
    /// Index of the text in the request.
    index: usize,
    /// Probability, from 0 to 1, that the text answers the query. With `raw_scores`, the logit.
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// The response: `Documents` if the request has `documents`, `Texts` if it has `texts`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "this type describes the responses in OpenAPI; the handler creates them separately"
)]
pub(crate) enum Ranks {
    Documents(RerankResponse),
    Texts(Vec<Rank>),
}

/// Request for the scores of pairs.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ScoreRequest {
    /// Name of the model, as in `GET /v1/models`.
    model: Option<String>,
    /// One query for all documents, or one query for each document. If a query begins with the prompt of the model
    /// card, the prompt is removed from the query and from its documents.
    text_1: Option<Strings>,
    /// Another name for `text_1`.
    queries: Option<Strings>,
    /// One or more documents.
    text_2: Option<Strings>,
    /// Another name for `text_2`.
    documents: Option<Strings>,
    /// Instruction: one sentence, preferably in English, that describes which documents are relevant.
    instruct: Option<String>,
    /// Another name for `instruct`.
    instruction: Option<String>,
    /// Maximum number of tokens of each prompt, from the system message to the end. A longer prompt loses the end of
    /// its document. Default: the model's limit; -1 also stands for the model's limit.
    #[schema(minimum = -1)]
    truncate_prompt_tokens: Option<i64>,
    /// Whether scores are logits instead of probabilities. Default: `false`.
    raw_scores: Option<bool>,
}

/// Scores in the order of the pairs.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ScoreResponse {
    /// Id of the response.
    id: String,
    #[schema(example = "list")]
    object: &'static str,
    model: String,
    data: Vec<PairScore>,
    usage: Usage,
}

/// The score of one pair.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PairScore {
    /// Index of the pair.
    index: usize,
    #[schema(example = "score")]
    object: &'static str,
    /// Probability, from 0 to 1, that the document answers the query. With `raw_scores`, the logit.
    score: f32,
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an object with a `text`")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Document, E> {
        Ok(Document::Text(text.to_owned()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Document, E> {
        Ok(Document::Text(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Document, A::Error> {
        #[derive(Deserialize)]
        struct Fields {
            text: Option<String>,
        }
        let Fields { text } = Fields::deserialize(MapAccessDeserializer::new(fields))?;
        let missing = || {
            Error::custom("an object without `text`, expected a string or an object with a `text`")
        };
        Ok(Document::Object { text: text.ok_or_else(missing)? })
    }
}

impl Document {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { text } => text,
        }
    }
}

/// Ranks documents by how well they answer a query.
///
/// If the request has `documents`, the response has the shape of the APIs of Jina, Cohere and vLLM, and contains the
/// documents unless `return_documents` is false. If the request has `texts`, the response has the shape of
/// text-embeddings-inference, and contains the texts only if `return_documents` is true. `/rerank` is the same route.
#[utoipa::path(
    post,
    path = "/v1/rerank",
    operation_id = "v1_rerank",
    tag = "Reranking",
    request_body = RerankRequest,
    responses(
        (status = 200, body = Ranks),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn rerank(
    State(state): State<AppState>,
    JsonBody(request): JsonBody<RerankRequest>,
) -> Result<Response, ApiError> {
    respond(&state, request, true).await
}

/// Ranks documents like `/v1/rerank`, but the response contains the documents only if `return_documents` is true, as in
/// Cohere's API.
#[utoipa::path(
    post,
    path = "/v2/rerank",
    operation_id = "v2_rerank",
    tag = "Reranking",
    request_body = RerankRequest,
    responses(
        (status = 200, body = Ranks),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn rerank_v2(
    State(state): State<AppState>,
    JsonBody(request): JsonBody<RerankRequest>,
) -> Result<Response, ApiError> {
    respond(&state, request, false).await
}

/// Ranks documents. `returns_documents` is the default of the field `return_documents`.
async fn respond(
    state: &AppState,
    request: RerankRequest,
    returns_documents: bool,
) -> Result<Response, ApiError> {
    let model = state.served()?.reranker(request.model.as_deref())?;
    let documents = request.documents;
    let documents = documents.map(|all| all.into_iter().map(Document::into_text).collect());
    let (name, documents) = exactly_one(("documents", documents), ("texts", request.texts))?;
    check_count(name, documents.len(), state.options().max_client_batch_size)?;
    let top_n = top_n_of(request.top_n, request.top_k)?;
    let is_returned = request.return_documents.or(request.return_text);
    let is_returned = is_returned.unwrap_or(returns_documents && name == "documents");
    let texts = if is_returned { documents.clone() } else { Vec::new() };
    let pairs = Pairs {
        queries: (vec![request.query], Field::single("query")),
        documents: (documents, Field::list(name)),
        instruct: instruct_of(request.instruct, request.instruction)?,
    };
    let limits = PromptLimits {
        truncate_prompt_tokens: request.truncate_prompt_tokens,
        max_tokens_per_doc: request.max_tokens_per_doc.filter(|&n| n > 0),
    };
    let scores = pairs.score(state, model, limits).await?;
    let mut ranked = scores.ranked();
    ranked.truncate(top_n.unwrap_or(usize::MAX));
    let is_raw = request.raw_scores.unwrap_or(false);
    let score = |document: &RankedDocument| if is_raw { document.logit } else { document.score };
    if name == "texts" {
        let ranks = ranked.iter().map(|document| Rank {
            index: document.index,
            score: score(document),
            text: texts.get(document.index).cloned(),
        });
        return Ok(Json(ranks.collect::<Vec<_>>()).into_response());
    }
    let results = ranked.iter().map(|document| RankResult {
        index: document.index,
        relevance_score: score(document),
        document: texts.get(document.index).map(|text| RankedText { text: text.clone() }),
    });
    let (id, usage) = (new_id("rerank"), Usage::new(scores.n_tokens()));
    let (model, results) = (model.name.clone(), results.collect());
    Ok(Json(RerankResponse { id, model, usage, results }).into_response())
}

/// Scores pairs of a query and a document.
///
/// One query is paired with every document, or each query with the document at the same index. `/score` is the same
/// route.
#[utoipa::path(
    post,
    path = "/v1/score",
    operation_id = "v1_score",
    tag = "Reranking",
    request_body = ScoreRequest,
    responses(
        (status = 200, body = ScoreResponse),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn score(
    State(state): State<AppState>,
    JsonBody(request): JsonBody<ScoreRequest>,
) -> Result<Json<ScoreResponse>, ApiError> {
    let model = state.served()?.reranker(request.model.as_deref())?;
    let limit = state.options().max_client_batch_size;
    let (first, queries) = exactly_one(("text_1", request.text_1), ("queries", request.queries))?;
    let (second, documents) =
        exactly_one(("text_2", request.text_2), ("documents", request.documents))?;
    let (queries, documents) =
        (queries.into_texts(first, limit)?, documents.into_texts(second, limit)?);
    let (n_queries, n_documents) = (queries.0.len(), documents.0.len());
    if n_queries != 1 && n_queries != n_documents {
        let message = format!(
            "{first} has {n_queries} items and {second} has {n_documents}; expected one item in {first}, or the same \
             number in both"
        );
        return Err(ApiError::invalid(message).about(first));
    }
    let instruct = instruct_of(request.instruct, request.instruction)?;
    let pairs = Pairs { queries, documents, instruct };
    let truncate_prompt_tokens = request.truncate_prompt_tokens;
    let scores = pairs
        .score(&state, model, PromptLimits { truncate_prompt_tokens, ..PromptLimits::default() })
        .await?;
    let is_raw = request.raw_scores.unwrap_or(false);
    let values = if is_raw { scores.logits().to_vec() } else { scores.to_vec() };
    let values = values.into_iter().enumerate();
    let data = values.map(|(index, score)| PairScore { index, object: "score", score }).collect();
    let (id, usage) = (new_id("score"), Usage::new(scores.n_tokens()));
    Ok(Json(ScoreResponse { id, object: "list", model: model.name.clone(), data, usage }))
}

/// The name and the value of the field that is present. It is an error if both fields are present, or none.
fn exactly_one<T>(
    first: (&'static str, Option<T>),
    second: (&'static str, Option<T>),
) -> Result<(&'static str, T), ApiError> {
    let got = if first.1.is_some() { "both" } else { "neither" };
    match (first, second) {
        ((name, Some(value)), (_, None)) | ((_, None), (name, Some(value))) => Ok((name, value)),
        ((first, _), (second, _)) => {
            let message = format!("expected either `{first}` or `{second}`, got {got}");
            Err(ApiError::invalid(message).about(first))
        }
    }
}

/// The instruction of a request. The field has two names, and only one of them may be used.
fn instruct_of(
    instruct: Option<String>,
    instruction: Option<String>,
) -> Result<Option<(Field, String)>, ApiError> {
    if instruct.is_none() && instruction.is_none() {
        return Ok(None);
    }
    let (name, instruct) = exactly_one(("instruct", instruct), ("instruction", instruction))?;
    Ok(Some((Field::single(name), instruct)))
}

/// The number of documents to return. The field has two names. 0 counts as not set.
fn top_n_of(top_n: Option<usize>, top_k: Option<usize>) -> Result<Option<usize>, ApiError> {
    match (top_n.filter(|&n| n > 0), top_k.filter(|&n| n > 0)) {
        (Some(top_n), Some(top_k)) if top_n != top_k => {
            let message = format!(
                "top_n is {top_n} and top_k is {top_k}, which are two names of one field: send only one of them"
            );
            Err(ApiError::invalid(message).about("top_n"))
        }
        (top_n, top_k) => Ok(top_n.or(top_k)),
    }
}
