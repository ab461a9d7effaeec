//! The routes of the API of text-embeddings-inference.

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use qwen3_embed::{
    Embedder, Piece, Pooling, Precision, Reranker, SpecialTokens, Text, Tokenizer, cosine,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;
use utoipa::ToSchema;

use super::{EmbedParameters, Side, prompt_named};
use crate::AppState;
use crate::body::JsonBody;
use crate::error::{ApiError, ErrorBody, Field};
use crate::input::{Ids, Input, Strings, check_count, check_not_empty, object, optional_object};
use crate::respond::{self, Format, Rows};
use crate::state::{Permit, Served, ServedModel};

/// Request for embeddings.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct EmbedRequest {
    /// Texts to embed.
    inputs: Input,
    /// Whether a text that is too long is truncated. If not, such a text is an error. Default: `false`, or `true` if
    /// the server was started with `--truncate`.
    truncate: Option<bool>,
    /// The side on which texts are truncated. Default: `right`.
    truncation_direction: Option<Side>,
    /// Name of the prompt that is put before the texts: `query`, `document`, or another prompt of the model. Default:
    /// `document`, unless the server was started with `--default-instruct`.
    prompt_name: Option<String>,
    /// Whether vectors are normalized to unit length. Default: `true`.
    normalize: Option<bool>,
    /// Number of dimensions of the vectors. Default: the model's hidden size.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
}

/// Request for the similarities of one text to other texts.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct SimilarityRequest {
    #[serde(deserialize_with = "object")]
    inputs: SimilarityInputs,
    #[serde(default, deserialize_with = "optional_object")]
    parameters: Option<SimilarityParameters>,
}

/// The texts to compare.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct SimilarityInputs {
    /// The text that is compared with each of `sentences`.
    #[schema(min_length = 1)]
    source_sentence: String,
    /// The texts that `source_sentence` is compared with.
    #[schema(min_items = 1)]
    sentences: Vec<String>,
}

/// Parameters of the embeddings of a similarity request.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct SimilarityParameters {
    /// Whether a text that is too long is truncated. If not, such a text is an error. Default: `false`, or `true` if
    /// the server was started with `--truncate`.
    truncate: Option<bool>,
    /// The side on which texts are truncated. Default: `right`.
    truncation_direction: Option<Side>,
    /// Name of the prompt that is put before the texts. Default: `document`, unless the server was started with
    /// `--default-instruct`.
    prompt_name: Option<String>,
}

/// Request to tokenize texts.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct TokenizeRequest {
    /// Texts to tokenize.
    inputs: Strings,
    /// Whether the end-of-text token is appended. Default: `true`.
    add_special_tokens: Option<bool>,
    /// Name of the prompt that is put before the texts. Default: none.
    prompt_name: Option<String>,
}

/// A token of a text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Token {
    id: u32,
    /// The part of the text that the token stands for.
    text: String,
    special: bool,
    /// Start of the part, in characters; `null` for special tokens.
    start: Option<usize>,
    /// End of the part, in characters; `null` for special tokens.
    stop: Option<usize>,
}

/// Request to turn token ids into text.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct DecodeRequest {
    /// Token ids of one or more texts.
    ids: Ids,
    /// Whether special tokens are left out. Default: `true`.
    skip_special_tokens: Option<bool>,
}

/// Information about the models and the server: the fields of text-embeddings-inference, and more details about the
/// models in `embedder`, `reranker` and `notice`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Info {
    model_id: String,
    model_sha: Option<String>,
    model_dtype: String,
    #[schema(value_type = Object)]
    model_type: serde_json::Value,
    max_concurrent_requests: usize,
    max_input_length: usize,
    max_batch_tokens: usize,
    max_batch_requests: Option<usize>,
    max_client_batch_size: usize,
    auto_truncate: bool,
    tokenization_workers: usize,
    version: &'static str,
    sha: Option<String>,
    docker_label: Option<String>,
    embedder: Option<EmbedderInfo>,
    reranker: Option<RerankerInfo>,
    /// A sentence about the models for the users of the server.
    notice: Option<String>,
}

