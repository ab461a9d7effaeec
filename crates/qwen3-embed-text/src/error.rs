use std::path::PathBuf;

/// What can go wrong between a text and its tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is no `tokenizer.json`, or a vocabulary is not one of byte-pair encoding.
    #[error("{} is not a tokenizer", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: tokenizers::Error,
    },
    /// A vocabulary is not that of a Qwen3 model, or its parts do not fit one another.
    #[error("{}: {what}: expected {expected}, got {got}", path.display())]
    Vocabulary {
        /// The file that the vocabulary comes from.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What is understood.
        expected: String,
        /// What is there.
        got: String,
    },
    /// The tokenizer's post-processor adds something else than one token behind the text, so that
    /// it is not one of a model that pools the last token.
    #[error(
        "{}: the post-processor turns the tokens {bare:?} into {processed:?}; expected them \
         unchanged or with one token behind them",
        path.display()
    )]
    PostProcessor {
        /// The tokenizer's file.
        path: PathBuf,
        /// A text's own tokens.
        bare: Vec<u32>,
        /// The same text's tokens after the post-processor.
        processed: Vec<u32>,
    },
    /// Neither the post-processor nor the vocabulary has an end-of-text token.
    #[error("{} has no end-of-text token: expected `{expected}`", path.display())]
    NoEndOfText {
        /// The tokenizer's file.
        path: PathBuf,
        /// The token that was looked for.
        expected: &'static str,
    },
    /// The tokenizer lacks a token that a reranker's prompt or its answer is made of.
    #[error("{} has no token `{token}`, which a reranker needs", path.display())]
    NoToken {
        /// The tokenizer's file.
        path: PathBuf,
        /// The token that was looked for.
        token: &'static str,
    },
    /// A limit leaves no room for a reranker's prompt, of which only document and query may be cut.
    #[error(
        "the prompt takes {n_tokens} tokens without query and document, the limit is {max_tokens}"
    )]
    FrameTooLong {
        /// Tokens of the prompt, its instruction included.
        n_tokens: usize,
        /// The limit.
        max_tokens: usize,
    },
    /// A token that should be turned into text is not in the vocabulary.
    #[error("token id {id} at position {position} is not in the vocabulary")]
    NoSuchToken {
        /// Its position.
        position: usize,
        /// The token id.
        id: u32,
    },
    /// Tokens could not be turned into text.
    #[error("the tokens could not be decoded")]
    Decode {
        /// What the tokenizer said.
        source: tokenizers::Error,
    },
    /// A text could not be tokenized.
    #[error("text {text} could not be tokenized")]
    Encode {
        /// Index of the text in the call.
        text: usize,
        /// What the tokenizer said.
        source: tokenizers::Error,
    },
    /// A text has a longer run of white space than the tokenizer's regex engine can follow; it would
    /// silently give other tokens from there on.
    #[error("text {text} has {got} white-space characters in a row, the limit is {limit}")]
    WhiteSpace {
        /// Index of the text in the call.
        text: usize,
        /// Length of the longest run, in characters.
        got: usize,
        /// The longest run that is tokenized.
        limit: usize,
    },
}

/// A result whose error is this crate's.
pub type Result<T> = std::result::Result<T, Error>;
