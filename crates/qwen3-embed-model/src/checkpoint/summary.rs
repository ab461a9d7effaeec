use std::collections::BTreeMap;

use candle_core::Device;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::head::Head;
use crate::forward::workspace;
use crate::numerics::{Numerics, StoredTypes};
use crate::precision::Precision;
use crate::{Config, Result};

/// A description of a checkpoint, from its configuration and the headers of its files. No weights are read.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// The hyper-parameters.
    pub config: Config,
    /// The number of values in all tensors, including a separate head.
    pub n_parameters: u64,
    /// The number of values in each type in which tensors are stored. Types are named as in the file format.
    pub stored: BTreeMap<String, u64>,
    /// The size in bytes of the files with tensors.
    pub file_bytes: u64,
    /// The head after the decoder.
    pub head: Head,
    /// The dimensions of a text's vector: the hidden size, or the width of the last dense layer.
    pub embedding_size: usize,
    /// The precision that [`Precision::Stored`] selects for this checkpoint.
    pub stored_precision: Precision,
    /// The size in bytes of the token embeddings, which stay in the memory-mapped file.
    embedding_bytes: u64,
    /// The size of the matrices in the layers whose blocks the kernels use without conversion: the number of values,
    /// and the bytes after packing.
    blocks: [u64; 2],
}

/// The memory that a model needs in bytes, estimated from its shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// The packed weights.
    pub weights: u64,
    /// The token embeddings. They are pages of the memory-mapped file, and only the pages of tokens that occur in texts
    /// are in memory.
    pub embeddings: u64,
    /// The activations of a batch.
    pub workspace: u64,
}

impl Memory {
    /// The sum.
    pub fn total(self) -> u64 {
        self.weights.saturating_add(self.embeddings).saturating_add(self.workspace)
    }
}

impl Summary {
    /// Describes a checkpoint.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`](crate::Error::MissingTensor) or
    /// [`Error::TensorShape`](crate::Error::TensorShape) if the token embeddings do not fit the configuration;
    /// [`Error::Field`](crate::Error::Field) if a dense layer has no valid width.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let (config, weights) = (checkpoint.config(), checkpoint.weights());
        let mut stored = BTreeMap::new();
        for (name, n_values) in weights.stored_types() {
            *stored.entry(name).or_default() += n_values;
        }
        let shape = [config.vocab_size, config.hidden_size];
        Ok(Self {
            n_parameters: stored.values().sum(),
            stored,
            file_bytes: weights.file_bytes(),
            head: weights.head(),
            embedding_size: embedding_size(checkpoint)?,
            stored_precision: weights.layer_types().precision,
            blocks: weights.blocks(),
            embedding_bytes: weights.n_bytes("embed_tokens.weight", shape)?,
            config: config.clone(),
        })
    }

    /// Estimates the memory that the model needs in a precision, with batches of `batch_tokens` tokens. For `Int8`, the
    /// estimate is an upper limit. The prefix cache, the tokenizer and the program itself need memory, too.
    pub fn memory(&self, precision: Precision, batch_tokens: usize) -> Memory {
        let has_blocks = self.blocks != [0; 2];
        let stored = StoredTypes { precision: self.stored_precision, has_blocks };
        let numerics = Numerics::choose(precision, stored, &Device::Cpu);
        let bytes_per_weight = numerics.precision.bytes_per_weight();
        let bytes_per_token = workspace::bytes_per_token(&self.config, numerics, &Device::Cpu);
        Memory {
            weights: self.config.weight_bytes(numerics.precision, bytes_per_weight, self.blocks),
            embeddings: self.embedding_bytes,
            workspace: (bytes_per_token as u64).saturating_mul(batch_tokens as u64),
        }
    }
}

/// Dimensions of a text's vector. Modules that cannot be read are ignored: loading an embedding model reports them, and
/// a reranker does not use them.
fn embedding_size(checkpoint: &Checkpoint) -> Result<usize> {
    let modules = checkpoint.modules().ok().flatten().unwrap_or_default();
    match modules.dense.last() {
        Some(dense) => dense.config.count("out_features"),
        None => Ok(checkpoint.projected_size().unwrap_or(checkpoint.config().hidden_size)),
    }
}

