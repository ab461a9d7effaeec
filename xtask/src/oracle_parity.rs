//! `cargo xtask parity --oracle candle`: compares checkpoints with a simple forward pass that consists of candle-nn's
//! layers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use qwen3_embed::{Embedder, Reranker, ScoreOptions};
use qwen3_embed_model::{Checkpoint, Device, LoadOptions, Model, Precision};
use qwen3_embed_testing::oracle::{Oracle, answers};
use qwen3_embed_testing::vectors::{cosine, max_abs, max_difference, unit};

use crate::fixtures;

/// Texts in several languages, and how often each text is repeated.
const TEXTS: [(&str, usize); 14] = [
    ("", 1),
    ("a", 1),
    ("The capital of China is Beijing.", 1),
    ("今天天气真好,适合出去散步", 1),
    ("今日の天気はとても良いです、散歩に最適です", 1),
    ("오늘 날씨가 정말 좋네요, 산책하기 딱 좋아요", 1),
    ("El tiempo es excelente hoy, perfecto para un paseo.", 1),
    ("Погода сегодня прекрасная, самое время для прогулки.", 1),
    ("الطقس رائع اليوم، مثالي للمشي", 1),
    ("आज मौसम बहुत अच्छा है", 1),
    ("fn main() {\n    println!(\"{:>8}\", 1.0 / 3.0);\n}\n", 1),
    ("👩‍🔬 e\u{301} é <|im_start|> \t\n", 1),
    ("Gravity is a force that attracts two bodies towards each other. ", 8),
    ("The same sentence, again and again, until attention reads hundreds of keys. ", 16),
];

/// Pairs of a query and a document.
const PAIRS: [(&str, &str); 6] = [
    ("What is the capital of China?", "The capital of China is Beijing."),
    ("What is the capital of China?", "Gravity is a force that attracts two bodies."),
    ("Explain gravity", "Gravity is a force that attracts two bodies."),
    ("法国首都是哪里？", "法国的首都是巴黎。"),
    ("법국의 수도는 어디입니까?", ""),
    ("", "Погода сегодня прекрасная, самое время для прогулки."),
];

/// The result of the comparison of one text, or of one pair of a query and a document.
struct Compared {
    /// The beginning of the text, or the query and the document.
    name: String,
    n_tokens: usize,
    /// The largest difference between components of the unit vectors, or the difference between the scores.
    difference: f64,
    /// 1 − cosine between the vectors, or the difference between the logits.
    other: f64,
}

/// Compares all fixtures that have safetensors files, and prints a line for each fixture. Fails if a difference is
/// larger than the tolerance.
pub(crate) fn fixtures(fixtures: &Path, device: Device, tolerance: f64) -> Result<()> {
    println!("\n{:<18} {:>5} {:>10}", "with candle-nn", "texts", "difference");
    for folder in safetensors_folders(&fixtures.join("models"))? {
        summarize(&folder, &compared_vectors(&folder, device)?, tolerance)?;
    }
    for folder in safetensors_folders(&fixtures.join("rerankers"))? {
        summarize(&folder, &compared_logits(&folder, device)?, tolerance)?;
    }
    Ok(())
}

fn safetensors_folders(parent: &Path) -> Result<Vec<PathBuf>> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(parent)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    folders.retain(|folder| !folder.join("model.gguf").is_file());
    folders.sort();
    ensure!(!folders.is_empty(), "{} has no models", parent.display());
    Ok(folders)
}

/// Compares the unit vectors of last hidden states, and prints a line for each text. Fails if a difference is larger
/// than the tolerance.
pub(crate) fn compare_model(folder: &Path, device: Device, tolerance: f64) -> Result<()> {
    report(folder, &compared_vectors(folder, device)?, "1 - cosine", tolerance)
}

/// Compares the scores of a reranker, and prints a line for each pair. Fails if a difference is larger than the
/// tolerance.
pub(crate) fn compare_reranker(folder: &Path, device: Device, tolerance: f64) -> Result<()> {
    report(folder, &compared_logits(folder, device)?, "of logits", tolerance)
}

fn report(folder: &Path, all: &[Compared], other: &str, tolerance: f64) -> Result<()> {
    println!("{:>7} {:>11} {other:>11}  text", "tokens", "difference");
    for Compared { name, n_tokens, difference, other } in all {
        println!("{n_tokens:>7} {difference:>11.1e} {other:>11.1e}  {name:?}");
    }
    summarize(folder, all, tolerance)
}

fn summarize(folder: &Path, all: &[Compared], tolerance: f64) -> Result<()> {
    let differences: Vec<f64> = all.iter().map(|compared| compared.difference).collect();
    let (name, worst) = (fixtures::checkpoint_name(folder), max_abs(&differences));
    println!("{name:<18} {:>5} {worst:>10.1e}", all.len());
    // If the difference is NaN, this condition is false.
    ensure!(
        worst <= tolerance,
        "{name}: the difference from candle-nn is {worst:e}; expected at most {tolerance:e}"
    );
    Ok(())
}

fn compared_vectors(folder: &Path, device: Device) -> Result<Vec<Compared>> {
    ensure_folder(folder)?;
    let texts = TEXTS.map(|(text, n)| text.repeat(n));
    let tokens = Embedder::builder(folder).build()?.tokenize(&texts)?;
    let (precision, hidden_states) = (Precision::F32, true);
    let options = LoadOptions { device, precision, hidden_states, ..LoadOptions::default() };
    // The model is dropped before the oracle is loaded, because memory may be too small for two copies of a checkpoint.
    let rows = Model::load_with(&Checkpoint::open(folder)?, &options)?.forward(&tokens)?;
    let oracle = Oracle::load_f32(folder)?;
    let compare = |((text, tokens), row): ((&String, &Vec<u32>), &[f32])| {
        let (ours, expected) = (unit(row), unit(&oracle.embedding(tokens)?));
        Ok(Compared {
            name: text.chars().take(40).collect(),
            n_tokens: tokens.len(),
            difference: max_difference(&ours, &expected),
            other: 1.0 - cosine(&ours, &expected),
        })
    };
    let rows = rows.chunks_exact(rows.len() / texts.len());
    texts.iter().zip(&tokens).zip(rows).map(compare).collect()
}

fn compared_logits(folder: &Path, device: Device) -> Result<Vec<Compared>> {
    ensure_folder(folder)?;
    let reranker = Reranker::builder(folder).precision(Precision::F32).device(device).build()?;
    let options = ScoreOptions::new();
    let prompts = reranker.tokenize(&PAIRS, &options)?;
    let scores = reranker.score_with(&PAIRS, &options)?;
    drop(reranker);
    let (oracle, answers) = (Oracle::load_f32(folder)?, answers(folder)?);
    let compare = |(((query, document), prompt), &logit): ((&(&str, &str), &Vec<u32>), &f32)| {
        let (logit, expected) = (f64::from(logit), oracle.rerank_logit(prompt, answers)?);
        Ok(Compared {
            name: format!("{query} | {document}"),
            n_tokens: prompt.len(),
            difference: (sigmoid(logit) - sigmoid(expected)).abs(),
            other: (logit - expected).abs(),
        })
    };
    PAIRS.iter().zip(&prompts).zip(scores.logits()).map(compare).collect()
}

fn ensure_folder(checkpoint: &Path) -> Result<()> {
    let is_folder = checkpoint.is_dir();
    ensure!(is_folder, "{}: expected a folder with safetensors files", checkpoint.display());
    Ok(())
}

fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}
