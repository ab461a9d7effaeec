//! Tensor kernels of the Qwen3 forward pass over ragged batches.
//!
//! [`ops`] has one function for each operation of the forward pass, on candle tensors. [`cpu`] has the CPU kernels that
//! these functions call, on slices, for several instruction sets. [`reference`](mod@reference) has the same operations
//! as plain loops in f64. Tests compare every kernel with them. [`measure`] measures the speed of every kernel.
//!
//! A batch is *ragged*: the tokens of all texts are concatenated without padding. Tokens at the beginning of several
//! texts, if they are the same, can be in the batch only once. [`Ragged`] describes a batch.
//!
//! Shapes are written with these letters throughout the crate:
//!
//! | letter | meaning |
//! |---|---|
//! | N | texts in the batch |
//! | T | tokens of all texts that the forward pass computes |
//! | P | tokens whose keys and values are already known, for example from the prefix cache |
//! | H | query heads |
//! | K | key/value heads; each serves H / K query heads |
//! | D | head dimension |
//! | C | hidden size (channels of the residual stream) |
//! | F | feed-forward (intermediate) size |
//! | I, O | input and output features of a linear layer |

pub mod cpu;
#[cfg(any(test, feature = "cuda"))]
mod cuda;
mod error;
pub mod measure;
mod memory;
pub mod ops;
mod ragged;
pub mod reference;

pub use error::{Error, Result};
pub use ragged::{Queries, Ragged, Segment, SegmentKind};
