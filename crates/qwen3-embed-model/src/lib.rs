//! The Qwen3 decoder for embeddings and rerank scores: token ids in, one vector or logit per text out.
//!
//! [`Model::load`] reads a checkpoint's folder (`config.json` and its safetensors, sharded or not) or
//! a GGUF file, and [`Model::forward`] gives the hidden state of each text's last token after the final norm:
//! not yet truncated, not yet of unit length. [`RerankHead`] turns it into a reranker's logit. Tokens that texts begin with are computed once, within a
//! call and, as far as there is room to keep them, for later ones. A model may be shared between
//! threads.
//!
//! This crate never sees a text: tokens come from `qwen3-embed-text`, and the facade crate
//! `qwen3-embed` puts the two together.
//!
//! Shapes are written with the letters of [`qwen3_embed_kernels`]: N texts, T tokens in the batch,
//! H query heads, K key/value heads, D head dimension, C hidden size, F feed-forward size.

mod batching;
mod checkpoint;
mod device;
mod error;
mod forward;
mod numerics;
mod precision;

pub use batching::sharing::{Sharing, SharingCounts};
pub use checkpoint::config::Config;
pub use checkpoint::summary::{Head, Memory, Summary};
pub use checkpoint::vocabulary::Vocabulary;
pub use device::Device;
pub use error::{Error, Result};
pub use forward::decoder::{LoadOptions, Model, Trace};
pub use forward::head::RerankHead;
pub use forward::pooling::Pooling;
pub use precision::Precision;
pub use qwen3_embed_kernels::cpu::{Arithmetic, Kernels};