/// Information about the embedding model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbedderInfo {
    id: String,
    dimensions: usize,
    min_dimensions: usize,
    max_input_length: usize,
    prompts: BTreeMap<String, String>,
    default_instruct: Option<String>,
}

/// Information about the reranker.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RerankerInfo {
    id: String,
    max_input_length: usize,
}

/// Embeds texts and returns a list of vectors.
#[utoipa::path(
    post,
    path = "/embed",
    tag = "text-embeddings-inference",
    request_body = EmbedRequest,
    responses(
        (status = 200, body = Vec<Vec<f32>>),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn embed(
    State(state): State<AppState>,
    JsonBody(request): JsonBody<EmbedRequest>,
) -> Result<Response, ApiError> {
    let model = state.served()?.embedder(None)?;
    let limit = state.options().max_client_batch_size;
    let (texts, field) = request.inputs.into_texts("inputs", limit)?;
    let parameters = EmbedParameters {
        prompt_name: request.prompt_name,
        dimensions: request.dimensions,
        truncate: request.truncate,
        truncation_side: request.truncation_direction,
        normalize: request.normalize,
        ..EmbedParameters::default()
    };
    let embeddings = parameters.embed(&state, model, texts, field).await?;
    let section = ("[".to_owned(), Rows::Bare(Format::Floats));
    Ok(respond::json([section], embeddings, "]".to_owned()))
}

/// Returns the cosine similarity of one text to each of the others.
#[utoipa::path(
    post,
    path = "/similarity",
    tag = "text-embeddings-inference",
    request_body = SimilarityRequest,
    responses(
        (status = 200, body = Vec<f32>),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn similarity(
    State(state): State<AppState>,
    JsonBody(request): JsonBody<SimilarityRequest>,
) -> Result<Json<Vec<f32>>, ApiError> {
    let model = state.served()?.embedder(None)?;
    let SimilarityInputs { source_sentence, sentences } = request.inputs;
    let name = "inputs.sentences";
    check_count(name, sentences.len(), state.options().max_client_batch_size)?;
    let requested = request.parameters.unwrap_or_default();
    let parameters = EmbedParameters {
        prompt_name: requested.prompt_name,
        truncate: requested.truncate,
        truncation_side: requested.truncation_direction,
        ..EmbedParameters::default()
    };
    // The source sentence comes last, so that error messages have the indices of the request.
    let source = sentences.len();
    let field = Field::list(name).with_last(source, "inputs.source_sentence");
    let texts: Vec<Text<'static>> =
        sentences.into_iter().chain([source_sentence]).map(Text::from).collect();
    check_not_empty(&texts, Text::is_empty, field)?;
    let embeddings = parameters.embed(&state, model, texts, field).await?;
    let similarity = |index| cosine(embeddings.row(source), embeddings.row(index));
    let similarities: Result<Vec<f32>, _> = (0..source).map(similarity).collect();
    let similarities = similarities.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Json(similarities))
}

/// Tokenizes texts.
#[utoipa::path(
    post,
    path = "/tokenize",
    tag = "text-embeddings-inference",
    request_body = TokenizeRequest,
    responses(
        (status = 200, body = Vec<Vec<Token>>),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn tokenize(
    State(state): State<AppState>,
    Extension(permit): Extension<Permit>,
    JsonBody(request): JsonBody<TokenizeRequest>,
) -> Result<Json<Vec<Vec<Token>>>, ApiError> {
    let limit = state.options().max_client_batch_size;
    let (texts, field) = request.inputs.into_texts("inputs", limit)?;
    let codec = TextCodec::of(state.served()?)?;
    let prompt = codec.prompt(request.prompt_name.as_deref())?.into_owned();
    let adds_end = request.add_special_tokens.unwrap_or(true);
    for_each(permit, texts, move |index, text| {
        let codec = TextCodec::of(state.served()?)?;
        let tokens = codec.tokens(&[&prompt, text.as_str()].concat(), adds_end);
        tokens.map_err(|error| ApiError::from_model(error.map_text_index(|_| index), field))
    })
    .await
}

/// Turns token ids into texts.
#[utoipa::path(
    post,
    path = "/decode",
    tag = "text-embeddings-inference",
    request_body = DecodeRequest,
    responses(
        (status = 200, body = Vec<String>),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn decode(
    State(state): State<AppState>,
    Extension(permit): Extension<Permit>,
    JsonBody(request): JsonBody<DecodeRequest>,
) -> Result<Json<Vec<String>>, ApiError> {
    let (texts, field) = match request.ids {
        Ids::One(tokens) => (vec![tokens], Field::single("ids")),
        Ids::Many(texts) => (texts, Field::list("ids")),
    };
    check_count("ids", texts.len(), state.options().max_client_batch_size)?;
    state.served()?;
    let skip_special = request.skip_special_tokens.unwrap_or(true);
    for_each(permit, texts, move |index, tokens| {
        let text = TextCodec::of(state.served()?)?.tokenizer.decode(tokens, skip_special);
        text.map_err(|error| {
            let name = field.at(index);
            ApiError::invalid(format!("{name}: {error}")).about(name)
        })
    })
    .await
}

/// Returns information about the models and the server.
#[utoipa::path(
    get,
    path = "/info",
    tag = "text-embeddings-inference",
    responses((status = 200, body = Info), (status = 503, body = ErrorBody)),
)]
pub(crate) async fn info(State(state): State<AppState>) -> Result<Json<Info>, ApiError> {
    let (served, options) = (state.served()?, state.options());
    let embedder = served.embedder.as_ref();
    let reranker = served.reranker.as_ref();
    let (precision, max_input_length, model_type) = match (embedder, reranker) {
        (Some(embedder), _) => {
            let model = embedder.service.model();
            let model_type = json!({ "embedding": { "pooling": pooling_name(model.pooling()) } });
            (model.precision(), model.max_tokens(), model_type)
        }
        (None, _) => {
            let model = served.reranker(None)?.service.model();
            let labels = json!({ "id2label": { "0": "LABEL_0" }, "label2id": { "LABEL_0": 0 } });
            (model.precision(), model.max_tokens(), json!({ "reranker": labels }))
        }
    };
    Ok(Json(Info {
        model_id: served.names().first().copied().unwrap_or_default().to_owned(),
        model_sha: None,
        model_dtype: precision_name(precision),
        model_type,
        max_concurrent_requests: options.max_concurrent_requests,
        max_input_length,
        max_batch_tokens: served.options.batch_tokens,
        max_batch_requests: None,
        max_client_batch_size: options.max_client_batch_size,
        auto_truncate: options.truncate,
        tokenization_workers: served.options.tokenizer_threads,
        version: env!("CARGO_PKG_VERSION"),
        sha: None,
        docker_label: None,
        embedder: embedder.map(|model| EmbedderInfo::new(model, options.default_instruct.clone())),
        reranker: reranker.map(RerankerInfo::new),
        notice: options.notice.clone(),
    }))
}

impl EmbedderInfo {
    fn new(model: &ServedModel<Embedder>, default_instruct: Option<String>) -> Self {
        let embedder = model.service.model();
        Self {
            id: model.name.clone(),
            dimensions: embedder.max_dimensions(),
            min_dimensions: embedder.min_dimensions(),
            max_input_length: embedder.max_tokens(),
            prompts: embedder.prompts().clone(),
            default_instruct,
        }
    }
}

impl RerankerInfo {
    fn new(model: &ServedModel<Reranker>) -> Self {
        let max_input_length = model.service.model().max_tokens();
        Self { id: model.name.clone(), max_input_length }
    }
}

impl From<Piece> for Token {
    fn from(piece: Piece) -> Self {
        let place = |at| (!piece.special).then_some(at);
        let (start, stop) = (place(piece.start), place(piece.end));
        Self { id: piece.id, text: piece.text, special: piece.special, start, stop }
    }
}

/// The name of a pooling in text-embeddings-inference, or in sentence-transformers if text-embeddings-inference does
/// not support the pooling.
fn pooling_name(pooling: Pooling) -> &'static str {
    match pooling {
        Pooling::LastToken => "last_token",
        Pooling::FirstToken => "cls",
        Pooling::Mean => "mean",
        Pooling::MeanSqrtLength => "mean_sqrt_len",
        Pooling::WeightedMean => "weightedmean",
        Pooling::Max => "max",
        _ => "other",
    }
}

