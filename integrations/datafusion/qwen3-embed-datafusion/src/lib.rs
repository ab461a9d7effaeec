//! Qwen3 embedding and reranking models as SQL functions of [Apache DataFusion](https://datafusion.apache.org).
//!
//! | Function | Result |
//! |---|---|
//! | `embed(text)` | the vector of a document, a list of fixed size of `Float32` |
//! | `embed_query(query [, instruction])` | the vector of a query, with the model's prompt or with an instruction |
//! | `rerank(query, document)` | the relevance of a document, from 0 to 1, `Float32` |
//! | `cosine_similarity(a, b)` | the cosine similarity of two vectors, from −1 to 1, `Float32` |
//! | `binary_quantize(vector)` | the signs of a vector as packed bits |
//! | `hamming(a, b)` | the number of different bits, `UInt32` |
//!
//! A result is null if an argument is. Texts may have the types `Utf8`, `LargeUtf8` and `Utf8View`, and those of
//! dictionaries of them. [`Qwen3Options`] are the options of a session.
//!
//! # Examples
//!
//! ```
//! use std::sync::Arc;
//!
//! use datafusion::execution::SessionStateBuilder;
//! use datafusion::prelude::SessionContext;
//! use qwen3_embed_datafusion::{Functions, ModelSettings, Models};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> datafusion::error::Result<()> {
//! // Without a name, the functions use the bundled model, which is for examples and tests.
//! let models = Models::new(ModelSettings::default());
//! let state = SessionStateBuilder::new_with_default_features();
//! let state = Functions::local(Arc::new(models)).register(state).build();
//! let context = SessionContext::new_with_state(state);
//!
//! let query = "
//!     SELECT text, cosine_similarity(embed(text), embed_query('weather forecast')) AS score
//!     FROM (VALUES ('It will rain tomorrow.'), ('She plays the violin.')) AS documents(text)
//!     ORDER BY score DESC";
//! context.sql(query).await?.show().await?;
//! # Ok(())
//! # }
//! ```

mod embed;
mod error;
mod functions;
mod local;
mod models;
mod options;
mod regroup;
mod remote;
mod rerank;
mod rows;
mod server;
mod vectors;

pub use error::Error;
pub use functions::Functions;
pub use models::{Counts, ModelSettings, Models};
pub use options::Qwen3Options;
pub use regroup::RegroupRows;
pub use server::{Server, ServerSettings};
