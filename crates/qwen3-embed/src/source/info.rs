use std::collections::BTreeMap;
use std::path::Path;

use qwen3_embed_model::{Head, Memory, Precision, Summary};

use super::Source;
use crate::Result;
use crate::limits::{BATCH_TOKENS, RERANKER_MAX_TOKENS, embedder_max_tokens, min_dimensions};
use crate::repository::Repository;

/// What a model is, without loading it: see [`Source::info`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Info {
    /// What the model's configuration and the headers of its files say.
    pub summary: Summary,
    /// The prompts of `config_sentence_transformers.json` by their names.
    pub prompts: BTreeMap<String, String>,
    /// The longest text, in tokens, unless a builder sets another limit: that of an embedder, or of a reranker if the
    /// model has a classifier's head.
    pub max_tokens: usize,
}

impl Source {
    /// Looks at the model without loading it. Of a model of the hub that is not in the cache, only the
    /// configuration and the headers of the weights are downloaded, from
    #[cfg_attr(feature = "hub", doc = "[`Hub::from_env`](crate::Hub::from_env).")]
    #[cfg_attr(not(feature = "hub"), doc = "the hub.")]
    ///
    /// # Errors
    ///
    /// As [`EmbedderBuilder::build`](crate::EmbedderBuilder::build).
    pub fn info(&self) -> Result<Info> {
        #[cfg(feature = "hub")]
        return super::Hub::from_env().info(self.clone());
        #[cfg(not(feature = "hub"))]
        Info::read(&self.open(None)?.path)
    }
}

impl Info {
    /// Looks at a model on this machine.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let summary = Summary::read(path)?;
        let repository = Repository::read(path)?;
        let prompts = repository.prompts.by_name().clone();
        let max_tokens = match summary.head {
            Head::Score => RERANKER_MAX_TOKENS,
            _ => embedder_max_tokens(repository.max_seq_length),
        };
        let max_tokens = max_tokens.min(summary.config.max_position_embeddings);
        Ok(Self { summary, prompts, max_tokens })
    }

    /// The fewest and the most dimensions of a vector.
    pub fn dimensions(&self) -> [usize; 2] {
        let most = self.summary.embedding_size;
        [min_dimensions(most), most]
    }

    /// The memory that the model takes in a precision, with batches of the default size. The cache of
    /// what texts have in common, the tokenizer and the program itself come on top. Texts that are longer than a
    /// batch take more: see [`longest_text_memory`](Self::longest_text_memory).
    pub fn memory(&self, precision: Precision) -> Memory {
        self.summary.memory(precision, BATCH_TOKENS)
    }

    /// The memory that the model takes in a precision when it computes a text of [`max_tokens`](Self::max_tokens), or
    /// a batch if that is larger.
    pub fn longest_text_memory(&self, precision: Precision) -> Memory {
        self.summary.memory(precision, BATCH_TOKENS.max(self.max_tokens))
    }

    /// What is behind the decoder.
    pub fn head(&self) -> Head {
        self.summary.head
    }
}
