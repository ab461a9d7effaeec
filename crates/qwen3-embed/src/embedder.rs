use std::borrow::Cow;
use std::collections::BTreeMap;

use qwen3_embed_model::{Arithmetic, Config, Pooling, Precision, SharingCounts};
use qwen3_embed_text::{SpecialTokens, Tokenizer, TruncationSide, instruct, truncate};

use crate::builder::{check_dimensions, min_dimensions};
use crate::engine::Engine;
use crate::repository::Prompts;
use crate::{EmbedderBuilder, Embeddings, Error, Overflow, Prompt, Result, Source, normalize};

/// Turns texts into vectors with a Qwen3 embedding model.
///
/// See the [crate's documentation](crate) for an example. Vectors come in the order of the texts, and are of
/// unit length unless [`EmbedderBuilder::normalize`] says otherwise. On the processor they are the same, bit for
/// bit, whatever else is in the call and however many threads compute it.
#[derive(Debug)]
pub struct Embedder {
    pub(crate) engine: Engine,
    pub(crate) prompts: Prompts,
    pub(crate) dimensions: usize,
    pub(crate) overflow: Overflow,
    pub(crate) special_tokens: SpecialTokens,
    pub(crate) normalize: bool,
}

impl Embedder {
    /// Begins to build an embedder of the model at `source`: a folder with the files of
    /// Qwen3-Embedding-0.6B, 4B or 8B, or of a fine-tune of one of them, one of their GGUF files, or the
    /// id of one on the hub.
    ///
    /// What a sentence-transformers repository says of pooling, dense layers, prompts and the longest text
    /// is followed, as far as it is known; what is not known is refused. Vectors are of unit length whatever
    /// it says. A LoRA adapter is loaded with the model that it belongs to.
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
    /// let quantised = Embedder::builder("models/Qwen3-Embedding-0.6B-Q8_0.gguf").build()?;
    /// # Ok::<(), qwen3_embed::Error>(())
    /// ```
    pub fn builder(source: impl Into<Source>) -> EmbedderBuilder {
        EmbedderBuilder::new(source.into())
    }

    /// Embeds documents: texts as they are, or behind the prompt that a sentence-transformers repository
    /// has for documents.
    ///
    /// # Errors
    ///
    /// [`Error::TextTooLong`] if a text is over the limit and the overflow policy is
    /// [`Overflow::Error`]; [`Error::Text`] if one cannot be tokenized; [`Error::Model`] if its
    /// vector is not finite.
    pub fn embed_documents(&self, texts: &[impl AsRef<str> + Sync]) -> Result<Embeddings> {
        self.embed_behind(self.prompts.document(), texts)
    }

    /// Embeds queries behind the default instruction,
    /// [`DEFAULT_INSTRUCTION`](crate::DEFAULT_INSTRUCTION), or behind the prompt that a
    /// sentence-transformers repository has for queries.
    ///
    /// # Errors
    ///
    /// As [`embed_documents`](Self::embed_documents).
    pub fn embed_queries(&self, queries: &[impl AsRef<str> + Sync]) -> Result<Embeddings> {
        self.embed_behind(self.prompts.query(), queries)
    }

    /// Embeds queries behind an instruction that says what the task is, in a sentence, best in
    /// English.
    ///
    /// # Errors
    ///
    /// As [`embed_documents`](Self::embed_documents).
    pub fn embed_queries_with(
        &self,
        instruction: &str,
        queries: &[impl AsRef<str> + Sync],
    ) -> Result<Embeddings> {
        self.embed_behind(&instruct(instruction, ""), queries)
    }

