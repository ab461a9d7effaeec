//! The routes of text-embeddings-inference.

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json as Answer};
use qwen3_embed::{
    Embedder, Piece, Pooling, Precision, Reranker, SpecialTokens, Text, Tokenizer, cosine,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;
use utoipa::ToSchema;

use super::{Side, Wishes, prompt_named};
use crate::AppState;
use crate::body::Json;
use crate::error::{ApiError, ErrorBody, Field};
use crate::input::{Ids, Input, Strings, check_count, check_not_empty, object, optional_object};
use crate::middleware::Permit;
use crate::respond::{self, Rows};
use crate::state::{Named, Served};

/// A request for bare vectors.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct EmbedRequest {
    /// What is embedded.
    inputs: Input,
    /// Whether a text that is too long is cut. Default: it is an error.
    truncate: Option<bool>,
    /// At which end it is cut. Default: `right`.
    truncation_direction: Option<Side>,
    /// What stands before the texts: `query`, `document`, or the name of one of the model's prompts.
    prompt_name: Option<String>,
    /// Whether vectors are brought to unit length. Default: true.
    normalize: Option<bool>,
    /// How many dimensions the vectors have. Default: the model's hidden size.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
}

/// A request for the similarity of a text to others.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct SimilarityRequest {
    #[serde(deserialize_with = "object")]
    inputs: SimilarityInputs,
    #[serde(default, deserialize_with = "optional_object")]
    parameters: Option<SimilarityParameters>,
}

/// A text and others.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct SimilarityInputs {
    /// The text that the others are compared with.
    #[schema(min_length = 1)]
    source_sentence: String,
    /// The others.
    #[schema(min_items = 1)]
    sentences: Vec<String>,
}

/// How they are embedded.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct SimilarityParameters {
    /// Whether a text that is too long is cut. Default: it is an error.
    truncate: Option<bool>,
    /// At which end it is cut. Default: `right`.
    truncation_direction: Option<Side>,
    /// What stands before the texts.
    prompt_name: Option<String>,
}

/// A request for tokens.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct TokenizeRequest {
    /// What is tokenized.
    inputs: Strings,
    /// Whether the end-of-text token is appended. Default: true.
    add_special_tokens: Option<bool>,
    /// What stands before the texts.
    prompt_name: Option<String>,
}

/// A token.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Token {
    id: u32,
    /// The characters that it stands for.
    text: String,
    special: bool,
    /// Where they begin in the text, in characters; `null` for special tokens.
    start: Option<usize>,
    /// Where they end.
    stop: Option<usize>,
}

/// A request for the text of tokens.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct DecodeRequest {
    /// The tokens of a text, or of several.
    ids: Ids,
    /// Whether special tokens are left out. Default: true.
    skip_special_tokens: Option<bool>,
}

/// What is served, in the shape of text-embeddings-inference, and in `embedder` and `reranker` what else
/// there is to know.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Info {
    model_id: String,
    model_sha: Option<String>,
    model_dtype: &'static str,
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
}

/// The embedding model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EmbedderInfo {
    id: String,
    dimensions: usize,
    min_dimensions: usize,
    max_input_length: usize,
    prompts: BTreeMap<String, String>,
    default_instruct: Option<String>,
}

/// The reranker.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RerankerInfo {
    id: String,
    max_input_length: usize,
}

/// Bare vectors.
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
    Json(request): Json<EmbedRequest>,
) -> Result<Response, ApiError> {
    let model = state.served()?.embedder(None)?;
    let limit = state.options().max_client_batch_size;
    let (texts, field) = request.inputs.into_texts("inputs", limit)?;
    let wishes = Wishes {
        prompt_name: request.prompt_name,
        dimensions: request.dimensions,
        truncate: request.truncate,
        truncation_side: request.truncation_direction,
        normalize: request.normalize,
        ..Wishes::default()
    };
    let embeddings = wishes.embed(&state, model, texts, field).await?;
    Ok(respond::json("[", embeddings, Rows::Bare, "]".to_owned()))
}

/// The cosine similarity of a text to each of others.
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
    Json(request): Json<SimilarityRequest>,
) -> Result<Answer<Vec<f32>>, ApiError> {
    let model = state.served()?.embedder(None)?;
    let SimilarityInputs { source_sentence, sentences } = request.inputs;
    let name = "inputs.sentences";
    check_count(name, sentences.len(), state.options().max_client_batch_size)?;
    let parameters = request.parameters.unwrap_or_default();
    let wishes = Wishes {
        prompt_name: parameters.prompt_name,
        truncate: parameters.truncate,
        truncation_side: parameters.truncation_direction,
        ..Wishes::default()
    };
    // The source comes last, so that the others keep their index in messages.
    let source = sentences.len();
    let field = Field::list(name).with_last(source, "inputs.source_sentence");
    let texts: Vec<Text<'static>> =
        sentences.into_iter().chain([source_sentence]).map(Text::from).collect();
    check_not_empty(&texts, Text::is_empty, field)?;
    let embeddings = wishes.embed(&state, model, texts, field).await?;
    let similarity = |index| cosine(embeddings.row(source), embeddings.row(index));
    let similarities: Result<Vec<f32>, _> = (0..source).map(similarity).collect();
    let similarities = similarities.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(Answer(similarities))
}

