use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;

use crate::checkpoint::fields::Fields;
use crate::checkpoint::modules::Modules;
use crate::forward::decoder::open;
use crate::forward::dense::projected_size;
use crate::forward::workspace;
use crate::numerics::{Numerics, StoredTypes};
use crate::{Config, Precision, Result};

/// What a checkpoint is, read from its configuration and the headers of its files: no weight is read.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// The hyper-parameters.
    pub config: Config,
    /// Values of all tensors, a separate head's included.
    pub n_parameters: u64,
    /// The types that tensors are stored in, by the names of the format, with the number of values of
    /// each.
    pub stored: BTreeMap<String, u64>,
    /// Bytes of the files with tensors.
    pub file_bytes: u64,
    /// What is behind the decoder.
    pub head: Head,
    /// Dimensions of a text's vector: the hidden size, unless a dense layer behind the decoder changes it.
    pub embedding_size: usize,
    /// The precision that [`Precision::Stored`] is for this checkpoint.
    pub stored_precision: Precision,
    /// Bytes of the token embeddings in the file, which stay there.
    embedding_bytes: u64,
    /// The values of the layers' matrices that are in blocks of few bits, and their bytes when they are packed.
    blocks: [u64; 2],
}

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

/// Memory that a model takes, estimated from its shapes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// The packed weights.
    pub weights: u64,
    /// The token embeddings: pages of the memory-mapped file, as far as texts have used them.
    pub embeddings: u64,
    /// The activations of a batch.
    pub workspace: u64,
}

impl Memory {
    /// All of it.
    pub fn total(self) -> u64 {
        self.weights.saturating_add(self.embeddings).saturating_add(self.workspace)
    }
}

impl Summary {
    /// Looks at the checkpoint at `path`, a folder or a GGUF file, as [`Model::load`](crate::Model::load)
    /// does.
    ///
    /// # Errors
    ///
    /// As [`Model::load`](crate::Model::load), but for tensors that do not fit the configuration.
    pub fn read(path: &Path) -> Result<Self> {
        let (config, weights) = open(path)?;
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
            embedding_size: embedding_size(
                path,
                projected_size(&weights, &config).unwrap_or(config.hidden_size),
            )?,
            stored_precision: weights.layer_types().precision,
            blocks: weights.blocks(),
            embedding_bytes: weights.rows("embed_tokens.weight", shape)?.n_bytes(),
            config,
        })
    }

    /// The memory that the model takes in a precision, with texts that are computed in batches of
    /// `batch_tokens` tokens. In `Int8` it is at most this much. The cache of what texts have in common, the tokenizer and the program itself come on top.
    pub fn memory(&self, precision: Precision, batch_tokens: usize) -> Memory {
        let has_blocks = self.blocks != [0; 2];
        let stored = StoredTypes { precision: self.stored_precision, has_blocks };
        let numerics = Numerics::choose(precision, stored, &Device::Cpu);
        let bytes_per_token = workspace::bytes_per_token(&self.config, numerics, &Device::Cpu);
        Memory {
            weights: self.config.weight_bytes(
                numerics.precision,
                numerics.precision.bytes_per_weight(),
                self.blocks,
            ),
            embeddings: self.embedding_bytes,
            workspace: (bytes_per_token as u64).saturating_mul(batch_tokens as u64),
        }
    }
}

/// Dimensions behind the last dense layer of a folder's modules. What else they may be is for whoever loads
/// them: a reranker's are others.
fn embedding_size(path: &Path, hidden_size: usize) -> Result<usize> {
    let modules = Modules::read(path).ok().flatten().unwrap_or_default();
    match modules.dense.last() {
        Some(dir) => Fields::read(&dir.join("config.json"))?.count("out_features"),
        None => Ok(hidden_size),
    }
}

impl Config {
    /// Bytes of the packed weights, without the padding of the last panel. `blocks` are the values and the packed bytes of
    /// the matrices that are in blocks of few bits, most of which `Int8` uses without conversion.
    fn weight_bytes(&self, precision: Precision, bytes_per_weight: f64, blocks: [u64; 2]) -> u64 {
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
    use qwen3_embed_kernels::cpu::{Arithmetic, BYTE_GROUP, Kernels};

    use super::*;
    use crate::{Device, Model};

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
    }

    #[test]
    fn parameters_types_and_heads_are_those_of_the_files() {
        for (name, head) in [
            ("base", Head::None),
            ("causal-lm-tied", Head::TiedLmHead),
            ("causal-lm-untied", Head::LmHead),
        ] {
            let summary = Summary::read(&fixture(name)).unwrap();
            assert_eq!(summary.head, head, "{name}");
            let stored: u64 = summary.stored.values().sum();
            assert_eq!(summary.n_parameters, stored);
            // Each file is its tensors, and a header of a few kilobytes.
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
        let dense = Summary::read(&fixture("../sentence-transformers/mean-dense")).unwrap();
        let model = Model::load(
            &fixture("../sentence-transformers/mean-dense"),
            Device::Cpu,
            Precision::F32,
        );
        let model = model.unwrap();
        assert_ne!(model.embedding_size(), dense.config.hidden_size);
        assert_eq!(dense.embedding_size, model.embedding_size());
        let summary = Summary::read(&fixture("gguf-q8-0/model.gguf")).unwrap();
        assert!(summary.stored.contains_key("Q8_0"), "{summary:?}");
        assert_eq!(summary.head, Head::None);
    }

    #[test]
    fn numbers_of_a_damaged_configuration_are_large_and_no_nonsense() {
        let (from, dir) = (fixture("base"), tempfile::tempdir().unwrap());
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
        let summary = Summary::read(dir.path()).unwrap();
        assert!(summary.config.n_operations(1) > 1e19);
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let memory = summary.memory(precision, usize::MAX);
            assert_eq!((memory.weights, memory.workspace), (u64::MAX, u64::MAX), "{precision:?}");
            assert_eq!(memory.total(), u64::MAX);
        }
    }

    #[test]
    fn the_estimate_is_what_the_packed_weights_take() {
        for name in ["wide", "base", "outliers", "gguf-q8-0/model.gguf", "gguf-k-quants/model.gguf"]
        {
            let path = fixture(name);
            let summary = Summary::read(&path).unwrap();
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                let model = Model::load(&path, Device::Cpu, precision).unwrap();
                let real = model.weight_bytes() as f64;
                let at_most = summary.memory(precision, 1).weights as f64;
                // On CPUs that multiply bytes, any weight may have larger groups and fewer scales.
                let may_be_bytes = Kernels::current().int8_weights == Arithmetic::Bytes;
                let smallest = match may_be_bytes && precision == Precision::Int8 {
                    true => 1.0 + 4.0 / BYTE_GROUP as f64,
                    false => precision.bytes_per_weight(),
                };
                let at_least = summary.config.weight_bytes(precision, smallest, summary.blocks);
                let [most, least] = [at_most, at_least as f64].map(|estimate| estimate / real);
                // Narrow matrices are padded to whole panels, and those that meet outliers have a few
                // columns more.
                assert!(
                    most >= 0.75 && least <= 1.01,
                    "{name}, {precision:?}: {least} to {most} of what is packed"
                );
            }
        }
    }
}
