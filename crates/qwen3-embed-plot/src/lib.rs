//! Pictures of text embeddings: a heatmap of similarities, and a map of texts in two dimensions.
//!
//! Pictures are written as SVG or PNG. The text in a picture is drawn as paths with a font that is a part of this crate,
//! so a picture looks the same on machines without fonts. The font covers Chinese, Japanese, Korean, Vietnamese and
//! Russian, and the languages of western Europe. For other characters, the fonts of the machine are used.
//!
//! ```
//! use qwen3_embed::{Embedder, Source};
//! use qwen3_embed_plot::heatmap;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vectors = Embedder::builder(Source::demo()).build()?.embed_documents(&["天气", "weather"])?;
//! let names = ["中文".to_owned(), "英文".to_owned()];
//! let picture = heatmap(&names, &vectors.similarity(&vectors)?)?;
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("similarity.png");
//! picture.write(&path)?; // similarity.png or similarity.svg
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod error;
mod font;
mod heatmap;
mod picture;
mod scatter;

pub use error::PlotError;
pub use heatmap::{MAX_NAMES, heatmap};
pub use picture::Picture;
pub use scatter::{Point, scatter};
