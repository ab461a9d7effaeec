//! The forward pass: from token ids to vectors and logits.

pub(crate) mod activations;
pub(crate) mod calibration;
pub(crate) mod decoder;
pub(crate) mod dense;
pub(crate) mod layer;
pub(crate) mod layer_loader;
pub(crate) mod load;
pub(crate) mod pooling;
pub(crate) mod quantizer;
pub(crate) mod recordings;
pub(crate) mod rerank_head;
pub(crate) mod rope;
pub(crate) mod token_embeddings;
pub(crate) mod workspace;
