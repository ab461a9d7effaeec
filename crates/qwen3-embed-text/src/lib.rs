//! Tokenizer, prompts and truncation for Qwen3 embedding models and rerankers: strings in, token ids out.
//!
//! The input of an embedding model is the tokens of a text followed by one end-of-text token. Last-token pooling uses
//! the hidden state at this token as the vector. [`Tokenizer::encode`] appends the end-of-text token even if the
//! post-processor in `tokenizer.json` does not, and [`truncate`] keeps the token.
//!
//! Queries are embedded with an instruction, see [`instruct`]. Documents are embedded without an instruction.
//!
//! A reranker reads a query and a document inside a prompt, see [`RerankTemplate`]. The prompt has no end-of-text
//! token. [`QueryFrame`] recognizes queries that already contain the prompt.
//!
//! This crate does not depend on candle and has no tensors.
#![forbid(unsafe_code)]

mod chunk;
mod error;
mod frame;
mod parts;
mod rerank;
mod template;
mod tokenizer;
mod truncate;
mod vocabulary;

pub use chunk::{Chunk, ChunkOptions};
pub use error::{Error, Result};
pub use frame::{QueryFrame, unframe_document};
pub use rerank::RerankTemplate;
pub use template::{DEFAULT_INSTRUCTION, instruct};
pub use tokenizer::{Piece, SpecialTokens, Tokenizer, check_white_space};
pub use truncate::{TruncationSide, truncate};
pub use vocabulary::Vocabulary;
