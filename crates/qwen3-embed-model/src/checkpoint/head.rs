use crate::checkpoint::naming::Naming;
use crate::checkpoint::weights::{PROJECTION, Weights};

/// What a checkpoint has behind the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Head {
    /// Nothing: hidden states are the result, as of an embedding model.
    None,
    /// A language model's head that is the token embeddings. In GGUF files it does not show.
    TiedLmHead,
    /// A language model's head of its own.
    LmHead,
    /// A classifier's: `score.weight`, or `cls.output.weight` in GGUF files.
    Score,
}

impl Weights {
    /// What is behind the decoder.
    pub(crate) fn head(&self) -> Head {
        if self.contains("score.weight") {
            return Head::Score;
        }
        match self.naming {
            _ if self.contains("lm_head.weight") => Head::LmHead,
            // Its model has `model.` before the decoder's names because of the layer.
            _ if self.contains(PROJECTION) => Head::None,
            Naming::Checkpoint { .. } if !self.naming.is_of_decoder_alone() => Head::TiedLmHead,
            Naming::Checkpoint { .. } | Naming::Gguf => Head::None,
        }
    }
}
