//! Tensor kernels of the Qwen3 forward pass over ragged batches.
//!
//! [`ops`] holds one function for each operation of the forward pass, on candle tensors. [`cpu`]
//! holds the kernels that they run on the processor, on slices, for several instruction sets.
//! [`reference`](mod@reference) holds the same operations as plain loops in f64: the oracle against
//! which every kernel is tested.
//!
//! A batch is *ragged*: the tokens of all texts lie end to end, without padding, those that texts
//! share only once, and [`Ragged`] says where they are.
//!
//! Shapes are written with these letters, everywhere in this crate:
//!
//! | letter | meaning |
//! |---|---|
//! | N | texts in the batch |
//! | T | tokens in the batch that are computed, all texts together |
//! | P | tokens in the batch whose keys and values are given |
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
