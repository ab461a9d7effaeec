//! Text embeddings and rerank scores with Qwen3 models.
//!
//! ```
//! use qwen3_embed::Embedder;
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/wide");
//! // An id on the hub such as `Qwen/Qwen3-Embedding-0.6B`, the folder of a model, or a GGUF file.
//! let embedder = Embedder::builder(folder).build()?;
//!
//! let documents = embedder.embed_documents(&[
//!     "The capital of China is Beijing.",
//!     "Gravity is a force that attracts two bodies towards each other.",
//! ])?;
//! let query = embedder.embed_query("What is the capital of China?")?;
//!
//! let best = documents.top_k(&query, 1)?;
//! println!("document {} with cosine {:.3}", best[0].index, best[0].score);
//! # assert_eq!(best.len(), 1);
//! # Ok::<(), qwen3_embed::Error>(())
//! ```
//!
//! # Models
//!
//! A [`Source`] is the folder of a model, a GGUF file, or an id on the hub. A model on the hub is downloaded once, to a
//! cache. Without the feature `hub`, nothing touches the network.
//!
//! # Queries and documents
//!
//! Queries are embedded with an instruction that describes the task, documents without one:
//! [`Embedder::embed_query`] and [`Embedder::embed_document`], or [`Embedder::embed_queries`] and
//! [`Embedder::embed_documents`] for several texts at once. For tasks that compare texts of the same kind, such as
//! similarity or clustering, embed all texts in the same way.
//!
//! [`Embedder::embed_with`] has options for one call, such as another instruction or fewer dimensions: see
//! [`EmbedOptions`]. [`Embedder::embed_iter`] embeds the texts of an iterator of any length, a file for instance,
//! with limited memory.
//!
//! # Reranking
//!
//! A [`Reranker`] reads a query and a document together and scores how well the document answers the query:
//! [`Reranker::rank`] sorts the hits of a search, [`Reranker::scores`] scores pairs.
//!
//! # Dimensions
//!
//! The models are trained so that the first values of a vector are a shorter embedding.
//! [`EmbedderBuilder::dimensions`] accepts any number from 32 to the model's hidden size, and
//! [`Embeddings::truncate`] shortens existing embeddings. Vectors are cut first and normalized to unit length second.
//!
//! # Concurrency
//!
//! [`Embedder`] and [`Reranker`] are [`Send`] and [`Sync`], and their methods take `&self`: share one between threads. A
//! call uses all threads of rayon's global pool, or of a pool of its own, see [`EmbedderBuilder::threads`].
//!
//! If many callers arrive at the same time with a few texts each, as in a server, put the model behind a queue.
//! [`Embedder::into_service`] and [`Reranker::into_service`] return a [`Service`]. Its methods are `async` and need no
//! particular runtime, and it computes the texts of all callers together, in batches.
//!
//! # Precision and memory
//!
//! By default, weights are kept in the precision of the checkpoint, which is bf16 for the published ones.
//! [`EmbedderBuilder::precision`] chooses another one, see [`Precision`].
//! [`Source::info`] returns, without loading a model, how much memory it needs in each precision: [`Info::memory`].
//! Token embeddings stay in the memory-mapped file. [`EmbedderBuilder::batch_tokens`] limits the memory that a call
//! needs in addition.
//!
//! # Errors
//!
//! Every error is an [`Error`] that names the file, field, text, value or limit that it is about. No input causes a
//! panic. [`Error::text_index`] is the index of the text in the call.
//!
//! # Environment
//!
//! Three places read environment variables: `Hub::from_env`, [`Kernels::VARIABLE`], and rayon for its global pool.
//! `Hub::from_env` reads `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE` and the other variables of the hub's programs. A builder
//! uses it unless it is given a `Hub`. A downloaded model works offline: if the hub cannot be reached, the version in
//! the cache is used. With `HF_HUB_OFFLINE=1`, or with the hash of a commit as the revision, there is no request to
//! the hub at all.
//!
//! The crate prints nothing. It emits warnings with `tracing`, and reports the progress of downloads to
//! `Hub::on_download` only.
//!
//! # Features
//!
//! - `hub`, on by default: downloads.
//! - `hf-hub`: a second transport for downloads, `Hub::transport`: the official hf-hub crate, for files in Xet storage. It
//!   adds about 190 crates and a C library.
//! - `cuda`: [`Device::Cuda`], with weights in f32 or bf16. Building it needs the CUDA toolkit, see the README.
#![forbid(unsafe_code)]

mod builder;
mod cross_encoder;
mod embed_iter;
mod embed_options;
mod embed_request;
mod embedder;
mod embeddings;
mod engine;
mod error;
mod limits;
mod repository;
mod reranker;
mod score;
mod service;
mod source;
mod text;
mod vector;
mod warnings;

pub use builder::EmbedderBuilder;
pub use embed_iter::{EmbedIter, Embedding};
pub use embed_options::{EmbedOptions, Overflow, Prompt};
pub use embedder::Embedder;
pub use embeddings::{Embeddings, Hit, Similarities};
pub use error::{Error, Result};
#[cfg(feature = "hf-hub")]
pub use qwen3_embed_hub::Transport;
#[cfg(feature = "hub")]
pub use qwen3_embed_hub::{Hub, HubError, HubProblem, Progress};
pub use qwen3_embed_model::{
    Arithmetic, Config, Device, Error as ModelError, Head, Kernels, Memory, Pooling, Precision,
    Sharing, SharingCounts, Summary,
};
pub use qwen3_embed_text::{
    DEFAULT_INSTRUCTION, Error as TextError, Piece, QueryFrame, RerankTemplate, SpecialTokens,
    Tokenizer, Vocabulary, check_white_space, instruct, unframe_document,
};
pub use reranker::{Reranker, RerankerBuilder};
pub use score::{RankedDocument, ScoreOptions, Scores};
pub use service::{
    BatchReport, Embedded, OnBatch, Scored, Service, ServiceOptions, ServiceState, Timings,
};
pub use source::{Info, Source};
pub use text::Text;
pub use vector::{cosine, normalize};
