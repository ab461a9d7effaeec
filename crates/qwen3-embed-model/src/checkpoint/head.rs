use crate::checkpoint::naming::Naming;
use crate::checkpoint::weights::{PROJECTION, Weights};

/// The head of a checkpoint: the layer after the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Head {
    /// No head: the result is hidden states, as in an embedding model.
    None,
    /// The head of a language model whose weights are the token embeddings. A GGUF file does not show such a head, so
    /// it is described as [`None`](Self::None).
    TiedLmHead,
    /// The head of a language model with its own weights, `lm_head.weight`.
    LmHead,
    /// The head of a classifier: `score.weight`, or `cls.output.weight` in a GGUF file.
    Score,
}

impl Weights {
    /// The head, found by the names of the tensors.
    pub(crate) fn head(&self) -> Head {
        if self.contains("score.weight") {
            return Head::Score;
        }
        match self.naming {
            _ if self.contains("lm_head.weight") => Head::LmHead,
            // The prefix `model.` does not show a language model here: models with a projection have it, too.
            _ if self.contains(PROJECTION) => Head::None,
            Naming::Checkpoint { .. } if !self.naming.has_no_head_name() => Head::TiedLmHead,
            Naming::Checkpoint { .. } | Naming::Gguf => Head::None,
        }
    }
}