    /// Embeds texts behind the prompt of this name, one of [`prompts`](Self::prompts).
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPrompt`] if there is none, and as [`embed_documents`](Self::embed_documents).
    pub fn embed_with_prompt(
        &self,
        name: &str,
        texts: &[impl AsRef<str> + Sync],
    ) -> Result<Embeddings> {
        self.embed_behind(self.prompt(name)?, texts)
    }

    /// Embeds texts that are tokens already, exactly as they are: nothing is appended, so that each
    /// should end with the tokenizer's end-of-text token.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if a text has no token or one that is not in the vocabulary, or if a vector
    /// is not finite; [`Error::TextTooLong`] as for [`embed_documents`](Self::embed_documents). Where
    /// the overflow policy truncates, the last token is kept.
    pub fn embed_tokens(&self, texts: &[impl AsRef<[u32]>]) -> Result<Embeddings> {
        let mut tokens: Vec<Vec<u32>> = texts.iter().map(|text| text.as_ref().to_vec()).collect();
        self.fit(&mut tokens, self.overflow, None)?;
        self.embed_unchecked(&tokens)
    }

    /// The tokens with which each text is embedded as it is: the end-of-text token is appended and the
    /// overflow policy applied. For a query, put [`query_prompt`](Self::query_prompt) or
    /// [`instruct`]`(instruction, "")` before it.
    ///
    /// # Errors
    ///
    /// [`Error::TextTooLong`] or [`Error::Text`] as for [`embed_documents`](Self::embed_documents).
    pub fn tokenize(&self, texts: &[impl AsRef<str> + Sync]) -> Result<Vec<Vec<u32>>> {
        self.tokenize_behind("", texts)
    }

    /// The number of tokens of each text as it is, the end-of-text token included, whether or not it is
    /// over the limit.
    ///
    /// # Errors
    ///
    /// [`Error::Text`] if a text cannot be tokenized.
    pub fn count_tokens(&self, texts: &[impl AsRef<str> + Sync]) -> Result<Vec<usize>> {
        let tokens = self.engine.install(|| self.encode_behind("", texts))?;
        Ok(tokens.iter().map(Vec::len).collect())
    }

    /// What stands before a query: the default instruction, unless a sentence-transformers repository has
    /// another prompt for queries.
    pub fn query_prompt(&self) -> &str {
        self.prompts.query()
    }

    /// What stands before a document: nothing, unless a sentence-transformers repository has a prompt for
    /// documents.
    pub fn document_prompt(&self) -> &str {
        self.prompts.document()
    }

    /// The model's prompts by their names: those of a sentence-transformers repository, or else `query`
    /// and `document`.
    pub fn prompts(&self) -> &BTreeMap<String, String> {
        self.prompts.by_name()
    }

    /// The prompt of this name.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPrompt`] if there is none.
    pub fn prompt(&self, name: &str) -> Result<&str> {
        self.prompts.named(name)
    }

    /// Dimensions of the vectors that this embedder gives.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The longest text, in tokens.
    pub fn max_tokens(&self) -> usize {
        self.engine.max_tokens
    }

    /// How the weights of the model are stored and multiplied. It is never
    /// [`Precision::Stored`](crate::Precision::Stored), which is resolved when a model is loaded.
    pub fn precision(&self) -> Precision {
        self.engine.model.precision()
    }

    /// How products are computed, most of them if the weights are in 8 bits or fewer.
    pub fn arithmetic(&self) -> Arithmetic {
        self.engine.model.arithmetic()
    }

    /// How a text's vector is made of its tokens' hidden states.
    pub fn pooling(&self) -> Pooling {
        self.engine.model.pooling()
    }

    /// The threads that a call uses.
    pub fn threads(&self) -> usize {
        self.engine.install(rayon::current_num_threads)
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.engine.tokenizer
    }

    /// What becomes of text that spells a special token.
    pub fn special_tokens(&self) -> SpecialTokens {
        self.special_tokens
    }

    /// The most dimensions that vectors of the model can have, see
    /// [`EmbedderBuilder::dimensions`].
    pub fn max_dimensions(&self) -> usize {
        self.engine.model.embedding_size()
    }

    /// The fewest dimensions that vectors of the model can have.
    pub fn min_dimensions(&self) -> usize {
        min_dimensions(self.max_dimensions())
    }

    /// The model's hyper-parameters.
    pub fn config(&self) -> &Config {
        self.engine.model.config()
    }

    /// What was computed since the model was loaded, and what was saved by computing once what texts
    /// have in common.
    pub fn sharing_counts(&self) -> SharingCounts {
        self.engine.model.sharing_counts()
    }

    /// Embeds texts with this in front of each.
    fn embed_behind(&self, prompt: &str, texts: &[impl AsRef<str> + Sync]) -> Result<Embeddings> {
        self.embed_unchecked(&self.tokenize_behind(prompt, texts)?)
    }

    fn tokenize_behind(
        &self,
        prompt: &str,
        texts: &[impl AsRef<str> + Sync],
    ) -> Result<Vec<Vec<u32>>> {
        let mut tokens = self.engine.install(|| self.encode_behind(prompt, texts))?;
        self.fit(&mut tokens, self.overflow, None)?;
        Ok(tokens)
    }

    /// The tokens of each text behind a prompt, however many, on rayon's current pool.
    pub(crate) fn encode_behind(
        &self,
        prompt: &str,
        texts: &[impl AsRef<str> + Sync],
    ) -> Result<Vec<Vec<u32>>> {
        let (tokenizer, special_tokens) = (&self.engine.tokenizer, self.special_tokens);
        if prompt.is_empty() {
            return Ok(tokenizer.encode_batch(texts, special_tokens)?);
        }
        let texts: Vec<String> =
            texts.iter().map(|text| [prompt, text.as_ref()].concat()).collect();
        Ok(tokenizer.encode_batch(&texts, special_tokens)?)
    }

    /// What stands before a text under this prompt.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPrompt`] if it is one that the model does not have.
    pub fn prompt_text(&self, prompt: &Prompt) -> Result<Cow<'_, str>> {
        Ok(match prompt {
            Prompt::Document => self.prompts.document().into(),
            Prompt::Query => self.prompts.query().into(),
            Prompt::Instruction(instruction) => instruct(instruction, "").into(),
            Prompt::Named(name) => self.prompt(name)?.into(),
        })
    }

    /// The number of dimensions that is asked for, if the model's vectors can be cut to it, or else that of
    /// this embedder.
    pub(crate) fn dimensions_or_default(&self, dimensions: Option<usize>) -> Result<usize> {
        let dimensions = dimensions.unwrap_or(self.dimensions);
        check_dimensions(dimensions, self.engine.model.embedding_size())?;
        Ok(dimensions)
    }

    /// Applies an overflow policy at a limit, or else at that of this embedder.
    pub(crate) fn fit(
        &self,
        texts: &mut [Vec<u32>],
        overflow: Overflow,
        max_tokens: Option<usize>,
    ) -> Result<()> {
        let max_tokens = max_tokens.unwrap_or(self.engine.max_tokens);
        let keeps_last = self.tokenizer().appends_end_of_text();
        for (text, tokens) in texts.iter_mut().enumerate() {
            let n_tokens = tokens.len();
            match overflow {
                Overflow::Error if n_tokens > max_tokens => {
                    return Err(Error::TextTooLong { text, n_tokens, max_tokens });
                }
                Overflow::Error => {}
                Overflow::TruncateLeft => truncate(tokens, max_tokens, TruncationSide::Left),
                Overflow::TruncateRight if keeps_last => {
                    truncate(tokens, max_tokens, TruncationSide::Right);
                }
                Overflow::TruncateRight => tokens.truncate(max_tokens),
            }
        }
        Ok(())
    }

    /// Embeds tokens that are within the limit.
    fn embed_unchecked(&self, texts: &[Vec<u32>]) -> Result<Embeddings> {
        let dim = self.dimensions;
        let mut values = vec![0f32; texts.len() * dim];
        let write = |text: usize, hidden: &[f32]| {
            let row = &mut values[text * dim..][..dim];
            row.copy_from_slice(&hidden[..dim]);
            if self.normalize {
                normalize(row);
            }
        };
        self.engine.install(|| self.engine.model.forward_each(texts, write))?;
        Embeddings::new(values, dim)
    }
}
