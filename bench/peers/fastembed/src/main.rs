//! Embeds token ids with fastembed-rs: a JSON list of token lists on each line of standard input,
//! the list of their vectors on a line of standard output.
//!
//! fastembed-rs takes texts. Here a text is its token ids as decimal numbers between spaces, and the
//! tokenizer is one whose vocabulary is these numbers, so that the model gets exactly these ids.

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device};
use candle_nn::VarBuilder;
use fastembed::{Qwen3Config, Qwen3Model, Qwen3TextEmbedding};
use tokenizers::Tokenizer;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

fn main() -> Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from).context("usage: fastembed-peer DIR")?;
    let embedder = load(&dir)?;
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let batch: Vec<Vec<u32>> = serde_json::from_str(&line?)?;
        let texts: Vec<String> = batch.iter().map(|tokens| spell(tokens)).collect();
        serde_json::to_writer(&mut output, &embedder.embed(&texts)?)?;
        writeln!(output)?;
        output.flush()?;
    }
    Ok(())
}

/// The checkpoint in `dir`, in f32.
fn load(dir: &Path) -> Result<Qwen3TextEmbedding> {
    let config: Qwen3Config = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
    ensure!(!files.is_empty(), "{} has no safetensors file", dir.display());
    // SAFETY: nothing writes to the checkpoint while a benchmark reads it.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&files, DType::F32, &Device::Cpu)? };
    let prefixed = weights.contains_tensor("model.embed_tokens.weight");
    let weights = if prefixed { weights.pp("model") } else { weights };
    let tokenizer = number_tokenizer(config.vocab_size)?;
    Ok(Qwen3TextEmbedding::new(Qwen3Model::new(config, weights)?, tokenizer))
}

fn spell(tokens: &[u32]) -> String {
    tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

/// A tokenizer that reads token ids written as numbers.
fn number_tokenizer(vocab_size: usize) -> Result<Tokenizer> {
    let vocab = (0..vocab_size as u32).map(|id| (id.to_string(), id)).collect();
    let model = WordLevel::builder().vocab(vocab).build().map_err(anyhow::Error::from_boxed)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(WhitespaceSplit));
    Ok(tokenizer)
}
