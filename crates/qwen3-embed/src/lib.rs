//! Qwen3 text embeddings and rerank scores: texts in, vectors and scores out.
//!
//! ```
//! use qwen3_embed::Embedder;
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/wide");
//! // An id such as `Qwen/Qwen3-Embedding-0.6B`, a folder with a model's files, or a GGUF file.
//! let embedder = Embedder::builder(folder).build()?;
//!
//! let documents = embedder.embed_documents(&[
//!     "The capital of China is Beijing.",
//!     "Gravity is a force that attracts two bodies towards each other.",
//! ])?;
//! let queries = embedder.embed_queries(&["What is the capital of China?"])?;
//!
//! let best = documents.top_k(queries.row(0), 1)?;
//! println!("document {} with cosine {:.3}", best[0].index, best[0].score);
//! # assert_eq!(best.len(), 1);
//! # Ok::<(), qwen3_embed::Error>(())
//! ```
//!
//! # Models
//!
//! A [`Source`] is a model's folder, its GGUF file, or its id on the hub, from which it is then downloaded,
//! once. Without the feature `hub`, nothing touches the network.
//!
//! # Queries and documents
//!
//! A query is embedded behind an instruction that says what is searched for, a document is embedded
//! as it is: [`Embedder::embed_queries`], [`Embedder::embed_queries_with`] and
//! [`Embedder::embed_documents`]. For tasks in which texts are compared with their like, such as
//! similarity or clustering, embed all of them the same way.
//!
//! # Reranking
//!
//! A [`Reranker`] reads a query and a document together and says how well the one answers the other:
//! [`Reranker::rank`] sorts the hits of a search, [`Reranker::scores`] scores pairs.
//!
//! # Dimensions
//!
//! The models are trained so that the first values of a vector are a shorter embedding by
//! themselves: [`EmbedderBuilder::dimensions`] takes any number from 32 to the model's hidden size,
//! and [`Embeddings::truncate`] shortens what is already there. Vectors are cut first and brought
//! to unit length second.
//!
//! # Concurrency
//!
//! An [`Embedder`] is [`Send`] and [`Sync`] and all its methods take `&self`, and so is a [`Reranker`]:
//! share one between threads. A call uses all threads of rayon's global pool, or of a pool of its own, see
//! [`EmbedderBuilder::threads`].
//!
//! Where many callers come at once with a few texts each, as in a server, put the model behind a queue:
//! [`Embedder::into_service`] and [`Reranker::into_service`] give a [`Service`] with `async` methods that
//! computes the texts of all callers together, in batches, and needs no particular runtime.
//!
//! # Precision and memory
//!
//! Weights are kept in the precision that the checkpoint is stored in, bf16 for the published ones, unless
//! [`EmbedderBuilder::precision`] says otherwise: see [`Precision`].
//! [`Source::info`] says, without loading a model, what it takes in each: [`Info::memory`]. Token embeddings
//! stay in the memory-mapped file, and [`EmbedderBuilder::batch_tokens`] bounds what a call takes on top.
//!
//! # Errors
//!
//! Everything that can go wrong is an [`Error`] that names the file, field, text, value and limit. No input
//! panics. [`Error::text_mut`] tells which text of a call an error is about.
//!
//! # Environment
//!
//! Nothing but `Hub::from_env`, [`Kernels::VARIABLE`], and rayon for its pool, reads the environment. `Hub::from_env` goes by
//! `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE` and what else the hub's programs have, and is what a builder uses
//! that is given no `Hub`. A model that was downloaded works offline: if the hub cannot be reached, what is in
//! the cache is used, and with `HF_HUB_OFFLINE=1`, or with a commit's hash as the revision, the hub is not asked
//! at all.
//!
//! This crate logs nothing, and downloads without a word unless `Hub::on_download` is set.
//!
//! # Features
//!
//! - `hub`, on by default: downloads.
//! - `cuda`: [`Device::Cuda`], with weights in f32 or bf16. Building it needs the CUDA toolkit, as the README says.
#![forbid(unsafe_code)]

mod builder;
mod cross_encoder;
mod embedder;
mod embeddings;
mod engine;
mod error;
mod repository;
mod reranker;
mod service;
mod source;
mod vector;
mod warnings;

pub use builder::{EmbedderBuilder, Overflow};
pub use embedder::Embedder;
pub use embeddings::{Embeddings, Hit, Similarities};
pub use error::{Error, Result};
pub use qwen3_embed_model::{
    Arithmetic, Config, Device, Error as ModelError, Head, Kernels, Memory, Pooling, Precision,
    Sharing, SharingCounts, Summary,
};
pub use qwen3_embed_text::{
    DEFAULT_INSTRUCTION, Error as TextError, Piece, QueryFrame, RerankTemplate, SpecialTokens,
    Tokenizer, Vocabulary, check_white_space, instruct, unframe_document,
};
pub use reranker::{RankOptions, RankedDocument, Reranker, RerankerBuilder};
pub use service::{
    BatchReport, EmbedOptions, Embedded, OnBatch, Prompt, ScoreOptions, Scored, Service,
    ServiceOptions, ServiceState, Texts, Timings,
};
#[cfg(feature = "hub")]
pub use source::{Hub, HubError, HubProblem, Progress};
pub use source::{Info, Source};
pub use vector::{cosine, normalize};
