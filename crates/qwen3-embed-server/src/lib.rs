//! An HTTP server for Qwen3 embedding and reranking models, as a library.
//!
//! [`app`] returns a router. A program serves the router with [`serve`], or nests the router in its own. Tests call the
//! router without a socket. [`AppState`] holds the models and the settings.
//!
//! The routes are those of OpenAI's embeddings API, of the rerank APIs of Cohere, Jina and vLLM, and of
//! text-embeddings-inference. `GET /docs` lists all routes, from the OpenAPI document at `/openapi.json`, which
//! [`openapi`] returns too. Request bodies are JSON, optionally compressed with gzip or zstd. A slash at the end of a
//! path is ignored.
//!
//! The body of every error has the shape that OpenAI's clients expect:
//! `{"error": {"message", "type", "param", "code"}}`.
//!
//! # Examples
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
mod content_encoding;
mod error;
mod idle;
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
