//! Text embeddings and rerank scores with Qwen3 models.
//!
//! ```
//! use qwen3_embed::Embedder;
//!
//! # let model = qwen3_embed::Source::demo();
//! // An id on the Hugging Face Hub such as `Qwen/Qwen3-Embedding-0.6B`, the folder of a model, or a GGUF file.
//! let embedder = Embedder::builder(model).build()?;
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
//! A [`Source`] is the folder of a model, a GGUF file, or an id on the Hugging Face Hub, which is called "the hub" in
//! this documentation. A model on the hub is downloaded once, to a cache. Without the feature `hub`, the crate never
//! uses the network. [`Source::from_files`] is a model that is a part of the program.
//!
//! # Tests without a network
//!
//! With the feature `demo-model`, `Source::demo()` is a small embedding model that is a part of the program. Tests of
//! your own program can use it: they need no download, no folder and no network. Turn the feature on for tests only:
//!
//! ```toml
//! [dev-dependencies]
//! qwen3-embed = { version = "0.1", features = ["demo-model"] }
//! ```
//!
//! ```
//! use futures_executor::block_on;
//! use qwen3_embed::{EmbedOptions, Embedder, Service, ServiceOptions, Source};
//!
//! /// The function under test.
//! async fn embed_title(service: &Service<Embedder>, title: &str) -> qwen3_embed::Result<Vec<f32>> {
//!     let embedded = service.embed([title.to_owned()], EmbedOptions::new()).await?;
//!     Ok(embedded.embeddings.row(0).to_vec())
//! }
//!
//! let service = Embedder::builder(Source::demo()).build()?.into_service(ServiceOptions::new())?;
//! let vector = block_on(embed_title(&service, "The capital of China is Beijing."))?;
//! assert_eq!(vector.len(), 256);
//! # Ok::<(), qwen3_embed::Error>(())
//! ```
//!
//! The vectors have a meaning, but the model is no replacement for Qwen3-Embedding.
//!
//! # Queries and documents
//!
//! Queries are embedded with an instruction that describes the task, documents without one:
//! [`Embedder::embed_query`] and [`Embedder::embed_document`], or [`Embedder::embed_queries`] and
//! [`Embedder::embed_documents`] for several texts at once. For tasks that compare texts of the same kind, such as
//! similarity or clustering, embed all texts in the same way.
//!
//! [`Embedder::embed_with`] has options for one call, such as another instruction or fewer dimensions: see
//! [`EmbedOptions`]. [`Embedder::embed_iter`] embeds the texts of an iterator, for instance the lines of a file. The
//! memory that it needs does not grow with the number of texts.
//!
//! # Reranking
//!
//! A [`Reranker`] reads a query and a document together and scores how well the document answers the query:
//! [`Reranker::rank`] sorts the hits of a search, and [`Reranker::scores`] computes the scores of pairs.
//!
//! # Dimensions
//!
//! The published models are trained with Matryoshka representation learning: the first values of a vector are a shorter
//! embedding. For these models, [`EmbedderBuilder::dimensions`] accepts any number from 32 to the hidden size.
//! [`Embeddings::truncate`] shortens existing embeddings. Vectors are cut before they are normalized to unit length.
//!
//! # Search and storage
//!
//! [`Embeddings::top_k`] compares a query with every vector. It needs no index, and on one core it reads the vectors about
//! as fast as the memory allows. Vectors in fewer bits take less memory and are compared faster:
//!
//! | method | type | memory |
//! |---|---|---|
//! | | [`Embeddings`] | 4 bytes a dimension |
//! | [`Embeddings::to_f16`] | [`F16Embeddings`] | 2 bytes |
//! | [`Embeddings::to_int8`] | [`Int8Embeddings`] | 1 byte |
//! | [`Embeddings::to_binary`] | [`BinaryEmbeddings`] | 1 bit |
//!
//! A search in 8-bit integers or bits may miss some of the best vectors. [`Embeddings::rescore`] chooses the best of more
//! candidates by the full vectors, which may be on a slower medium.
//!
//! # Concurrency
//!
//! [`Embedder`] and [`Reranker`] are [`Send`] and [`Sync`], and their methods take `&self`, so threads can share a
//! model. On the CPU, each call uses all threads of rayon's global pool, or of the model's own pool if
//! [`EmbedderBuilder::threads`] is set. On a CUDA device, these threads tokenize.
//!
//! If many callers send a few texts each at the same time, as in a server, put the model behind a queue:
//! [`Embedder::into_service`] and [`Reranker::into_service`] return a [`Service`]. A service computes the texts of all
//! callers together, in batches. Its methods are `async` and work with any async runtime.
//!
//! # Precision and memory
//!
//! By default, weights are kept in the precision of the checkpoint, which is bf16 for the published models.
//! [`EmbedderBuilder::precision`] chooses another [`Precision`]. [`Source::info`] describes a model without loading it,
//! and [`Info::memory`] estimates how much memory the model needs in a precision. On the CPU, the token embeddings stay
//! in the memory-mapped file unless [`EmbedderBuilder::preload`] is set. [`EmbedderBuilder::batch_tokens`] limits the
//! memory for the activations of a call.
//!
//! # Errors
//!
//! Every error is an [`Error`] that names the file, field, text, value or limit that it is about. No text, model file
//! or setting causes a panic. [`Error::text_index`] returns the index of the text that an error is about.
//!
//! # Environment
//!
//! Three places read environment variables: `Hub::from_env`, [`Kernels::VARIABLE`], and rayon for its global pool.
//! `Hub::from_env` reads `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE` and the other variables of the hub's own programs. A
//! builder uses `Hub::from_env` unless its method `hub` sets another `Hub`. A downloaded model works offline: if the
//! hub cannot be reached, the version in the cache is used. No request is sent to the hub if `HF_HUB_OFFLINE=1` is set,
//! or if the revision is the hash of a commit whose files are all in the cache.
//!
//! The crate prints nothing. It emits warnings with `tracing`, and reports the progress of downloads to
//! `Hub::on_download` only.
//!
//! # Features
//!
//! - `hub`, on by default: downloads.
//! - `hf-hub`: a second transport for downloads, which `Hub::transport` selects. It is the official hf-hub crate, for
//!   files in Xet storage. This feature adds about 190 crates and a C library, and needs Rust 1.95.
//! - `demo-model`: `Source::demo()`, a small embedding model that makes the program 13 MB larger.
//! - `ndarray`: conversions between [`Embeddings`] and `ndarray::Array2<f32>`, and a view without a copy.
//! - `arrow`: conversions between vectors and arrays of Arrow (`FixedSizeListArray`, `FixedSizeBinaryArray`).
//! - `cuda`: [`Device::Cuda`], with weights in f32 or bf16. The build needs the CUDA toolkit, see the README.
#![forbid(unsafe_code)]

