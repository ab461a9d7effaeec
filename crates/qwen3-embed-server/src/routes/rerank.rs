use std::fmt;

use axum::Json as Answer;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use qwen3_embed::RankedDocument;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Usage;
use super::pairs::{Cut, Pairs};
use crate::AppState;
use crate::body::Json;
use crate::error::{ApiError, ErrorBody, Field};
use crate::input::{Strings, check_count};

/// A request for the rank of documents: as Jina, Cohere and vLLM have it with `documents`, as
/// text-embeddings-inference has it with `texts`.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct RerankRequest {
    /// The name of the model, as `GET /v1/models` lists it.
    model: Option<String>,
    /// What is searched for. If it begins with the prompt frame of the model card, the frame is taken off the
    /// query and off every document.
    query: String,
    /// What is ranked, 1 to 2048 unless the server is set up otherwise.
    #[schema(min_items = 1)]
    documents: Option<Vec<Document>>,
    /// The same, answered in the shape of text-embeddings-inference.
    #[schema(min_items = 1)]
    texts: Option<Vec<String>>,
    /// How many are given back, the best ones. Default, and with 0: all.
    top_n: Option<usize>,
    /// The same, in Voyage's API.
    top_k: Option<usize>,
    /// Whether the documents are given back too. Default: they are, but not by `/v2/rerank`, and not if they
    /// came in `texts`.
    return_documents: Option<bool>,
    /// The same, in text-embeddings-inference.
    return_text: Option<bool>,
    /// What is asked of a document, in a sentence, best in English.
    instruct: Option<String>,
    /// The same.
    instruction: Option<String>,
    /// How many tokens of each document are read at most. Default, and with 0: all. In any case a prompt that
    /// is too long loses the end of its document.
    max_tokens_per_doc: Option<usize>,
    /// How many tokens each prompt has at most, from the system message to the answer: a longer one loses the
    /// end of its document. Default, and with -1: as many as the model reads.
    #[schema(minimum = -1)]
    truncate_prompt_tokens: Option<i64>,
    /// Whether scores are logits instead of probabilities.
    raw_scores: Option<bool>,
}

/// A document: its text, or an object with it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Document {
    /// Its text.
    Text(String),
    /// An object with it.
    Object {
        /// Its text.
        text: String,
    },
}

/// Documents by rank, the best one first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RerankResponse {
    /// The id of the answer.
    id: String,
    model: String,
    usage: Usage,
    results: Vec<RankResult>,
}

/// The rank of a document.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RankResult {
    /// Which of the documents.
    index: usize,
    /// How well it answers the query, from 0 to 1.
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<RankedText>,
}

/// A document that is given back.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RankedText {
    text: String,
}

/// The rank of a text, in the shape of text-embeddings-inference.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Rank {
    /// Which of the texts.
    index: usize,
    /// How well it answers the query, from 0 to 1.
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// Either shape.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "each is written by itself")]
pub(crate) enum Ranks {
    Documents(RerankResponse),
    Texts(Vec<Rank>),
}

/// A request for the scores of pairs.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ScoreRequest {
    /// The name of the model, as `GET /v1/models` lists it.
    model: Option<String>,
    /// A query, or one for each document. If it begins with the prompt frame of the model card, the
    /// frame is taken off the query and off its documents.
    text_1: Option<Strings>,
    /// The same.
    queries: Option<Strings>,
    /// A document, or several.
    text_2: Option<Strings>,
    /// The same.
    documents: Option<Strings>,
    /// What is asked of a document, in a sentence, best in English.
    instruct: Option<String>,
    /// The same.
    instruction: Option<String>,
    /// How many tokens each prompt has at most, from the system message to the answer: a longer one loses the
    /// end of its document. Default, and with -1: as many as the model reads.
    #[schema(minimum = -1)]
    truncate_prompt_tokens: Option<i64>,
    /// Whether scores are logits instead of probabilities.
    raw_scores: Option<bool>,
}

/// The scores of pairs, in order.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ScoreResponse {
    /// The id of the answer.
    id: String,
    #[schema(example = "list")]
    object: &'static str,
    model: String,
    data: Vec<PairScore>,
    usage: Usage,
}

/// The score of a pair.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PairScore {
    /// Which of the pairs.
    index: usize,
    #[schema(example = "score")]
    object: &'static str,
    /// How well the document answers the query, from 0 to 1.
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

/// Documents by how well they answer a query, in the shape of Jina, Cohere and vLLM for `documents`, of
/// text-embeddings-inference for `texts`. `documents` are given back unless `return_documents` is false, as Jina
/// and vLLM do. `/rerank` is the same.
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
    Json(request): Json<RerankRequest>,
) -> Result<Response, ApiError> {
    answer(&state, request, true).await
}

