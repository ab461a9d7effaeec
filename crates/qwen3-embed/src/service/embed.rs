use std::mem;
use std::ops::Range;

use super::request::Row;
use super::tokenizing::pieces;
use super::{Compute, Service, ServiceOptions, Timings, start};
use crate::engine::check;
use crate::{Embedder, Embeddings, Overflow, Result};

/// Texts to embed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Texts {
    /// As text.
    Strings(Vec<String>),
    /// As tokens, exactly as they are: nothing is put before or behind them.
    Tokens(Vec<Vec<u32>>),
}

/// What stands before a text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Prompt {
    /// What stands before documents: nothing, for the published models.
    #[default]
    Document,
    /// What stands before queries: the default instruction, for the published models.
    Query,
    /// This instruction, which says what the task is, in a sentence, best in English.
    Instruction(String),
    /// The prompt of this name, one of [`Embedder::prompts`].
    Named(String),
}

/// How [`Service::embed`] embeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbedOptions {
    /// What stands before every text; tokens are taken as they are. Default: what stands before documents.
    pub prompt: Prompt,
    /// Dimensions of the vectors. Default: those of the embedder.
    pub dimensions: Option<usize>,
    /// What becomes of a text that is too long. Default: as the embedder has it.
    pub overflow: Option<Overflow>,
    /// The longest text, in tokens, those of its prompt and the end-of-text token included. 1 to the embedder's
    /// [`max_tokens`](Embedder::max_tokens), which is the default.
    pub max_tokens: Option<usize>,
    /// Whether vectors are brought to unit length. Default: they are.
    pub normalize: bool,
}

/// What [`Service::embed`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// A vector for each text, in order.
    pub embeddings: Embeddings,
    /// The tokens of each text, those of its prompt and the end-of-text token included.
    pub n_tokens: Vec<usize>,
    /// How long it took.
    pub timings: Timings,
}

impl Texts {
    /// Number of texts.
    pub fn len(&self) -> usize {
        match self {
            Self::Strings(texts) => texts.len(),
            Self::Tokens(texts) => texts.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Vec<String>> for Texts {
    fn from(texts: Vec<String>) -> Self {
        Self::Strings(texts)
    }
}

impl From<Vec<Vec<u32>>> for Texts {
    fn from(texts: Vec<Vec<u32>>) -> Self {
        Self::Tokens(texts)
    }
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self {
            prompt: Prompt::default(),
            dimensions: None,
            overflow: None,
            max_tokens: None,
            normalize: true,
        }
    }
}

impl Compute for Embedder {
    fn compute(
        &self,
        texts: &[&[u32]],
        write: &mut (dyn FnMut(usize, &[f32]) + Send),
    ) -> Result<()> {
        Ok(self.engine.install(|| self.engine.model.forward_each(texts, write))?)
    }
}

impl Embedder {
    /// Puts the embedder behind a queue, for many callers at once.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) if an option is out of range;
    /// [`Error::Threads`](crate::Error::Threads) or [`Error::Thread`](crate::Error::Thread) if the threads
    /// cannot be started.
    pub fn into_service(self, options: ServiceOptions) -> Result<Service<Self>> {
        start(self, options)
    }
}

impl Service<Embedder> {
    /// Embeds texts.
    ///
    /// # Errors
    ///
    /// [`Error::ServiceFull`](crate::Error::ServiceFull),
    /// [`Error::ServiceDraining`](crate::Error::ServiceDraining) or
    /// [`Error::ServiceStopped`](crate::Error::ServiceStopped) if they are not accepted;
    /// [`Error::Dimensions`](crate::Error::Dimensions), [`Error::Setting`](crate::Error::Setting) or
    /// [`Error::NoSuchPrompt`](crate::Error::NoSuchPrompt) if an option is wrong;
    /// [`Error::TextTooLong`](crate::Error::TextTooLong), [`Error::Text`](crate::Error::Text) or
    /// [`Error::Model`](crate::Error::Model) if a text is, naming its index.
    pub async fn embed(&self, mut texts: Texts, options: EmbedOptions) -> Result<Embedded> {
        let EmbedOptions { prompt, dimensions, overflow, max_tokens, normalize } = options;
        let width = self.model().dimensions_or_default(dimensions)?;
        let limit = self.model().max_tokens();
        check("max_tokens", max_tokens.unwrap_or(limit), limit)?;
        let overflow = overflow.unwrap_or(self.model().overflow);
        let prompt = self.model().prompt_text(&prompt)?.into_owned();
        let pieces = match &texts {
            Texts::Strings(texts) => pieces(texts.iter().map(|text| prompt.len() + text.len())),
            Texts::Tokens(texts) => pieces(texts.iter().map(Vec::len)),
        };
        let encode = move |embedder: &Embedder, piece: Range<usize>| {
            let mut tokens = match &mut texts {
                Texts::Strings(texts) => embedder.encode_behind(&prompt, &texts[piece])?,
                Texts::Tokens(texts) => texts[piece].iter_mut().map(mem::take).collect(),
            };
            embedder.fit(&mut tokens, overflow, max_tokens)?;
            embedder.engine.model.check_tokens(&tokens)?;
            Ok(tokens)
        };
        let row = Row { width, normalize };
        let completed = self.run(pieces, row, encode).await?;
        let embeddings = Embeddings::new(completed.values, width)?;
        Ok(Embedded { embeddings, n_tokens: completed.n_tokens, timings: completed.timings })
    }
}
