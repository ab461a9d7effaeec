use std::collections::BTreeMap;

use qwen3_embed_model::{Checkpoint, Head, Memory, Precision, Summary};

use super::Source;
use crate::Result;
use crate::limits::{BATCH_TOKENS, RERANKER_MAX_TOKENS, embedder_max_tokens, min_dimensions};
use crate::repository::Repository;

/// A description of a model that is not loaded: see [`Source::info`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Info {
    /// The model's configuration, and the facts from the headers of its weight files, such as the number of parameters.
    pub summary: Summary,
    /// The prompts of `config_sentence_transformers.json` by their names.
    pub prompts: BTreeMap<String, String>,
    /// The default maximum length of a text in tokens, which a builder can change. It is the default of a reranker if
    /// the model has the head of a classifier, and the default of an embedder otherwise.
    pub max_tokens: usize,
}

impl Source {
    /// Describes the model without loading it. If the model is on the hub and not in the cache, only the
    /// configuration and the headers of the weights are downloaded, from
    #[cfg_attr(feature = "hub", doc = "[`Hub::from_env`](crate::Hub::from_env).")]
    #[cfg_attr(not(feature = "hub"), doc = "the hub.")]
    ///
    /// # Errors
    ///
    /// As [`EmbedderBuilder::build`](crate::EmbedderBuilder::build).
    pub fn info(&self) -> Result<Info> {
        #[cfg(feature = "hub")]
        return self.info_from(&qwen3_embed_hub::Hub::from_env());
        #[cfg(not(feature = "hub"))]
        Info::of(&self.locate(None)?.place.checkpoint()?)
    }
}

impl Info {
    /// Describes the model of a checkpoint.
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let summary = Summary::of(checkpoint)?;
        let repository = Repository::of(checkpoint.sentence_transformers())?;
        let prompts = repository.prompts.by_name().clone();
        let max_tokens = match summary.head {
            Head::Score => RERANKER_MAX_TOKENS,
            _ => embedder_max_tokens(repository.max_seq_length),
        };
        let max_tokens = max_tokens.min(summary.config.max_position_embeddings);
        Ok(Self { summary, prompts, max_tokens })
    }

    /// The smallest and the largest number of dimensions of a vector.
    pub fn dimensions(&self) -> [usize; 2] {
        let most = self.summary.embedding_size;
        [min_dimensions(most), most]
    }

    /// Estimates the memory that the model needs in a precision, with the default batch budget. The prefix cache, the
    /// tokenizer and the program itself are not included. A text with more tokens than the batch budget needs more
    /// memory: see [`longest_text_memory`](Self::longest_text_memory).
    pub fn memory(&self, precision: Precision) -> Memory {
        self.summary.memory(precision, BATCH_TOKENS)
    }

    /// Estimates the memory that the model needs in a precision for a text of [`max_tokens`](Self::max_tokens) tokens,
    /// or for a batch of the default budget if the budget is larger.
    pub fn longest_text_memory(&self, precision: Precision) -> Memory {
        self.summary.memory(precision, BATCH_TOKENS.max(self.max_tokens))
    }

    /// The head of the model, which is the layer after the decoder.
    pub fn head(&self) -> Head {
        self.summary.head
    }
}