#[cfg(feature = "arrow")]
mod arrow;
mod builder;
mod compact;
mod cross_encoder;
mod embed_iter;
mod embed_options;
mod embed_request;
mod embedder;
mod embeddings;
mod engine;
mod error;
mod limits;
#[cfg(feature = "ndarray")]
mod ndarray;
mod repository;
mod reranker;
mod score;
mod search;
mod service;
mod source;
mod text;
mod vector;
mod warnings;

pub use builder::EmbedderBuilder;
pub use compact::binary::{BinaryEmbeddings, hamming, pack_signs};
pub use compact::float16::F16Embeddings;
pub use compact::int8::{Int8Embeddings, Int8Scales, dot_int8, quantize_int8};
pub use embed_iter::{EmbedIter, Embedding};
pub use embed_options::{EmbedOptions, Overflow, Prompt};
pub use embedder::Embedder;
pub use embeddings::{Embeddings, Similarities};
pub use error::{Error, Result};
pub use half::f16;
#[cfg(feature = "hf-hub")]
pub use qwen3_embed_hub::Transport;
#[cfg(feature = "hub")]
pub use qwen3_embed_hub::{Hub, HubError, HubProblem, Progress};
pub use qwen3_embed_model::{
    Arithmetic, Config, Device, Error as ModelError, Head, Kernels, Memory, Pooling, Precision,
    Sharing, SharingCounts, Summary, measure,
};
pub use qwen3_embed_text::{
    Chunk, ChunkOptions, DEFAULT_INSTRUCTION, Error as TextError, Piece, QueryFrame,
    RerankTemplate, SpecialTokens, Tokenizer, Vocabulary, check_white_space, instruct,
    unframe_document,
};
pub use reranker::{Reranker, RerankerBuilder};
pub use score::{RankedDocument, ScoreOptions, Scores};
pub use search::Hit;
pub use service::{
    BatchReport, Embedded, OnBatch, Scored, Service, ServiceOptions, ServiceState, Timings,
};
pub use source::{Info, Source};
pub use text::Text;
pub use vector::{cosine, normalize};
