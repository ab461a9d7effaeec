//! Tensor kernels of the Qwen3 forward pass over ragged batches.
//!
//! [`ops`] has one function for each operation of the forward pass, on candle tensors. [`cpu`] has the kernels that they
//! run on the CPU, on slices, for several instruction sets. [`reference`](mod@reference) has the same operations as plain
//! loops in f64, the oracles with which every kernel is compared.
//!
//! A batch is *ragged*: the tokens of all texts are concatenated without padding, and tokens that texts share are there
//! only once. [`Ragged`] describes a batch.
//!
//! Shapes are written with these letters throughout the crate:
//!
//! | letter | meaning |
//! |---|---|
//! | N | texts in the batch |
//! | T | tokens of all texts that are computed |
//! | P | tokens whose keys and values are given |
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
pub mod ops;
mod ragged;
pub mod reference;

pub use error::{Error, Result};
pub use ragged::{Queries, Ragged, Segment, SegmentKind};
