use std::collections::BTreeMap;

use candle_core::Device;
use qwen3_embed_kernels::cpu::Arithmetic;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::head::Head;
use crate::forward::workspace;
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
    /// The precision that [`Precision::Auto`] selects for this checkpoint on this CPU.
    pub auto: Precision,
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

/// The bytes of a weight in 8 bits, including its share of the scale of 32 weights. Weights for activations in 8 bits
/// share a scale among 64 and need 6 % less. Which weights these are is only known after the model is loaded.
const INT8_SIZE: f64 = 1.0 + 4.0 / 32.0;

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
        let stored_precision = weights.stored_precision();
        Ok(Self {
            n_parameters: stored.values().sum(),
            stored,
            file_bytes: weights.file_bytes(),
            head: weights.head(),
            embedding_size: embedding_size(checkpoint)?,
            stored_precision: Precision::Stored.resolve(stored_precision, &Device::Cpu),
            auto: Precision::Auto.resolve(stored_precision, &Device::Cpu),
            blocks: weights.blocks(),
            embedding_bytes: weights.rows("embed_tokens.weight", shape)?.n_bytes(),
            config: config.clone(),
        })
    }

    /// Estimates the memory that the model needs in a precision, with batches of `batch_tokens` tokens. For `Int8`, the
    /// estimate is an upper limit. The prefix cache, the tokenizer and the program itself need memory, too.
    pub fn memory(&self, precision: Precision, batch_tokens: usize) -> Memory {
        let precision = match precision {
            Precision::Auto => self.auto,
            Precision::Stored => self.stored_precision,
            precision => precision,
        };
        Memory {
            weights: self.config.weight_bytes(precision, self.blocks, INT8_SIZE),
            embeddings: self.embedding_bytes,
            workspace: self
                .config
                .workspace_bytes(precision.arithmetic_on(&Device::Cpu), batch_tokens),
        }
    }
}

/// Dimensions of a text's vector. Modules that cannot be read are ignored: loading an embedding model reports
/// them, and the modules of a reranker are others.
fn embedding_size(checkpoint: &Checkpoint) -> Result<usize> {
    let modules = checkpoint.modules().ok().flatten().unwrap_or_default();
    match modules.dense.last() {
        Some(dense) => dense.config.count("out_features"),
        None => Ok(checkpoint.projected_size().unwrap_or(checkpoint.config().hidden_size)),
    }
}

impl Config {
    /// The bytes of the packed weights, without the padding of the last panel. A weight in 8 bits needs `int8_size`
    /// bytes with its share of a scale. `blocks` are the values and the packed bytes of the matrices that `Int8` uses
    /// without conversion.
    fn weight_bytes(&self, precision: Precision, blocks: [u64; 2], int8_size: f64) -> u64 {
        let [c, f, qkv, q] = self.widths();
        let (layers, head_dim) = (self.num_hidden_layers as f64, self.head_dim as f64);
        let matrices = layers * (c * (qkv + q) + 3.0 * c * f);
        let vectors = layers * (2.0 * c + 2.0 * head_dim) + c;
        let matrices = match precision {
            Precision::F32 => matrices * 4.0,
            Precision::Bf16 => matrices * 2.0,
            Precision::Int8 | Precision::Stored | Precision::Auto => {
                let [values, bytes] = blocks.map(|n| n as f64);
                (matrices - values).max(0.0) * int8_size + bytes
            }
        };
        (matrices + vectors * 4.0) as u64
    }

    /// The bytes of the activations of a batch.
    fn workspace_bytes(&self, arithmetic: Arithmetic, n_tokens: usize) -> u64 {
        let [c, f, qkv, q] = self.widths();
        let kv = qkv - q;
        // The residual stream, queries, keys and values.
        let in_f32 = c + qkv;
        // The inputs of matrix multiplications, and packed keys and values.
        let in_product_type = c + q + f + kv;
        let product_type = workspace::product_type(arithmetic).size_in_bytes() as f64;
        let quantized = match arithmetic {
            Arithmetic::F32 | Arithmetic::Bf16 => 0.0,
            // The widest input again, quantized to 16 bits and to 8 bits.
            Arithmetic::Int8 | Arithmetic::Bytes | Arithmetic::Blocks => 3.0 * f.max(q),
        };
        let per_token = 4.0 * in_f32 + product_type * in_product_type + quantized;
        (n_tokens as f64 * per_token) as u64
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use qwen3_embed_kernels::cpu::{BYTE_GROUP, Kernels};

    use super::*;
    use crate::{Device, Model};

    fn summary(path: &Path) -> Summary {
        Summary::of(&Checkpoint::open(path).unwrap()).unwrap()
    }

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
    }

    #[test]
    fn describes_parameters_types_and_heads() {
        for (name, head) in [
            ("base", Head::None),
            ("causal-lm-tied", Head::TiedLmHead),
            ("causal-lm-untied", Head::LmHead),
        ] {
            let summary = summary(&fixture(name));
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
        let dense = summary(&fixture("../sentence-transformers/mean-dense"));
        let model = Model::load(
            &fixture("../sentence-transformers/mean-dense"),
            Device::Cpu,
            Precision::F32,
        );
        let model = model.unwrap();
        assert_ne!(model.embedding_size(), dense.config.hidden_size);
        assert_eq!(dense.embedding_size, model.embedding_size());
        let summary = summary(&fixture("gguf-q8-0/model.gguf"));
        assert!(summary.stored.contains_key("Q8_0"), "{summary:?}");
        assert_eq!(summary.head, Head::None);
    }

    #[test]
    fn huge_numbers_in_the_configuration_do_not_overflow() {
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
        for name in ["wide", "base", "outliers", "gguf-q8-0/model.gguf", "gguf-k-quants/model.gguf"]
        {
            let path = fixture(name);
            let summary = summary(&path);
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                let model = Model::load(&path, Device::Cpu, precision).unwrap();
                let real = model.weight_bytes() as f64;
                let at_most = summary.memory(precision, 1).weights as f64;
                // On a CPU with VNNI, any matrix may have groups of this size.
                let may_be_bytes = Kernels::current().int8_weights == Arithmetic::Bytes;
                let smallest = if may_be_bytes { 1.0 + 4.0 / BYTE_GROUP as f64 } else { INT8_SIZE };
                let at_least = summary.config.weight_bytes(precision, summary.blocks, smallest);
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
