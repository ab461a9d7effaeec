//! Default limits, and the ranges of settings.

use qwen3_embed_model::Device;

use crate::{Error, Result};

/// The default maximum length of a text that is embedded, in tokens, for a model with this `max_seq_length` in its
/// `sentence_bert_config.json`.
pub(crate) fn embedder_max_tokens(max_seq_length: Option<usize>) -> usize {
    max_seq_length.unwrap_or(32_768)
}

/// The default maximum length of a reranker's prompt, in tokens: the limit in the code of the model card.
pub(crate) const RERANKER_MAX_TOKENS: usize = 8192;

/// The default batch budget of calls to an [`Embedder`](crate::Embedder) or a [`Reranker`](crate::Reranker), in
/// tokens, on every device.
///
/// One forward pass computes one batch. The budget trades throughput against latency and memory:
///
/// - A larger budget raises the throughput, because weights are read from memory once per batch.
/// - A larger budget raises the latency in a service, because a request that arrives while a batch is computed waits
///   until that batch is finished.
/// - A larger budget takes more memory for activations.
///
/// A call returns when all its texts are computed, so the latency of a single batch does not matter here.
///
/// The number is repeated in the documentation of `batch_tokens` in `engine.rs`, and in the help text of
/// `--batch-tokens`.
pub(crate) const BATCH_TOKENS: usize = 4096;

/// The default batch budget of a [`Service`](crate::Service), in tokens. [`BATCH_TOKENS`] lists the effects of a larger
/// budget.
///
/// The budget on the CPU is smaller than [`BATCH_TOKENS`], because requests that arrive during a batch wait for its
/// end. On two cores of a 5th generation Xeon, with 0.6B in int8 and 64 texts of 32 tokens, 1024 tokens reach 95 % of the
/// throughput of 4096 (606 and 641 tokens/s), and a batch takes 1.7 s instead of 6.4 s. A CUDA device needs more tokens to be fully used, and computes a batch in less time.
///
/// The numbers are repeated in the documentation of `ServiceOptions::batch_tokens`, and in the help text of
/// `serve --max-batch-tokens`.
pub(crate) fn service_batch_tokens(device: Device) -> usize {
    match device {
        Device::Cpu => 1024,
        _ => 8192,
    }
}

/// The minimum number of dimensions for models whose vectors have at least [`PUBLISHED_SIZE`] dimensions.
const MIN_DIMENSIONS: usize = 32;

/// The hidden size of the smallest published model.
const PUBLISHED_SIZE: usize = 1024;

/// The minimum number of dimensions that vectors of `embedding_size` dimensions can be cut to.
pub(crate) fn min_dimensions(embedding_size: usize) -> usize {
    if embedding_size >= PUBLISHED_SIZE { MIN_DIMENSIONS } else { 1 }
}

/// Checks that vectors of `embedding_size` dimensions can be cut to `got` dimensions.
pub(crate) fn check_dimensions(got: usize, embedding_size: usize) -> Result<()> {
    let min = min_dimensions(embedding_size);
    if (min..=embedding_size).contains(&got) {
        Ok(())
    } else {
        Err(Error::Dimensions { got, min, max: embedding_size })
    }
}

/// Checks that a setting is in the range 1 to `max`.
pub(crate) fn check_setting(setting: &'static str, got: usize, max: usize) -> Result<()> {
    if (1..=max).contains(&got) {
        Ok(())
    } else {
        Err(Error::Setting { setting, got, min: 1, max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_models_have_at_least_32_dimensions_and_smaller_models_1() {
        for (embedding_size, min) in [(1024, 32), (2560, 32), (4096, 32), (512, 1), (64, 1)] {
            for got in [min, min + 1, embedding_size - 1, embedding_size] {
                check_dimensions(got, embedding_size).unwrap();
            }
            for got in [0, min - 1, embedding_size + 1, usize::MAX] {
                let error = check_dimensions(got, embedding_size).unwrap_err();
                let expected = format!("`dimensions` is {got}, expected {min} to {embedding_size}");
                assert_eq!(error.to_string(), expected);
            }
        }
    }
}
