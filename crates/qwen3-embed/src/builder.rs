use qwen3_embed_model::{Head, Pooling};
use qwen3_embed_text::SpecialTokens;

use crate::cross_encoder::CrossEncoder;
use crate::engine::{Engine, Settings, setters};
use crate::limits::{check_dimensions, embedder_max_tokens};
use crate::repository::Repository;
use crate::source::read_tokenizer;
use crate::{Embedder, Error, Overflow, Result, Source, warnings};

/// Builds an [`Embedder`].
///
/// [`Embedder::builder`] creates a builder with the default settings. Each method changes one setting, and
/// [`build`](Self::build) loads the model.
#[derive(Debug, Clone)]
pub struct EmbedderBuilder {
    settings: Settings,
    dimensions: Option<usize>,
    overflow: Overflow,
    special_tokens: SpecialTokens,
    normalize: bool,
}

impl Embedder {
    /// Starts to build an embedder from the model at `source`: the folder of Qwen3-Embedding-0.6B, 4B, 8B or a
    /// fine-tune, one of their GGUF files, or an id on the hub.
    ///
    /// If the model is a sentence-transformers repository, its settings are used: pooling, dense layers, prompts and
    /// the maximum length of a text. A setting that is not supported is an error. The only setting that is ignored is
    /// its normalization: see [`EmbedderBuilder::normalize`]. If the source is a LoRA adapter, it is loaded together
    /// with its base model.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use qwen3_embed::{Embedder, Overflow};
    ///
    /// let embedder = Embedder::builder("Qwen/Qwen3-Embedding-0.6B")
    ///     .dimensions(256)
    ///     .max_tokens(8192)
    ///     .overflow(Overflow::TruncateRight)
    ///     .threads(4)
    ///     .build()?;
    /// let quantized = Embedder::builder("models/Qwen3-Embedding-0.6B-Q8_0.gguf").build()?;
    /// # Ok::<(), qwen3_embed::Error>(())
    /// ```
    pub fn builder(source: impl Into<Source>) -> EmbedderBuilder {
        EmbedderBuilder {
            settings: Settings::new(source.into()),
            dimensions: None,
            overflow: Overflow::default(),
            special_tokens: SpecialTokens::default(),
            normalize: true,
        }
    }
}

impl EmbedderBuilder {
    setters!();

    /// The number of dimensions of the vectors. The range is 32 to the model's hidden size. For a model with a hidden
    /// size below 1024, which is smaller than the published models, the range is 1 to the hidden size. For a model with
    /// dense layers, the output size of the last dense layer counts instead of the hidden size. Default: `truncate_dim`
    /// of `config_sentence_transformers.json`, but at most the hidden size; without that field, the hidden size.
    pub fn dimensions(mut self, dimensions: usize) -> Self {
        self.dimensions = Some(dimensions);
        self
    }

    /// The maximum length of a text in tokens, including its prompt and the end-of-text token: 1 to the model's
    /// `max_position_embeddings`. Default: `max_seq_length` of `sentence_bert_config.json`, or 32,768 if there is
    /// no such field, but at most `max_position_embeddings`.
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.settings.max_tokens = Some(max_tokens);
        self
    }

    /// What happens to a text with more than [`max_tokens`](Self::max_tokens). Default: [`Overflow::Error`].
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    /// Whether special tokens in strings are parsed. Default: [`SpecialTokens::Parse`], as transformers does. Use
    /// [`SpecialTokens::PlainText`] for texts that you do not trust.
    pub fn special_tokens(mut self, special_tokens: SpecialTokens) -> Self {
        self.special_tokens = special_tokens;
        self
    }

    /// Whether vectors are normalized to unit length, after they are cut to
    /// [`dimensions`](Self::dimensions). Default: true. The similarities that
    /// [`Embeddings`](crate::Embeddings) computes do not depend on this setting.
    pub fn normalize(mut self, normalize: bool) -> Self {
        self.normalize = normalize;
        self
    }

    /// Loads the model and its tokenizer.
    ///
    /// A model is rejected if its files show that it is a reranker. The files of a causal language model do not show
    /// whether it is an embedding model or a reranker, so it is loaded, with a warning.
    ///
    /// # Errors
    ///
    /// - [`Error::NoSuchModel`], [`Error::NoConfig`], [`Error::WhichGguf`], [`Error::AdapterBase`],
    ///   [`Error::TwoAdapters`], [`Error::Io`] or the errors of [`Source::download`](crate::Source::download) if the
    ///   model or its adapter cannot be found.
    /// - [`Error::IsReranker`] if the model is a reranker.
    /// - [`Error::Model`] or [`Error::Text`] if a file is missing, damaged or of another architecture.
    /// - [`Error::NoSuchPrompt`] if `default_prompt_name` names a prompt that the repository does not have.
    /// - [`Error::Vocabulary`] if the tokenizer does not belong to the model.
    /// - [`Error::Dimensions`] or [`Error::Setting`] if a setting is out of range.
    /// - [`Error::Threads`] if the threads cannot be started.
    pub fn build(self) -> Result<Embedder> {
        let checkpoint = self.settings.open()?;
        let repository = Repository::of(checkpoint.sentence_transformers())?;
        let tokenizer = read_tokenizer(&checkpoint)?;
        let head = checkpoint.head();
        if head == Head::Score || CrossEncoder::is_in(checkpoint.sentence_transformers()) {
            return Err(Error::IsReranker { path: checkpoint.path().to_path_buf() });
        }
        warnings::of_reranker(&checkpoint, head);
        let max_tokens = embedder_max_tokens(repository.max_seq_length);
        let mut engine = self.settings.load(&checkpoint, tokenizer, max_tokens, false)?;
        // With a `modules.json`, the post-processor in the tokenizer's file decides whether the end-of-text token is
        // appended, as in sentence-transformers. Without that file, the token is always appended for last-token
        // pooling, whose vector is the hidden state at that token.
        if checkpoint.has_modules() || engine.model.pooling() != Pooling::LastToken {
            engine.tokenizer = engine.tokenizer.follow_file_for_end_of_text();
        }
        let Engine { model, tokenizer, tokenizer_path, .. } = &engine;
        warnings::of_missing_post_processor(
            model.config(),
            model.pooling(),
            tokenizer,
            tokenizer_path,
        );
        let embedding_size = model.embedding_size();
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