/// The name of a precision in torch, or our own for a precision that torch does not have.
fn precision_name(precision: Precision) -> String {
    match precision {
        Precision::F32 => "float32".to_owned(),
        Precision::Bf16 => "bfloat16".to_owned(),
        precision => precision.to_string(),
    }
}

/// The tokenizer of the embedder, or of the reranker if there is no embedder.
#[derive(Clone, Copy)]
struct TextCodec<'a> {
    tokenizer: &'a Tokenizer,
    special_tokens: SpecialTokens,
    embedder: Option<&'a Embedder>,
}

impl<'a> TextCodec<'a> {
    fn of(served: &'a Served) -> Result<Self, ApiError> {
        if let Some(model) = &served.embedder {
            let embedder = model.service.model();
            let (tokenizer, special_tokens) = (embedder.tokenizer(), embedder.special_tokens());
            return Ok(Self { tokenizer, special_tokens, embedder: Some(embedder) });
        }
        let reranker = served.reranker(None)?.service.model();
        let special_tokens = SpecialTokens::PlainText;
        Ok(Self { tokenizer: reranker.tokenizer(), special_tokens, embedder: None })
    }

    /// The text of the prompt with this name.
    fn prompt(self, name: Option<&str>) -> Result<Cow<'a, str>, ApiError> {
        match (name, self.embedder) {
            (None, _) => Ok("".into()),
            (Some(name), Some(embedder)) => embedder
                .prompt_text(&prompt_named(name))
                .map_err(|error| ApiError::from_model(error, Field::single("prompt_name"))),
            (Some(_), None) => {
                Err(ApiError::invalid("a reranker has no named prompts").about("prompt_name"))
            }
        }
    }

    /// Tokenizes a text.
    fn tokens(self, text: &str, adds_end: bool) -> Result<Vec<Token>, qwen3_embed::Error> {
        let mut pieces = self.tokenizer.pieces(text, self.special_tokens)?;
        if !adds_end {
            pieces.pop_if(|piece| piece.id == self.tokenizer.end_of_text());
        }
        Ok(pieces.into_iter().map(Token::from).collect())
    }
}

/// Runs `work` for each item and its index, on a blocking thread. Stops before the next item if the client has
/// disconnected.
async fn for_each<T: Send + 'static, U: Send + 'static>(
    permit: Permit,
    items: Vec<T>,
    work: impl Fn(usize, &T) -> Result<U, ApiError> + Send + 'static,
) -> Result<Json<Vec<U>>, ApiError> {
    let (sender, receiver) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let items = items.iter().enumerate().take_while(|_| !sender.is_closed());
        let done = items.map(|(index, item)| work(index, item)).collect();
        // The permit is dropped before the result is sent, so that a client that gets the response can send the next
        // request immediately.
        drop(permit);
        // Sending fails if the client has disconnected.
        let _ = sender.send(done);
    });
    let done: Result<Result<Vec<U>, ApiError>, _> = receiver.await;
    done.map_err(|error| ApiError::internal(error.to_string()))?.map(Json)
}
