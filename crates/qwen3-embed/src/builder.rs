use qwen3_embed_model::{Head, Pooling};
use qwen3_embed_text::SpecialTokens;

use crate::cross_encoder::CrossEncoder;
use crate::engine::{Settings, setters};
use crate::repository::Repository;
use crate::source::read_tokenizer;
use crate::{Embedder, Error, Result, Source, warnings};

/// What becomes of a text with more tokens than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Overflow {
    /// The call fails with [`Error::TextTooLong`].
    #[default]
    Error,
    /// The beginning of the text is cut, the instruction of a query with it.
    TruncateLeft,
    /// The end of the text is cut.
    TruncateRight,
}

/// The longest text, in tokens, that is embedded without being asked for.
const DEFAULT_MAX_TOKENS: usize = 32_768;

/// The fewest dimensions of a vector, and the hidden size from which on they are the fewest.
const MIN_DIMENSIONS: (usize, usize) = (32, 1024);

/// Settings of an [`Embedder`], see [`Embedder::builder`].
#[derive(Debug, Clone)]
pub struct EmbedderBuilder {
    settings: Settings,
    dimensions: Option<usize>,
    overflow: Overflow,
    special_tokens: SpecialTokens,
    normalize: bool,
}

impl EmbedderBuilder {
    pub(crate) fn new(source: Source) -> Self {
        Self {
            settings: Settings::new(source),
            dimensions: None,
            overflow: Overflow::default(),
            special_tokens: SpecialTokens::default(),
            normalize: true,
        }
    }

    setters!();

    /// Dimensions of the vectors: 32 to the model's hidden size, or 1 to the hidden size for models
    /// narrower than 1024, which are not published ones. Default: `truncate_dim` of
    /// `config_sentence_transformers.json`, or the hidden size if that is less or there is none. Where a
    /// dense layer comes behind the model, its width takes the place of the hidden size.
    pub fn dimensions(mut self, dimensions: usize) -> Self {
        self.dimensions = Some(dimensions);
        self
    }

    /// The longest text, in tokens, its instruction and the end-of-text token included: 1 to the
    /// model's `max_position_embeddings`. Default: `max_seq_length` of `sentence_bert_config.json`, or
    /// else 32,768, or what the model has if that is less.
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.settings.max_tokens = Some(max_tokens);
        self
    }

    /// What becomes of a longer text. Default: [`Overflow::Error`].
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// What becomes of text that spells a special token. Default: [`SpecialTokens::Parse`], as
    /// transformers does; choose [`SpecialTokens::PlainText`] for texts that you do not trust.
    pub fn special_tokens(mut self, special_tokens: SpecialTokens) -> Self {
        self.special_tokens = special_tokens;
        self
    }

    /// Whether vectors are brought to unit length, after they are cut. Default: they are. What
    /// [`Embeddings`](crate::Embeddings) computes is the same either way. A [`Service`](crate::Service) goes
    /// by its own option, [`EmbedOptions::normalize`](crate::EmbedOptions::normalize).
    pub fn normalize(mut self, normalize: bool) -> Self {
        self.normalize = normalize;
        self
    }

    /// Loads the model and its tokenizer.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchModel`], [`Error::NoConfig`], [`Error::WhichGguf`],
    /// [`Error::AdapterBase`], [`Error::Io`], or what
    /// [`Source::download`](crate::Source::download) says; [`Error::IsReranker`] if its files show that it is one,
    /// which a causal language model's do not: there is a warning then; [`Error::Model`] or [`Error::Text`] if a file is missing,
    /// damaged or of another architecture; [`Error::Vocabulary`] if the tokenizer is not the
    /// model's; [`Error::Dimensions`] or [`Error::Setting`] if a setting is out of range.
    pub fn build(self) -> Result<Embedder> {
        let checkpoint = self.settings.open()?;
        let repository = Repository::of(checkpoint.sentence_transformers())?;
        let tokenizer = read_tokenizer(&checkpoint)?;
        let head = checkpoint.head();
        if head == Head::Score || CrossEncoder::is_in(checkpoint.sentence_transformers()) {
            return Err(Error::IsReranker { path: checkpoint.path().to_path_buf() });
        }
        warnings::of_reranker(&checkpoint, head);
        let max_tokens = default_max_tokens(&repository);
        let mut engine = self.settings.load(&checkpoint, tokenizer, max_tokens, false)?;
        // Published models need an end-of-text token; what sentence-transformers has saved has the tokens of
        // its own tokenizer, as there.
        if checkpoint.has_modules() || engine.model.pooling() != Pooling::LastToken {
            engine.tokenizer = engine.tokenizer.follow_file_for_end_of_text();
        }
        warnings::of_lost_template(&engine);
        let embedding_size = engine.model.embedding_size();
        let default = repository.truncate_dim.map_or(embedding_size, |n| n.min(embedding_size));
        let dimensions = self.dimensions.unwrap_or(default);
        check_dimensions(dimensions, embedding_size)?;
        Ok(Embedder {
            engine,
            prompts: repository.prompts,
            dimensions,
            overflow: self.overflow,
            special_tokens: self.special_tokens,
            normalize: self.normalize,
        })
    }
}

/// The longest text, in tokens, if the model has as many positions.
pub(crate) fn default_max_tokens(repository: &Repository) -> usize {
    repository.max_seq_length.unwrap_or(DEFAULT_MAX_TOKENS)
}

/// The fewest dimensions of a vector of a model that gives so many.
pub(crate) fn min_dimensions(hidden_size: usize) -> usize {
    let (fewest, published) = MIN_DIMENSIONS;
    if hidden_size >= published { fewest } else { 1 }
}

pub(crate) fn check_dimensions(got: usize, hidden_size: usize) -> Result<()> {
    let min = min_dimensions(hidden_size);
    if (min..=hidden_size).contains(&got) {
        Ok(())
    } else {
        Err(Error::Dimensions { got, min, max: hidden_size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_are_32_to_hidden_for_published_sizes_and_any_for_smaller_models() {
        for (hidden_size, min) in [(1024, 32), (2560, 32), (4096, 32), (512, 1), (64, 1)] {
            for got in [min, min + 1, hidden_size - 1, hidden_size] {
                check_dimensions(got, hidden_size).unwrap();
            }
            for got in [0, min - 1, hidden_size + 1, usize::MAX] {
                let error = check_dimensions(got, hidden_size).unwrap_err();
                let range =
                    format!("{got} dimensions were asked for, there can be {min} to {hidden_size}");
                assert_eq!(error.to_string(), range);
            }
        }
    }
}
