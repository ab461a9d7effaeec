//! The handlers of the routes, and the code that several handlers share.

pub(crate) mod cohere;
pub(crate) mod embeddings;
pub(crate) mod models;
pub(crate) mod pages;
mod pairs;
pub(crate) mod probes;
pub(crate) mod rerank;
pub(crate) mod root;
pub(crate) mod tei;

use qwen3_embed::{EmbedOptions, Embedder, Embeddings, Error, Overflow, Prompt, Text, Tokenizer};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::AppState;
use crate::error::{ApiError, Field};
use crate::state::ServedModel;

/// The side on which a text that is too long is truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub(crate) enum Side {
    /// Removes the beginning of the text, including an instruction.
    Left,
    /// Removes the end of the text.
    #[default]
    Right,
}

impl TryFrom<String> for Side {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            // text-embeddings-inference writes these names with a capital letter.
            "left" | "Left" => Ok(Self::Left),
            "right" | "Right" => Ok(Self::Right),
            _ => Err(format!("expected `left` or `right`, got `{name}`")),
        }
    }
}

/// Token counts of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Tokens of the request's texts, including instructions and end-of-text tokens.
    prompt_tokens: usize,
    /// The same as `prompt_tokens`, because no tokens are generated.
    total_tokens: usize,
}

impl Usage {
    pub(crate) fn new(n_tokens: &[usize]) -> Self {
        let n_tokens = n_tokens.iter().sum();
        Self { prompt_tokens: n_tokens, total_tokens: n_tokens }
    }
}

/// A new id of a response. `kind` is the beginning of the id.
fn new_id(kind: &str) -> String {
    format!("{kind}-{}", Uuid::new_v4().simple())
}

/// The prompt with this name. Every model has the prompts `query` and `document`.
pub(crate) fn prompt_named(name: &str) -> Prompt {
    match name {
        "query" => Prompt::Query,
        "document" => Prompt::Document,
        _ => Prompt::Named(name.to_owned()),
    }
}

/// Refuses token ids that do not end with the end-of-text token, because their vectors would be meaningless.
fn check_end_of_text(
    tokenizer: &Tokenizer,
    texts: &[Text<'_>],
    field: Field,
) -> Result<(), ApiError> {
    let end = tokenizer.end_of_text();
    let lacks_end =
        |text: &Text<'_>| matches!(text, Text::Tokens(tokens) if tokens.last() != Some(&end));
    match texts.iter().position(lacks_end) {
        Some(index) if tokenizer.appends_end_of_text() => {
            let name = field.at(index);
            let message = format!(
                "{name} does not end with this model's end-of-text token {end}, so its token ids may come from \
                 another tokenizer; in LangChain, set check_embedding_ctx_length=False"
            );
            Err(ApiError::invalid(message).about(name))
        }
        _ => Ok(()),
    }
}

/// Refuses texts that have more white space in a row than the tokenizer supports. This function is used for texts that
/// become part of a longer text, so that the error names the right field.
pub(crate) fn check_white_space<'a>(
    texts: impl IntoIterator<Item = &'a String>,
    field: Field,
) -> Result<(), ApiError> {
    for (index, text) in texts.into_iter().enumerate() {
        qwen3_embed::check_white_space(text)
            .map_err(|error| Error::from(error).map_text_index(|_| index))
            .map_err(|error| ApiError::from_model(error, field))?;
    }
    Ok(())
}

/// The token limit that a request sets with vLLM's field `truncate_prompt_tokens`. -1 stands for the model's limit.
fn tokens_kept(requested: Option<i64>, limit: usize) -> Result<Option<usize>, ApiError> {
    let Some(requested) = requested else { return Ok(None) };
    let kept = if requested == -1 { limit } else { usize::try_from(requested).unwrap_or(0) };
    if (1..=limit).contains(&kept) {
        return Ok(Some(kept));
    }
    let name = "truncate_prompt_tokens";
    let message = format!("{name} is {requested}; expected 1 to {limit}, or -1 for {limit}");
    Err(ApiError::invalid(message).about(name))
}

/// The optional fields of all requests that embed texts.
#[derive(Debug, Default)]
pub(crate) struct EmbedParameters {
    pub(crate) instruct: Option<String>,
    pub(crate) prompt_name: Option<String>,
    pub(crate) dimensions: Option<usize>,
    pub(crate) truncate: Option<bool>,
    pub(crate) truncation_side: Option<Side>,
    pub(crate) truncate_prompt_tokens: Option<i64>,
    pub(crate) normalize: Option<bool>,
}

impl EmbedParameters {
    /// Embeds texts. `field` is the request field that contained them.
    pub(crate) async fn embed(
        self,
        state: &AppState,
        model: &ServedModel<Embedder>,
        texts: Vec<Text<'static>>,
        field: Field,
    ) -> Result<Embeddings, ApiError> {
        let prompt = self.prompt(state, &texts)?;
        check_end_of_text(model.service.model().tokenizer(), &texts, field)?;
        let (overflow, max_tokens) = self.overflow(state, model)?;
        let mut options = EmbedOptions::new().prompt(prompt).overflow(overflow);
        options.dimensions = self.dimensions;
        options.max_tokens = max_tokens;
        options.normalize = self.normalize;
        let embedded = model.service.embed(texts, options).await;
        let embedded = embedded.map_err(|error| state.api_error(error, field))?;
        state.metrics().stages("embedder", embedded.timings);
        Ok(embedded.embeddings)
    }

    /// The overflow policy, and the token limit if the request sets one.
    fn overflow(
        &self,
        state: &AppState,
        model: &ServedModel<Embedder>,
    ) -> Result<(Overflow, Option<usize>), ApiError> {
        let limit = model.service.model().max_tokens();
        let max_tokens = tokens_kept(self.truncate_prompt_tokens, limit)?;
        if max_tokens.is_some() && self.truncate == Some(false) {
            let message = "`truncate_prompt_tokens` cuts texts, but `truncate` is false: send only one of them";
            return Err(ApiError::invalid(message).about("truncate_prompt_tokens"));
        }
        let is_cut = max_tokens.is_some() || self.truncate.unwrap_or(state.options().truncate);
        let overflow = match (is_cut, self.truncation_side.unwrap_or_default()) {
            (false, _) => Overflow::Error,
            (true, Side::Left) => Overflow::TruncateLeft,
            (true, Side::Right) => Overflow::TruncateRight,
        };
        Ok((overflow, max_tokens))
    }

    fn prompt(&self, state: &AppState, texts: &[Text<'_>]) -> Result<Prompt, ApiError> {
        let requested = match (&self.instruct, &self.prompt_name) {
            (Some(_), Some(_)) => {
                let message =
                    "`instruct` and `prompt_name` both set the prompt: send only one of them";
                return Err(ApiError::invalid(message).about("instruct"));
            }
            (Some(instruct), None) => {
                check_white_space([instruct], Field::single("instruct"))?;
                Some(("instruct", Prompt::Instruction(instruct.clone())))
            }
            (None, Some(name)) => Some(("prompt_name", prompt_named(name))),
            (None, None) => None,
        };
        let has_tokens = texts.iter().any(|text| matches!(text, Text::Tokens(_)));
        match (requested, has_tokens) {
            (Some((param, _)), true) => {
                let message =
                    format!("`{param}` needs texts: token ids are embedded without a prompt");
                Err(ApiError::invalid(message).about(param))
            }
            (Some((_, prompt)), false) => Ok(prompt),
            (None, _) => {
                let default = state.options().default_instruct.clone();
                Ok(default.map_or(Prompt::Document, Prompt::Instruction))
            }
        }
    }
}
