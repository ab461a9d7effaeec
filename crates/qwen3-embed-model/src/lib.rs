//! The Qwen3 decoder for embeddings and rerank scores: token ids in, one vector or logit per text out.
//!
//! [`Checkpoint::open`] opens a folder with `config.json` and safetensors files, or a GGUF file.
//! [`Checkpoint::open_folder`] opens a [`Folder`], whose files may be in memory. [`Model::load_with`]
//! loads the decoder of a checkpoint, and [`Model::forward`] computes a vector for each text: by default the hidden
//! state of the text's last token after the final norm. Vectors are neither truncated nor normalized here.
//! [`RerankHead`] computes a reranker's logit from the hidden state.
//!
//! Texts that begin with the same tokens share the work for these tokens, within a call and, through a cache, between
//! calls; see [`Sharing`]. A model may be used by several threads at the same time.
//!
//! This crate works on token ids. The crate `qwen3-embed-text` tokenizes texts, and the facade crate `qwen3-embed`
//! combines the two.
//!
//! Shapes are written with the letters of [`qwen3_embed_kernels`]: N texts, T tokens in the batch, H query heads, K
//! key/value heads, D head dimension, C hidden size, F feed-forward size.

mod batching;
mod checkpoint;
mod device;
mod error;
mod forward;
mod numerics;
mod precision;

pub use batching::sharing::{Sharing, SharingCounts};
pub use checkpoint::adapter::Adapter;
pub use checkpoint::config::Config;
pub use checkpoint::fields::Fields;
pub use checkpoint::folder::Folder;
pub use checkpoint::gguf_vocabulary::GgufVocabulary;
pub use checkpoint::head::Head;
pub use checkpoint::sentence_transformers::{Module, SentenceTransformers};
pub use checkpoint::summary::{Memory, Summary};
pub use checkpoint::{Checkpoint, StoredTokenizer};
pub use device::Device;
pub use error::{Error, Result};
pub use forward::decoder::{Model, Trace};
pub use forward::load::LoadOptions;
pub use forward::pooling::Pooling;
pub use forward::rerank_head::RerankHead;
pub use precision::Precision;
pub use qwen3_embed_kernels::cpu::{Arithmetic, Kernels};
pub use qwen3_embed_kernels::{cpu::search, measure};
