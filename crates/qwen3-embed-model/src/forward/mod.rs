//! The forward pass: from token ids to vectors and logits.

pub(crate) mod calibration;
pub(crate) mod decoder;
pub(crate) mod dense;
pub(crate) mod head;
pub(crate) mod layer;
pub(crate) mod pooling;
pub(crate) mod rope;
pub(crate) mod token_embeddings;
pub(crate) mod workspace;
