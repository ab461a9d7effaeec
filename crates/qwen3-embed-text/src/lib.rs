//! Strings in, token ids out: the tokenizer, the templates and truncation of the Qwen3 embedding models
//! and rerankers.
//!
//! An input of an embedding model is its text's tokens followed by exactly one end-of-text token:
//! the model's answer is the hidden state at that token. [`Tokenizer::encode`] appends it whether or
//! not `tokenizer.json` says so, and [`truncate`] keeps it.
//!
//! Queries are embedded behind an instruction, see [`instruct`]; documents are embedded bare.
//!
//! A reranker reads a query and a document in a frame, see [`RerankTemplate`], without an end-of-text
//! token. [`QueryFrame`] recognizes texts whose client has put the frame around them already.
//!
//! This crate never sees a tensor.
#![forbid(unsafe_code)]

mod error;
mod frame;
mod rerank;
mod template;
mod tokenizer;
mod truncate;
mod vocabulary;

pub use error::{Error, Result};
pub use frame::{QueryFrame, unframe_document};
pub use rerank::RerankTemplate;
pub use template::{DEFAULT_INSTRUCTION, instruct};
pub use tokenizer::{Piece, SpecialTokens, Tokenizer, check_white_space};
pub use truncate::{TruncationSide, truncate};
pub use vocabulary::Vocabulary;
