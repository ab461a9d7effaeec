use qwen3_embed_model::{Arithmetic, Config, Model, Precision, SharingCounts};
use qwen3_embed_text::{
    DEFAULT_INSTRUCTION, SpecialTokens, Tokenizer, TruncationSide, instruct, truncate,
};

use crate::{EmbedderBuilder, Embeddings, Error, Overflow, Result, Source, normalize};

/// Turns texts into vectors with a Qwen3 embedding model.
///
/// See the [crate's documentation](crate) for an example. Vectors come in the order of the texts,
/// are of unit length, and are the same, bit for bit, whatever else is in the call and however many
/// threads compute it.
#[derive(Debug)]
pub struct Embedder {
    pub(crate) model: Model,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) dimensions: usize,
    pub(crate) max_tokens: usize,
    pub(crate) overflow: Overflow,
    pub(crate) special_tokens: SpecialTokens,
    pub(crate) pool: Option<rayon::ThreadPool>,
}

impl Embedder {
    /// Begins to build an embedder of the model at `source`: a folder with the files of
    /// Qwen3-Embedding-0.6B, 4B or 8B, or of a fine-tune of one of them, or one of their GGUF files.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use qwen3_embed::{Embedder, Overflow};
    ///
    /// let embedder = Embedder::builder("models/Qwen3-Embedding-0.6B")
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

    /// Embeds documents: texts as they are, without an instruction.
    ///
    /// # Errors
    ///
    /// [`Error::TextTooLong`] if a text is over the limit and the overflow policy is
    /// [`Overflow::Error`]; [`Error::Text`] if one cannot be tokenized; [`Error::Model`] if its
    /// vector is not finite.
    pub fn embed_documents(&self, texts: &[impl AsRef<str> + Sync]) -> Result<Embeddings> {
        self.embed_unchecked(&self.tokenize(texts)?)
    }

    /// Embeds queries behind the default instruction, [`DEFAULT_INSTRUCTION`].
    ///
    /// # Errors
    ///
    /// As [`embed_documents`](Self::embed_documents).
    pub fn embed_queries(&self, queries: &[impl AsRef<str> + Sync]) -> Result<Embeddings> {
        self.embed_queries_with(DEFAULT_INSTRUCTION, queries)
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
        let texts: Vec<String> =
            queries.iter().map(|query| instruct(instruction, query.as_ref())).collect();
        self.embed_documents(&texts)
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
        self.fit(&mut tokens)?;
        self.embed_unchecked(&tokens)
    }

    /// The tokens with which [`embed_documents`](Self::embed_documents) embeds each text: the
    /// end-of-text token is appended and the overflow policy applied. For a query, pass
    /// [`instruct`]`(instruction, query)`.
    ///
    /// # Errors
    ///
    /// [`Error::TextTooLong`] or [`Error::Text`] as for [`embed_documents`](Self::embed_documents).
    pub fn tokenize(&self, texts: &[impl AsRef<str> + Sync]) -> Result<Vec<Vec<u32>>> {
        let mut tokens = self.encode(texts)?;
        self.fit(&mut tokens)?;
        Ok(tokens)
    }

    /// The number of tokens of each text as a document, the end-of-text token included, whether or
    /// not it is over the limit.
    ///
    /// # Errors
    ///
    /// [`Error::Text`] if a text cannot be tokenized.
    pub fn count_tokens(&self, texts: &[impl AsRef<str> + Sync]) -> Result<Vec<usize>> {
        Ok(self.encode(texts)?.iter().map(Vec::len).collect())
    }

    /// Dimensions of the vectors that this embedder gives.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The longest text, in tokens.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// How the model's weights are kept and multiplied: what
    /// [`Precision::Auto`](crate::Precision::Auto) has become.
    pub fn precision(&self) -> Precision {
        self.model.precision()
    }

    /// How products are computed, most of them if the weights are in 8 bits or fewer.
    pub fn arithmetic(&self) -> Arithmetic {
        self.model.arithmetic()
    }

    /// The model's hyper-parameters.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// What was computed since the model was loaded, and what was saved by computing once what texts
    /// have in common.
    pub fn sharing_counts(&self) -> SharingCounts {
        self.model.sharing_counts()
    }

    /// The tokens of each text, however many.
    fn encode(&self, texts: &[impl AsRef<str> + Sync]) -> Result<Vec<Vec<u32>>> {
        Ok(self.install(|| self.tokenizer.encode_batch(texts, self.special_tokens))?)
    }

    /// Applies the overflow policy.
    fn fit(&self, texts: &mut [Vec<u32>]) -> Result<()> {
        let max_tokens = self.max_tokens;
        for (text, tokens) in texts.iter_mut().enumerate() {
            let n_tokens = tokens.len();
            match self.overflow {
                Overflow::Error if n_tokens > max_tokens => {
                    return Err(Error::TextTooLong { text, n_tokens, max_tokens });
                }
                Overflow::Error => {}
                Overflow::TruncateLeft => truncate(tokens, max_tokens, TruncationSide::Left),
                Overflow::TruncateRight => truncate(tokens, max_tokens, TruncationSide::Right),
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
            normalize(row);
        };
        self.install(|| self.model.forward_each(texts, write))?;
        Embeddings::new(values, dim)
    }

    /// Runs `work` on the embedder's own threads, if it has any.
    fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}
