//! Warnings about models that can be loaded, but are probably not the intended ones.

use std::path::Path;

use qwen3_embed_model::{Checkpoint, Config, Head, Pooling};
use qwen3_embed_text::Tokenizer;

/// The vocabulary sizes of Qwen3-Embedding: the first of 0.6B, the second of 4B and 8B. Other Qwen3 models have 151,936
/// tokens.
const PUBLISHED_VOCABULARIES: [usize; 2] = [151_669, 151_665];

/// Warns if a model that is loaded as an embedding model looks like a reranker or another language model.
pub(crate) fn of_reranker(checkpoint: &Checkpoint, head: Head) {
    let path = checkpoint.path();
    let has_lm_head = matches!(head, Head::LmHead | Head::TiedLmHead);
    let reason = if is_named_reranker(path) {
        "its name contains `rerank`"
    } else if has_lm_head && !checkpoint.is_gguf() && !checkpoint.has_modules() {
        "it is a causal language model without a modules.json"
    } else {
        return;
    };
    tracing::warn!(
        "{} may not be an embedding model: {reason}. The embeddings of a reranker are meaningless: if it is a \
         reranker, use `Reranker`, or on the command line `rerank` or `serve --reranker-path`",
        path.display()
    );
}

/// Warns if an adapter is in the folder of a model, because such an adapter is not read.
pub(crate) fn of_left_over_adapter(checkpoint: &Checkpoint) {
    if checkpoint.has_unused_adapter() {
        tracing::warn!(
            "{dir} contains an adapter beside the weights of a model: the adapter is not read, because it may \
             already be merged into the weights. If it is not merged, add it with `.adapter(…)` or \
             `--adapter {dir}`",
            dir = checkpoint.path().display()
        );
    }
}

/// Warns if the tokenizer of a published embedding model was saved without the post-processor that appends the
/// end-of-text token.
pub(crate) fn of_missing_post_processor(
    config: &Config,
    pooling: Pooling,
    tokenizer: &Tokenizer,
    path: &Path,
) {
    if looks_published(config, pooling) && !tokenizer.appends_end_of_text() {
        tracing::warn!(
            "{} does not append an end-of-text token, although Qwen3-Embedding was trained with this token after every \
             text. With this file, sentence-transformers computes the same vectors. If the file was saved without its \
             post-processor by mistake, use the tokenizer.json of the published model",
            path.display()
        );
    }
}

fn is_named_reranker(path: &Path) -> bool {
    path.to_string_lossy().to_lowercase().contains("rerank")
}

fn looks_published(config: &Config, pooling: Pooling) -> bool {
    pooling == Pooling::LastToken && PUBLISHED_VOCABULARIES.contains(&config.vocab_size)
}
