//! Warnings about models that load and are probably not what the caller wants.

use std::path::Path;

use qwen3_embed_model::{Checkpoint, Config, Head, Pooling};

use crate::engine::Engine;

/// The sizes of the vocabularies of Qwen3-Embedding 0.6B, and of 4B and 8B. Other Qwen3 models have 151,936.
const PUBLISHED_VOCABULARIES: [usize; 2] = [151_669, 151_665];

/// Warns of a model that is loaded as an embedding model and looks like a reranker or another language model.
pub(crate) fn of_reranker(checkpoint: &Checkpoint, head: Head) {
    let path = checkpoint.path();
    let has_lm_head = matches!(head, Head::LmHead | Head::TiedLmHead);
    let reason = if is_named_reranker(path) {
        "it has `rerank` in its name"
    } else if has_lm_head && !checkpoint.is_gguf() && !checkpoint.has_modules() {
        "it is a causal language model without a modules.json"
    } else {
        return;
    };
    tracing::warn!(
        "{} may be no embedding model: {reason}. The embeddings of a reranker mean nothing: use \
         `Reranker` for it, or on the command line `rerank` or `serve --reranker-path`",
        path.display()
    );
}

/// Warns of an adapter in the folder of a model that is not added to it.
pub(crate) fn of_left_over_adapter(checkpoint: &Checkpoint) {
    if checkpoint.has_unused_adapter() {
        tracing::warn!(
            "{dir} has an adapter beside the weights of a model: the adapter is not read, because it may be \
             merged into them. If it is not, add it with `.adapter(…)` or `--adapter {dir}`",
            dir = checkpoint.path().display()
        );
    }
}

/// Warns of a published embedding model whose tokenizer was saved without the template that appends the
/// end-of-text token.
pub(crate) fn of_lost_template(engine: &Engine) {
    let is_published = looks_published(engine.model.config(), engine.model.pooling());
    if is_published && !engine.tokenizer.appends_end_of_text() {
        tracing::warn!(
            "{} appends no end-of-text token, and Qwen3-Embedding was trained with one behind every text: \
             vectors are those of sentence-transformers with this file. If the model was saved without the \
             file's template, take the tokenizer.json of the published model",
            engine.tokenizer_path.display()
        );
    }
}

fn is_named_reranker(path: &Path) -> bool {
    path.to_string_lossy().to_lowercase().contains("rerank")
}

fn looks_published(config: &Config, pooling: Pooling) -> bool {
    pooling == Pooling::LastToken && PUBLISHED_VOCABULARIES.contains(&config.vocab_size)
}