impl Config {
    /// The bytes of the packed weights, without the padding of the last panel. `bytes_per_weight` includes the share of
    /// a scale. `blocks` are the values and the packed bytes of the matrices that `Int8` uses without conversion.
    pub(crate) fn weight_bytes(
        &self,
        precision: Precision,
        bytes_per_weight: f64,
        blocks: [u64; 2],
    ) -> u64 {
        let [c, f, qkv, q] = self.widths();
        let (layers, head_dim) = (self.num_hidden_layers as f64, self.head_dim as f64);
        let matrices = layers * (c * (qkv + q) + 3.0 * c * f);
        let vectors = layers * (2.0 * c + 2.0 * head_dim) + c;
        let [values, bytes] = match precision {
            Precision::Int8 => blocks.map(|n| n as f64),
            _ => [0.0; 2],
        };
        let matrices = (matrices - values).max(0.0) * bytes_per_weight + bytes;
        (matrices + vectors * 4.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use qwen3_embed_kernels::cpu::{Arithmetic, BYTE_GROUP, Kernels};
    use qwen3_embed_testing::fixtures;

    use super::*;
    use crate::{Device, Model};

    fn summary(path: &Path) -> Summary {
        Summary::of(&Checkpoint::open(path).unwrap()).unwrap()
    }

    #[test]
    fn describes_parameters_types_and_heads() {
        for (name, head) in [
            ("base", Head::None),
            ("causal-lm-tied", Head::TiedLmHead),
            ("causal-lm-untied", Head::LmHead),
        ] {
            let summary = summary(&fixtures::model(name));
            assert_eq!(summary.head, head, "{name}");
            let stored: u64 = summary.stored.values().sum();
            assert_eq!(summary.n_parameters, stored);
            // A file consists of tensors and a header of a few kilobytes.
            let bytes: u64 = summary
                .stored
                .iter()
                .map(|(name, n)| match name.as_str() {
                    "F32" => 4 * n,
                    "BF16" | "F16" => 2 * n,
                    name => panic!("{name}"),
                })
                .sum();
            assert!((1..32 << 10).contains(&(summary.file_bytes - bytes)), "{name}");
        }
        let path = fixtures::path("sentence-transformers/mean-dense");
        let dense = summary(&path);
        let model = Model::load(&path, Device::Cpu, Precision::F32).unwrap();
        assert_ne!(model.embedding_size(), dense.config.hidden_size);
        assert_eq!(dense.embedding_size, model.embedding_size());
        let summary = summary(&fixtures::model("gguf-q8-0"));
        assert!(summary.stored.contains_key("Q8_0"), "{summary:?}");
        assert_eq!(summary.head, Head::None);
    }

    #[test]
    fn huge_numbers_in_the_configuration_do_not_overflow() {
        let (from, dir) = (fixtures::model("base"), tempfile::tempdir().unwrap());
        let mut config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
        for field in
            ["num_attention_heads", "num_key_value_heads", "intermediate_size", "num_hidden_layers"]
        {
            config[field] = (1 << 28).into();
        }
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let weights = std::fs::read(from.join("model.safetensors")).unwrap();
        std::fs::write(dir.path().join("model.safetensors"), weights).unwrap();
        let summary = summary(dir.path());
        assert!(summary.config.n_operations(1) > 1e19);
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let memory = summary.memory(precision, usize::MAX);
            assert_eq!((memory.weights, memory.workspace), (u64::MAX, u64::MAX), "{precision:?}");
            assert_eq!(memory.total(), u64::MAX);
        }
    }

    #[test]
    fn estimates_the_size_of_the_packed_weights() {
        for name in ["wide", "base", "outliers", "gguf-q8-0", "gguf-k-quants"] {
            let path = fixtures::model(name);
            let summary = summary(&path);
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                let model = Model::load(&path, Device::Cpu, precision).unwrap();
                let real = model.weight_bytes() as f64;
                let at_most = summary.memory(precision, 1).weights as f64;
                // On a CPU with VNNI, any matrix may have larger groups and fewer scales.
                let may_be_bytes = Kernels::current().int8_weights == Arithmetic::Bytes;
                let smallest = match may_be_bytes && precision == Precision::Int8 {
                    true => 1.0 + 4.0 / BYTE_GROUP as f64,
                    false => precision.bytes_per_weight(),
                };
                let at_least = summary.config.weight_bytes(precision, smallest, summary.blocks);
                let [most, least] = [at_most, at_least as f64].map(|estimate| estimate / real);
                // Narrow matrices are padded to whole panels, and matrices whose inputs have outliers have additional
                // columns.
                assert!(
                    most >= 0.75 && least <= 1.01,
                    "{name}, {precision:?}: {least} to {most} of what is packed"
                );
            }
        }
    }
}
