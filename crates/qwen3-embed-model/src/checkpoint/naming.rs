//! The names of tensors in a file. Inside of this crate, tensors are named as in the published checkpoints, without a
//! prefix: `layers.0.self_attn.q_proj.weight`, `lm_head.weight`.

use std::collections::HashMap;

use crate::checkpoint::gguf;

/// The naming scheme of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Naming {
    /// The names of the published checkpoints, with prefixes.
    Checkpoint {
        /// The prefix of the decoder's tensors, such as `model.`.
        prefix: String,
        /// The prefix of the head's tensors.
        head_prefix: String,
    },
    /// The names of llama.cpp.
    Gguf,
}

/// How the names of the tensors of heads begin.
const HEADS: [&str; 3] = ["lm_head.", "score.", "linear."];

/// The name of the decoder in models with a head.
const DECODER: &str = "model.";

/// Modules that wrap a model while it is trained or compiled, or that contain it as a part of a larger model. Each
/// adds its name before the names of the tensors.
const WRAPPERS: [&str; 4] = ["module.", "_orig_mod.", "base_model.model.", "language_model."];

/// The tensor whose name shows the prefix of the decoder.
const EMBEDDINGS: &str = "embed_tokens.weight";

impl Naming {
    /// Names without a prefix.
    pub(crate) fn bare() -> Self {
        Self::Checkpoint { prefix: String::new(), head_prefix: String::new() }
    }

    /// Finds the prefixes in the name of the token embeddings.
    ///
    /// # Errors
    ///
    /// The names of all token embeddings, if there are several, or if the prefix is not supported.
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

    /// Whether the tensors belong to a decoder without a head, as in embedding models: only a model with a head puts
    /// `model.` before the names of its decoder.
    pub(crate) fn has_no_head_name(&self) -> bool {
        matches!(self, Self::Checkpoint { prefix, head_prefix } if prefix == head_prefix)
    }

    /// The name in the file of the tensor `name`.
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
