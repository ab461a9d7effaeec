//! The HTTP server as a library: [`app`] is a router that a program serves with [`serve`], nests in its own,
//! or calls without a socket in tests.
//!
//! Its clients are those that exist: OpenAI's, those of Cohere's and Jina's rerank, and those of
//! text-embeddings-inference.
//!
//! | route | answer |
//! |---|---|
//! | `POST /v1/embeddings`, `/embeddings` | embeddings, in OpenAI's shape |
//! | `GET /v1/models`, `/v1/models/{id}` | the models that are served |
//! | `POST /v1/rerank`, `/v2/rerank`, `/rerank` | documents by rank |
//! | `POST /v1/score`, `/score` | scores of pairs |
//! | `POST /embed`, `/similarity`, `/tokenize`, `/decode`, `GET /info` | as text-embeddings-inference |
//! | `POST /` | the same as `/embed`, or as `/rerank` where only a reranker is served |
//! | `GET /livez`, `/readyz`, `/health`, `/metrics` | operations |
//! | `GET /docs` | OpenAPI; the document itself is `/openapi.json` |
//! | `GET /` | the playground |
//!
//! Bodies may be compressed with gzip or zstd. A slash at the end of a path is ignored.
//!
//! Every error has the body that OpenAI's clients expect: `{"error": {"message", "type", "param", "code"}}`.
//!
//! ```no_run
//! use qwen3_embed::{Embedder, ServiceOptions};
//! use qwen3_embed_server::{AppState, Models, ServeOptions, ServerOptions, serve};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let state = AppState::new(ServerOptions::default());
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:30000").await?;
//! let embedder = Embedder::builder("Qwen/Qwen3-Embedding-0.6B").build()?;
//! let models = Models { embedder: Some(("Qwen3".into(), embedder)), reranker: None };
//! state.start(models, ServiceOptions::default()).await?;
//! serve(listener, state, ServeOptions::default(), std::future::pending()).await?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod body;
mod coding;
mod error;
mod input;
mod metrics;
mod middleware;
mod names;
mod respond;
mod router;
mod routes;
mod serve;
mod state;

pub use names::ModelNames;
pub use router::{app, openapi};
pub use serve::{ServeOptions, Unfinished, serve};
pub use state::{AppState, Models, Readiness, ServerOptions};
