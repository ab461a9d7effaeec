//! Golden files: vectors and scores that another implementation has computed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The golden file of an embedding model, written by `fixtures/reference.py`.
#[derive(Debug, Clone, Deserialize)]
pub struct Vectors {
    /// The implementation that has computed the vectors, with its version.
    pub source: String,
    /// The text of each input. None for an input that is given as tokens only.
    pub texts: Vec<Option<String>>,
    /// The tokens of each input. None if the file has texts only.
    pub tokens: Option<Vec<Vec<u32>>>,
    /// The last token's hidden state after the final norm, for each input, in f32.
    pub embeddings: Vec<Vec<f64>>,
    /// The same vectors, computed in f64 and of unit length.
    pub unit_f64: Option<Vec<Vec<f64>>>,
    /// The hidden states of one input.
    pub hidden_states: Option<HiddenStates>,
    /// 1 − cosine between transformers' vectors in bf16 and in f32, for each input.
    pub transformers_bf16_errors: Option<Vec<f64>>,
}

/// The residual stream of one input before the first layer and after each layer.
#[derive(Debug, Clone, Deserialize)]
pub struct HiddenStates {
    /// The index of the input.
    pub text: usize,
    /// The values, with the dimensions layer, token and hidden size. The last entry is the last layer's output after
    /// the final norm.
    pub layers: Vec<Vec<Vec<f64>>>,
}

/// The golden file of a reranker, written by `fixtures/rerank.py`.
#[derive(Debug, Clone, Deserialize)]
pub struct Scores {
    /// The implementation that has computed the scores, with its version.
    pub source: String,
    /// The pairs of a query and a document.
    pub cases: Vec<Case>,
}

/// A pair of a query and a document with its score.
#[derive(Debug, Clone, Deserialize)]
pub struct Case {
    /// The instruction. None stands for the default instruction.
    pub instruction: Option<String>,
    /// The query.
    pub query: String,
    /// The document.
    pub document: String,
    /// The largest number of tokens that the prompt may have.
    pub max_tokens: usize,
    /// The tokens of the prompt.
    pub tokens: Vec<u32>,
    /// The logit of "yes" minus the logit of "no", in f32.
    pub logit: f64,
    /// The same logit in f64.
    pub logit_f64: f64,
    /// The same logit in transformers' bf16.
    pub bf16_logit: f64,
    /// The softmax over both logits, in f32: the sigmoid of `logit`.
    pub score: f64,
}

/// Reads a golden file.
///
/// # Errors
///
/// If the file cannot be read or lacks a field.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let json = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&json).with_context(|| path.display().to_string())
}