/// The tokens of texts.
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
    Json(request): Json<TokenizeRequest>,
) -> Result<Answer<Vec<Vec<Token>>>, ApiError> {
    let limit = state.options().max_client_batch_size;
    let (texts, field) = request.inputs.into_texts("inputs", limit)?;
    let tokenizing = Tokenizing::of(state.served()?)?;
    let prompt = tokenizing.prompt(request.prompt_name.as_deref())?.into_owned();
    let adds_end = request.add_special_tokens.unwrap_or(true);
    for_each(permit, texts, move |index, text| {
        let tokenizing = Tokenizing::of(state.served()?)?;
        let tokens = tokenizing.tokens(&[&prompt, text.as_str()].concat(), adds_end);
        tokens.map_err(|error| ApiError::from_model(error.map_text_index(|_| index), field))
    })
    .await
}

/// The texts of tokens.
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
    Json(request): Json<DecodeRequest>,
) -> Result<Answer<Vec<String>>, ApiError> {
    let (texts, field) = match request.ids {
        Ids::One(tokens) => (vec![tokens], Field::single("ids")),
        Ids::Many(texts) => (texts, Field::list("ids")),
    };
    check_count("ids", texts.len(), state.options().max_client_batch_size)?;
    state.served()?;
    let skips_special = request.skip_special_tokens.unwrap_or(true);
    for_each(permit, texts, move |index, tokens| {
        let text = Tokenizing::of(state.served()?)?.tokenizer.decode(tokens, skips_special);
        text.map_err(|error| {
            let name = field.at(index);
            ApiError::invalid(format!("{name}: {error}")).about(name)
        })
    })
    .await
}

/// What is served.
#[utoipa::path(
    get,
    path = "/info",
    tag = "text-embeddings-inference",
    responses((status = 200, body = Info), (status = 503, body = ErrorBody)),
)]
pub(crate) async fn info(State(state): State<AppState>) -> Result<Answer<Info>, ApiError> {
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
    Ok(Answer(Info {
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
    }))
}

impl EmbedderInfo {
    fn new(model: &Named<Embedder>, default_instruct: Option<String>) -> Self {
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
    fn new(model: &Named<Reranker>) -> Self {
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

/// As text-embeddings-inference calls it, where it knows it.
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

fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::F32 => "float32",
        Precision::Bf16 => "bfloat16",
        Precision::Int8 => "int8",
        _ => "auto",
    }
}

/// What tokenizes for the model, for the embedder if there are two.
#[derive(Clone, Copy)]
struct Tokenizing<'a> {
    tokenizer: &'a Tokenizer,
    special_tokens: SpecialTokens,
    embedder: Option<&'a Embedder>,
}

impl<'a> Tokenizing<'a> {
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

    /// What stands before texts under the prompt of this name.
    fn prompt(self, name: Option<&str>) -> Result<Cow<'a, str>, ApiError> {
        match (name, self.embedder) {
            (None, _) => Ok("".into()),
            (Some(name), Some(embedder)) => embedder
                .prompt_text(&prompt_named(name))
                .map_err(|error| ApiError::from_model(error, Field::single("prompt_name"))),
            (Some(_), None) => {
                Err(ApiError::invalid("a reranker has no prompts").about("prompt_name"))
            }
        }
    }

    /// The tokens of a text.
    fn tokens(self, text: &str, adds_end: bool) -> Result<Vec<Token>, qwen3_embed::Error> {
        let mut pieces = self.tokenizer.pieces(text, self.special_tokens)?;
        if !adds_end {
            pieces.pop_if(|piece| piece.id == self.tokenizer.end_of_text());
        }
        Ok(pieces.into_iter().map(Token::from).collect())
    }
}

/// Works on each item, and its index, on a thread that may take its time, until nobody waits any more.
async fn for_each<T: Send + 'static, U: Send + 'static>(
    permit: Permit,
    items: Vec<T>,
    work: impl Fn(usize, &T) -> Result<U, ApiError> + Send + 'static,
) -> Result<Answer<Vec<U>>, ApiError> {
    let (sender, receiver) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let items = items.iter().enumerate().take_while(|_| !sender.is_closed());
        let done = items.map(|(index, item)| work(index, item)).collect();
        // Before the answer is there: whoever has it may ask again at once.
        drop(permit);
        // The client may have gone.
        let _ = sender.send(done);
    });
    let done: Result<Result<Vec<U>, ApiError>, _> = receiver.await;
    done.map_err(|error| ApiError::internal(error.to_string()))?.map(Answer)
}
