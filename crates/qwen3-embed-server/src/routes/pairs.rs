//! Scores the pairs of a query and a document in a request.

use qwen3_embed::{
    DEFAULT_INSTRUCTION, QueryFrame, Reranker, ScoreOptions, Scores, TextError, unframe_document,
};

use super::{check_white_space, tokens_kept};
use crate::AppState;
use crate::error::{ApiError, Field};
use crate::state::ServedModel;

/// Queries and documents of a request, with the fields that contain them.
#[derive(Debug)]
pub(super) struct Pairs {
    /// One query for all documents, or one query for each document.
    pub(super) queries: (Vec<String>, Field),
    pub(super) documents: (Vec<String>, Field),
    pub(super) instruct: Option<(Field, String)>,
}

/// Limits on the length of prompts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PromptLimits {
    /// Maximum number of tokens of each prompt, as in vLLM; -1 stands for the model's limit.
    pub(super) truncate_prompt_tokens: Option<i64>,
    /// Maximum number of tokens of each document.
    pub(super) max_tokens_per_doc: Option<usize>,
}

impl Pairs {
    /// Scores the pairs.
    pub(super) async fn score(
        self,
        state: &AppState,
        model: &ServedModel<Reranker>,
        limits: PromptLimits,
    ) -> Result<Scores, ApiError> {
        let Self { queries, documents, instruct } = self.unframed()?;
        let (instruct_field, instruction) = instruct.unzip();
        let instruct_field = instruct_field.unwrap_or(Field::single("instruct"));
        check_white_space(&instruction, instruct_field)?;
        check_white_space(&queries.0, queries.1)?;
        let limit = model.service.model().max_tokens();
        let mut options = ScoreOptions::new();
        options.instruction = instruction;
        options.max_tokens = tokens_kept(limits.truncate_prompt_tokens, limit)?;
        options.max_document_tokens = limits.max_tokens_per_doc;
        let scored = model.service.score(queries.0, documents.0, options).await;
        let scored = scored.map_err(|error| match error {
            qwen3_embed::Error::Text(TextError::FrameTooLong { .. }) => {
                let name = match limits.truncate_prompt_tokens {
                    Some(_) => "truncate_prompt_tokens".to_owned(),
                    None => instruct_field.at(0),
                };
                ApiError::invalid(error.to_string()).about(name)
            }
            error => state.api_error(error, documents.1),
        })?;
        state.metrics().stages("reranker", scored.timings);
        Ok(scored.scores)
    }

    /// Removes the model's prompt from texts that already contain it.
    ///
    /// Clients that were written for servers without the prompt send the prompt as part of their texts. A text that
    /// only resembles the prompt is refused. Otherwise the model would score a prompt inside a prompt, and the client
    /// would not notice that the score is wrong.
    fn unframed(self) -> Result<Self, ApiError> {
        let Self { queries: (queries, query_field), documents: (documents, field), instruct } =
            self;
        let frames: Vec<QueryFrame<'_>> =
            queries.iter().map(|query| QueryFrame::of(query)).collect();
        let is_bare = |frame: &QueryFrame<'_>| *frame == QueryFrame::Absent;
        if frames.iter().all(is_bare) {
            return Ok(Self {
                queries: (queries, query_field),
                documents: (documents, field),
                instruct,
            });
        }
        if let Some(index) = frames.iter().position(|frame| *frame == QueryFrame::Other) {
            return Err(not_the_frame(query_field.at(index)));
        }
        let instruction = one_instruction(&frames, query_field, instruct)?;
        let frame_of = |index: usize| frames.get(index).unwrap_or(&frames[0]);
        let bare = documents.into_iter().enumerate().map(|(index, document)| {
            if is_bare(frame_of(index)) {
                return Ok(document);
            }
            let bare = unframe_document(&document).map(str::to_owned);
            bare.ok_or_else(|| not_the_frame(field.at(index)))
        });
        let documents = bare.collect::<Result<Vec<String>, ApiError>>()?;
        let bare = queries.iter().zip(&frames).map(|(query, frame)| match frame {
            QueryFrame::Exact { query, .. } => (*query).to_owned(),
            _ => query.clone(),
        });
        Ok(Self {
            queries: (bare.collect(), query_field),
            documents: (documents, field),
            instruct: Some(instruction),
        })
    }
}

/// The instruction that all queries of a request have in common, and the field that it comes from.
fn one_instruction(
    frames: &[QueryFrame<'_>],
    field: Field,
    instruct: Option<(Field, String)>,
) -> Result<(Field, String), ApiError> {
    let default = instruct.as_ref().map_or(DEFAULT_INSTRUCTION, |(_, instruct)| instruct.as_str());
    let instructions = frames.iter().map(|frame| match frame {
        QueryFrame::Exact { instruction, .. } => instruction,
        _ => default,
    });
    let (expected, place) = match &instruct {
        Some((field, instruct)) => (instruct.as_str(), field.at(0)),
        None => (instructions.clone().next().unwrap_or(default), field.at(0)),
    };
    if let Some(index) = instructions.clone().position(|instruction| instruction != expected) {
        let name = field.at(index);
        let message = format!(
            "`{name}` and `{place}` have different instructions: all queries of a request need the same instruction, in \
             `instruct` or in the prompt around the query"
        );
        return Err(ApiError::invalid(message).about(name));
    }
    let expected = expected.to_owned();
    Ok(instruct.unwrap_or((field, expected)))
}

/// 400: a query begins like the model's prompt, but `name`, which is the query or one of its documents, does not match
/// the prompt.
fn not_the_frame(name: String) -> ApiError {
    let message = format!(
        "the query begins like the model's prompt, but `{name}` does not match the prompt: this server adds the prompt, \
         so send the query and the documents without it, and the instruction in `instruct`"
    );
    ApiError::invalid(message).about(name)
}
