//! What a file calls the tensors of the decoder and of its heads.

use std::collections::HashMap;

use crate::checkpoint::gguf;

/// What the file calls the decoder's tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Naming {
    /// By the checkpoint's names.
    Checkpoint {
        /// What stands before the names of the decoder's tensors.
        prefix: String,
        /// What stands before those of its heads.
        head_prefix: String,
    },
    /// By those of llama.cpp.
    Gguf,
}

/// The heads that a checkpoint may have.
const HEADS: [&str; 3] = ["lm_head.", "score.", "linear."];

/// The decoder's name in models that put a head on it.
const DECODER: &str = "model.";

/// Modules that a model is wrapped in while it is trained or compiled, or that are a part of a larger
/// model. The names of their tensors begin with these.
const WRAPPERS: [&str; 4] = ["module.", "_orig_mod.", "base_model.model.", "language_model."];

/// The tensor that shows what stands before the decoder's names.
const EMBEDDINGS: &str = "embed_tokens.weight";

impl Naming {
    /// The checkpoint's own names.
    pub(crate) fn bare() -> Self {
        Self::Checkpoint { prefix: String::new(), head_prefix: String::new() }
    }

    /// What the names of a checkpoint's tensors begin with, as the token embeddings show. The full names
    /// of the token embeddings if there are several, or if they begin with something else than known
    /// wrappers.
    pub(crate) fn of_checkpoint<T>(
        tensors: &HashMap<String, T>,
    ) -> std::result::Result<Self, Vec<String>> {
        let is_embeddings = |name: &&String| {
            name.strip_suffix(EMBEDDINGS)
                .is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        };
        let mut names: Vec<&String> = tensors.keys().filter(is_embeddings).collect();
        names.sort_unstable();
        let naming = match &names[..] {
            [] => Some(Self::bare()),
            [name] => Self::of_prefix(name.strip_suffix(EMBEDDINGS).unwrap_or_default()),
            _ => None,
        };
        naming.ok_or_else(|| names.into_iter().cloned().collect())
    }

    fn of_prefix(prefix: &str) -> Option<Self> {
        let mut rest = prefix;
        while let Some(inner) = WRAPPERS.iter().find_map(|wrapper| rest.strip_prefix(wrapper)) {
            rest = inner;
        }
        let head_prefix = prefix.strip_suffix(rest)?.to_owned();
        ["", DECODER]
            .contains(&rest)
            .then(|| Self::Checkpoint { prefix: prefix.to_owned(), head_prefix })
    }

    /// Whether the tensors are named as those of a decoder by itself, which is how embedding models are
    /// saved: models that put a head on it name it.
    pub(crate) fn is_of_decoder_alone(&self) -> bool {
        matches!(self, Self::Checkpoint { prefix, head_prefix } if prefix == head_prefix)
    }

    /// What the file calls the tensor `name` of the decoder or of a head, which stands beside it.
    pub(crate) fn name_in_file(&self, name: &str) -> String {
        match self {
            Self::Checkpoint { head_prefix, .. }
                if HEADS.iter().any(|head| name.starts_with(head)) =>
            {
                format!("{head_prefix}{name}")
            }
            Self::Checkpoint { prefix, .. } => format!("{prefix}{name}"),
            Self::Gguf => gguf::name_in_file(name),
        }
    }
}
