use std::path::PathBuf;

/// Errors of loading a tokenizer, of tokenizing and of decoding.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is not a valid `tokenizer.json`, or the vocabulary of a GGUF file is not valid for byte-pair encoding.
    #[error("{} does not contain a valid tokenizer", path.display())]
    Tokenizer {
        /// The tokenizer file or the GGUF file.
        path: PathBuf,
        /// The error of the tokenizers crate.
        source: tokenizers::Error,
    },
    /// The vocabulary of a GGUF file does not belong to a Qwen3 model, or the parts of the vocabulary contradict each
    /// other.
    #[error("{}: {what}: expected {expected}, got {got}", path.display())]
    Vocabulary {
        /// The file that contains the vocabulary.
        path: PathBuf,
        /// The part of the vocabulary that is wrong.
        what: String,
        /// The supported value.
        expected: String,
        /// The value in the file.
        got: String,
    },
    /// The post-processor of the tokenizer changes a text in another way than by appending one token, so the tokenizer
    /// does not belong to a Qwen3 embedding model.
    #[error(
        "{}: the post-processor turns the tokens {bare:?} into {processed:?}; expected the same \
         tokens, with at most one token appended",
        path.display()
    )]
    PostProcessor {
        /// The tokenizer file.
        path: PathBuf,
        /// Tokens of a text before the post-processor.
        bare: Vec<u32>,
        /// Tokens of the same text after the post-processor.
        processed: Vec<u32>,
    },
    /// The post-processor appends no token, and the vocabulary has no end-of-text token.
    #[error("{} has no end-of-text token: expected `{expected}`", path.display())]
    NoEndOfText {
        /// The tokenizer file.
        path: PathBuf,
        /// The missing token.
        expected: &'static str,
    },
    /// The tokenizer lacks a token of the reranker's prompt, or one of the tokens `yes` and `no`.
    #[error("{} has no token `{token}`, which a reranker needs", path.display())]
    MissingToken {
        /// The tokenizer file.
        path: PathBuf,
        /// The missing token.
        token: &'static str,
    },
    /// The limit is too small for a reranker's prompt, even without query and document.
    #[error(
        "the prompt takes {n_tokens} tokens without query and document, the limit is {max_tokens}"
    )]
    FrameTooLong {
        /// Number of tokens of the prompt, including the instruction.
        n_tokens: usize,
        /// The limit.
        max_tokens: usize,
    },
    /// The chunks of a text would be too small for their overlap.
    #[error(
        "chunks of {max_tokens} tokens are too small: with an overlap of {overlap} tokens, a chunk \
         needs at least {min}"
    )]
    ChunkSize {
        /// The maximum number of tokens of a chunk, with the end-of-text token.
        max_tokens: usize,
        /// The maximum number of tokens that chunks have in common.
        overlap: usize,
        /// The smallest maximum with this overlap.
        min: usize,
    },
    /// A token id that should be decoded is not in the vocabulary.
    #[error("token id {id} at position {position} is not in the vocabulary")]
    UnknownTokenId {
        /// Position of the token id.
        position: usize,
        /// The token id.
        id: u32,
    },
    /// Token ids could not be decoded.
    #[error("the token ids could not be decoded")]
    Decode {
        /// The error of the tokenizers crate.
        source: tokenizers::Error,
    },
    /// A text could not be tokenized.
    #[error("text {text} could not be tokenized")]
    Encode {
        /// Index of the text in the caller's list.
        text: usize,
        /// The error of the tokenizers crate.
        source: tokenizers::Error,
    },
    /// A text has more white space in a row than the regex engine of the tokenizer supports. Without this error, the
    /// rest of the text would be tokenized in a wrong way.
    #[error("text {text} has {got} white-space characters in a row, the limit is {limit}")]
    WhiteSpace {
        /// Index of the text in the caller's list.
        text: usize,
        /// Length of the longest run of white space, in characters.
        got: usize,
        /// The longest run that is supported, in characters.
        limit: usize,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