/// The same, except that `documents` are given back only if `return_documents` is true, as Cohere does.
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
    Json(request): Json<RerankRequest>,
) -> Result<Response, ApiError> {
    answer(&state, request, false).await
}

/// Ranks documents. `returns` says whether `documents` are given back where the request does not say.
async fn answer(
    state: &AppState,
    request: RerankRequest,
    returns: bool,
) -> Result<Response, ApiError> {
    let model = state.served()?.reranker(request.model.as_deref())?;
    let documents = request.documents;
    let documents = documents.map(|all| all.into_iter().map(Document::into_text).collect());
    let (name, documents) = either(("documents", documents), ("texts", request.texts))?;
    check_count(name, documents.len(), state.options().max_client_batch_size)?;
    let top_n = top_n_of(request.top_n, request.top_k)?;
    let is_returned = request.return_documents.or(request.return_text);
    let is_returned = is_returned.unwrap_or(returns && name == "documents");
    let texts = if is_returned { documents.clone() } else { Vec::new() };
    let pairs = Pairs {
        queries: (vec![request.query], Field::single("query")),
        documents: (documents, Field::list(name)),
        instruct: instruct_of(request.instruct, request.instruction)?,
    };
    let cut = Cut {
        truncate_prompt_tokens: request.truncate_prompt_tokens,
        max_tokens_per_doc: request.max_tokens_per_doc.filter(|&n| n > 0),
    };
    let scores = pairs.score(state, model, cut).await?;
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
        return Ok(Answer(ranks.collect::<Vec<_>>()).into_response());
    }
    let results = ranked.iter().map(|document| RankResult {
        index: document.index,
        relevance_score: score(document),
        document: texts.get(document.index).map(|text| RankedText { text: text.clone() }),
    });
    let (id, usage) = (new_id("rerank"), Usage::new(scores.n_tokens()));
    let (model, results) = (model.name.clone(), results.collect());
    Ok(Answer(RerankResponse { id, model, usage, results }).into_response())
}

/// The scores of pairs: of one query with each document, or of queries and documents at the same places.
/// `/score` is the same.
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
    Json(request): Json<ScoreRequest>,
) -> Result<Answer<ScoreResponse>, ApiError> {
    let model = state.served()?.reranker(request.model.as_deref())?;
    let limit = state.options().max_client_batch_size;
    let (first, queries) = either(("text_1", request.text_1), ("queries", request.queries))?;
    let (second, documents) = either(("text_2", request.text_2), ("documents", request.documents))?;
    let (queries, documents) =
        (queries.into_texts(first, limit)?, documents.into_texts(second, limit)?);
    let (n_queries, n_documents) = (queries.0.len(), documents.0.len());
    if n_queries != 1 && n_queries != n_documents {
        let message = format!(
            "{first} has {n_queries} items and {second} {n_documents}: expected one in {first}, or as many in both"
        );
        return Err(ApiError::invalid(message).about(first));
    }
    let instruct = instruct_of(request.instruct, request.instruction)?;
    let pairs = Pairs { queries, documents, instruct };
    let truncate_prompt_tokens = request.truncate_prompt_tokens;
    let scores =
        pairs.score(&state, model, Cut { truncate_prompt_tokens, ..Cut::default() }).await?;
    let is_raw = request.raw_scores.unwrap_or(false);
    let values = if is_raw { scores.logits().to_vec() } else { scores.to_vec() };
    let values = values.into_iter().enumerate();
    let data = values.map(|(index, score)| PairScore { index, object: "score", score }).collect();
    let (id, usage) = (new_id("score"), Usage::new(scores.n_tokens()));
    Ok(Answer(ScoreResponse { id, object: "list", model: model.name.clone(), data, usage }))
}

/// The one of two fields that is there, and its name.
fn either<T>(
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

/// The instruction of a request that may have one in either field.
fn instruct_of(
    instruct: Option<String>,
    instruction: Option<String>,
) -> Result<Option<(Field, String)>, ApiError> {
    if instruct.is_none() && instruction.is_none() {
        return Ok(None);
    }
    let (name, instruct) = either(("instruct", instruct), ("instruction", instruction))?;
    Ok(Some((Field::single(name), instruct)))
}

/// How many documents are asked for, in either field. 0 is as good as absent.
fn top_n_of(top_n: Option<usize>, top_k: Option<usize>) -> Result<Option<usize>, ApiError> {
    match (top_n.filter(|&n| n > 0), top_k.filter(|&n| n > 0)) {
        (Some(top_n), Some(top_k)) if top_n != top_k => {
            let message = format!(
                "top_n is {top_n} and top_k is {top_k}, which are two names for the same: send one of them"
            );
            Err(ApiError::invalid(message).about("top_n"))
        }
        (top_n, top_k) => Ok(top_n.or(top_k)),
    }
}

fn new_id(kind: &str) -> String {
    format!("{kind}-{}", Uuid::new_v4().simple())
}
