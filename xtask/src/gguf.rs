//! `cargo xtask gguf`: writes a checkpoint as a GGUF file, with the tensor types that llama.cpp chooses.

mod metadata;

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;
use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use clap::ValueEnum;
use qwen3_embed::{Embedder, Pooling};
use qwen3_embed_model::Checkpoint;

use crate::checkpoint_tensors;

/// Write an embedding model as a quantized GGUF file
///
/// The types of the tensors are those that llama.cpp's quantize program chooses. The values are rounded by candle-core,
/// whose search for the scales of Q4_K and Q6_K is simpler than that of llama.cpp, so a little more accuracy is lost.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the model: config.json, tokenizer.json and safetensors files
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Which types the matrices have
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    mixture: Mixture,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// The types of the matrices of a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mixture {
    /// Q8_0 for all matrices
    #[value(name = "q8_0")]
    Q8_0,
    /// Q4_K for most matrices, and Q6_K for the token embeddings and a part of the value and down projections
    #[value(name = "q4_k_m")]
    Q4KM,
}

impl Mixture {
    /// The number that llama.cpp writes as `general.file_type`.
    fn file_type(self) -> u32 {
        match self {
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
        }
    }
}

/// The modules of a checkpoint and their names in GGUF files.
const MODULES: [(&str, &str); 14] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("embed_tokens", "token_embd"),
    ("norm", "output_norm"),
    ("lm_head", "output"),
];

/// Runs `cargo xtask gguf`.
pub(crate) fn run(args: &Args) -> Result<()> {
    write(&args.model, args.mixture, &args.out)?;
    println!("{}: {} bytes", args.out.display(), args.out.metadata()?.len());
    Ok(())
}

/// Writes the model in `folder` to the file `out`.
pub(crate) fn write(folder: &Path, mixture: Mixture, out: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(folder)?;
    let config = checkpoint.config();
    check(&checkpoint)?;
    let metadata = metadata::of_model(&checkpoint, mixture.file_type())?;
    let mut tensors = Vec::new();
    for (name, tensor) in checkpoint_tensors::read(folder)? {
        let stored_type = match tensor.rank() {
            1 => GgmlDType::F32,
            _ => matrix_type(&name, tensor.dim(1)?, config.num_hidden_layers, mixture),
        };
        let quantized = QTensor::quantize(&tensor.to_dtype(DType::F32)?, stored_type)
            .with_context(|| format!("`{name}` cannot be stored as {stored_type:?}"))?;
        tensors.push((gguf_name(&name)?, quantized));
    }
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let file = File::create(out).with_context(|| out.display().to_string())?;
    Ok(gguf_file::write(&mut BufWriter::new(file), &metadata, &tensors)?)
}

/// Checks that the vector of a text is the normalized hidden state of the last token. A GGUF file could not describe
/// dense layers, and the metadata name this pooling.
fn check(checkpoint: &Checkpoint) -> Result<()> {
    let path = checkpoint.path().display();
    let dense = checkpoint.sentence_transformers().modules().find(|m| m.name() == Some("Dense"));
    ensure!(dense.is_none(), "{path}: expected a model without dense layers");
    let embedder = Embedder::builder(checkpoint.path()).build()?;
    let (is_causal, pooling) = (checkpoint.config().is_causal, embedder.pooling());
    ensure!(
        is_causal && pooling == Pooling::LastToken,
        "{path}: expected causal attention and the pooling LastToken, got {pooling:?}, causal: {is_causal}"
    );
    Ok(())
}

/// The type of a matrix. As in llama.cpp, blocks of 256 values are replaced by blocks of 32 values if 256 does not
/// divide the length of a row.
fn matrix_type(name: &str, row_length: usize, n_layers: usize, mixture: Mixture) -> GgmlDType {
    if mixture == Mixture::Q8_0 {
        return GgmlDType::Q8_0;
    }
    let layer_idx = name.split('.').nth(1).and_then(|idx| idx.parse().ok());
    let is_upgraded = name.contains(".v_proj.") || name.contains(".down_proj.");
    let needs_more_bits = match layer_idx {
        Some(layer_idx) => is_upgraded && use_more_bits(layer_idx, n_layers),
        None => true,
    };
    match (needs_more_bits, row_length.is_multiple_of(256)) {
        (true, true) => GgmlDType::Q6K,
        (true, false) => GgmlDType::Q8_0,
        (false, true) => GgmlDType::Q4K,
        (false, false) => GgmlDType::Q5_0,
    }
}

