/// Options of one embedding request, for [`Embedder::embed_with`](crate::Embedder::embed_with),
/// [`Embedder::embed_iter`](crate::Embedder::embed_iter) and
/// [`Service::embed`](crate::Service::embed).
///
/// An option that is not set has the value that the embedder was built with.
///
/// # Examples
///
/// ```
/// use qwen3_embed::{EmbedOptions, Overflow, Prompt};
///
/// let options = EmbedOptions::new()
///     .prompt(Prompt::Instruction("Find the answer to the question".to_owned()))
///     .dimensions(256)
///     .overflow(Overflow::TruncateRight);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct EmbedOptions {
    /// The text that is put before every string: see [`prompt`](Self::prompt).
    pub prompt: Prompt,
    /// The number of dimensions of the vectors: see [`dimensions`](Self::dimensions).
    pub dimensions: Option<usize>,
    /// What happens to a text that is too long: see [`overflow`](Self::overflow).
    pub overflow: Option<Overflow>,
    /// The maximum length of a text in tokens: see [`max_tokens`](Self::max_tokens).
    pub max_tokens: Option<usize>,
    /// Whether vectors are normalized to unit length: see [`normalize`](Self::normalize).
    pub normalize: Option<bool>,
}

impl EmbedOptions {
    /// The options of [`Embedder::embed_documents`](crate::Embedder::embed_documents): the prompt for documents and
    /// the settings of the embedder.
    pub fn new() -> Self {
        Self::default()
    }

    /// The text that is put before every string. Texts that are given as token ids have no prompt. Default:
    /// [`Prompt::Document`].
    pub fn prompt(mut self, prompt: Prompt) -> Self {
        self.prompt = prompt;
        self
    }

    /// The number of dimensions of the vectors, in the range of
    /// [`EmbedderBuilder::dimensions`](crate::EmbedderBuilder::dimensions).
    pub fn dimensions(mut self, dimensions: usize) -> Self {
        self.dimensions = Some(dimensions);
        self
    }

    /// What happens to a text with more than [`max_tokens`](Self::max_tokens).
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = Some(overflow);
        self
    }

    /// The maximum length of a text in tokens, including its prompt and the end-of-text token. The range is 1 to
    /// the embedder's [`max_tokens`](crate::Embedder::max_tokens), which is also the default.
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = Some(max_tokens);
        self
    }

    /// Whether vectors are normalized to unit length.
    pub fn normalize(mut self, normalize: bool) -> Self {
        self.normalize = Some(normalize);
        self
    }
}

/// The text that is put before every string of an embedding request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Prompt {
    /// The model's prompt for documents. The published models have none, so their documents are embedded as they are.
    #[default]
    Document,
    /// The model's prompt for queries. For the published models it contains the default instruction,
    /// [`DEFAULT_INSTRUCTION`](crate::DEFAULT_INSTRUCTION).
    Query,
    /// An instruction: one sentence that describes the task, preferably in English. It is put before each string in
    /// the format of [`instruct`](crate::instruct).
    Instruction(String),
    /// The prompt with this name in [`Embedder::prompts`](crate::Embedder::prompts).
    Named(String),
}

/// What happens to a text with more tokens than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Overflow {
    /// The request fails with [`Error::TextTooLong`](crate::Error::TextTooLong).
    #[default]
    Error,
    /// The beginning of the text is cut off. This includes the prompt, which is cut off first.
    TruncateLeft,
    /// The end of the text is cut off. The end-of-text token is kept.
    TruncateRight,
}