/// Whether the value and down projections of a layer are stored with more bits: `use_more_bits` of llama.cpp's
/// `llama-quant.cpp`.
fn use_more_bits(layer_idx: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer_idx < eighth || layer_idx >= 7 * n_layers / 8 || (layer_idx - eighth) % 3 == 2
}

/// The name of a checkpoint's tensor in a GGUF file.
fn gguf_name(name: &str) -> Result<String> {
    let (prefix, rest) = match name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) {
        Some((layer_idx, rest)) => (format!("blk.{layer_idx}."), rest),
        None => (String::new(), name),
    };
    let known = rest.rsplit_once('.').and_then(|(module, what)| {
        let (_, name) = MODULES.iter().find(|(known, _)| *known == module)?;
        Some(format!("{prefix}{name}.{what}"))
    });
    match known {
        Some(name) => Ok(name),
        None => bail!("expected the tensors of a Qwen3 decoder, got `{name}`"),
    }
}

#[cfg(test)]
mod tests {
    use qwen3_embed::Precision;
    use qwen3_embed_testing::{fixtures, vectors::cosine};

    use super::*;

    const TEXTS: [&str; 4] = [
        "The weather is great today, perfect for a walk",
        "今天天气真好,适合出去散步",
        "今日の天気はとても良いです<|im_start|>",
        "오늘 날씨가 정말 좋네요",
    ];

    /// The smallest cosine between vectors of the file and vectors of the checkpoint in f32.
    fn least_cosine(fixture: &str, mixture: Mixture) -> f64 {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.gguf");
        write(&fixtures::model(fixture), mixture, &file).unwrap();
        let exact = Embedder::builder(fixtures::model(fixture).as_path())
            .precision(Precision::F32)
            .build()
            .unwrap();
        let quantized = Embedder::builder(file.as_path()).build().unwrap();
        assert_eq!(exact.tokenize(&TEXTS).unwrap(), quantized.tokenize(&TEXTS).unwrap());
        let (exact, quantized) =
            (exact.embed_documents(&TEXTS).unwrap(), quantized.embed_documents(&TEXTS).unwrap());
        let cosines = exact.iter().zip(&quantized).map(|(a, b)| cosine(a, b));
        cosines.fold(1.0, f64::min)
    }

    #[test]
    fn written_gguf_file_has_the_tokens_and_vectors_of_the_checkpoint() {
        // `base` has a hidden size that is not a multiple of 256.
        for fixture in ["wide", "base"] {
            let q8_0 = least_cosine(fixture, Mixture::Q8_0);
            let q4_k_m = least_cosine(fixture, Mixture::Q4KM);
            assert!(q8_0 > 0.999 && q4_k_m > 0.95, "{fixture}: {q8_0} {q4_k_m}");
        }
    }

    #[test]
    fn types_of_q4_k_m_are_those_of_llama_cpp() {
        let upgraded = |n_layers| -> Vec<usize> {
            (0..n_layers).filter(|&layer_idx| use_more_bits(layer_idx, n_layers)).collect()
        };
        assert_eq!(upgraded(3), [2]);
        assert_eq!(upgraded(28), [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]);
        let matrix = |name, row_length| matrix_type(name, row_length, 3, Mixture::Q4KM);
        assert_eq!(matrix("embed_tokens.weight", 256), GgmlDType::Q6K);
        assert_eq!(matrix("layers.2.self_attn.v_proj.weight", 256), GgmlDType::Q6K);
        assert_eq!(matrix("layers.1.self_attn.v_proj.weight", 256), GgmlDType::Q4K);
        assert_eq!(matrix("layers.2.self_attn.q_proj.weight", 256), GgmlDType::Q4K);
        assert_eq!(matrix("layers.2.mlp.down_proj.weight", 320), GgmlDType::Q8_0);
        assert_eq!(matrix("layers.2.mlp.up_proj.weight", 320), GgmlDType::Q5_0);
    }

    #[test]
    fn rejects_models_that_gguf_files_cannot_describe() {
        let dir = tempfile::tempdir().unwrap();
        for (fixture, expected) in [
            ("models/bidirectional", "expected causal attention"),
            ("sentence-transformers/mean-dense", "expected a model without dense layers"),
        ] {
            let out = dir.path().join("model.gguf");
            let error = write(&fixtures::path(fixture), Mixture::Q8_0, &out).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn rejects_tensors_that_gguf_files_cannot_name() {
        assert_eq!(gguf_name("layers.3.mlp.up_proj.weight").unwrap(), "blk.3.ffn_up.weight");
        assert_eq!(gguf_name("norm.weight").unwrap(), "output_norm.weight");
        assert!(gguf_name("layers.0.mlp.experts.weight").is_err());
    }
}
