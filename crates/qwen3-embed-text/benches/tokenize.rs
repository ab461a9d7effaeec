//! The speed of tokenizing, in tokens per second on one thread.
//!
//! ```text
//! cargo bench --package qwen3-embed-text --bench tokenize -- [tokenizer.json] [text file]...
//! ```
//!
//! Paths are absolute. The text of each file is measured as one text, as texts of about 512 tokens, and as texts of about
//! 32 tokens. The default is the tokenizer of the fixtures and `fixtures/corpus.txt`, which has sentences in many
//! languages. Words are cached by the tokenizer, as they are in a service.

#![expect(clippy::print_stdout, reason = "the benchmark reports to the terminal")]

use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{env, fs};

use qwen3_embed_testing::fixtures;
use qwen3_embed_text::{SpecialTokens, Tokenizer};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Runs for each text. The median is reported.
const RUNS: usize = 9;

fn main() -> Result<(), Error> {
    let paths: Vec<PathBuf> =
        env::args().skip(1).filter(|arg| arg != "--bench").map(PathBuf::from).collect();
    let (tokenizer, files) = match &paths[..] {
        [] => (fixtures::path("tokenizer.json"), vec![fixtures::path("corpus.txt")]),
        [tokenizer] => (tokenizer.clone(), vec![fixtures::path("corpus.txt")]),
        [tokenizer, files @ ..] => (tokenizer.clone(), files.to_vec()),
    };
    let tokenizer = Tokenizer::from_json(&read(&tokenizer)?, &tokenizer)?;
    for file in files {
        let text = String::from_utf8(read(&file)?)?;
        let n_tokens = tokenizer.encode(&text, SpecialTokens::PlainText)?.len();
        for tokens_of_text in [n_tokens, 512, 32] {
            // Whole characters, of as many bytes as this number of tokens has on average.
            let n_bytes = (text.len() * tokens_of_text).div_ceil(n_tokens.max(1)).max(4);
            let texts = split(&text, n_bytes);
            let mut rates: Vec<f64> = (0..RUNS)
                .map(|_| {
                    let start = Instant::now();
                    let mut n = 0;
                    for text in &texts {
                        n += tokenizer.encode(text, SpecialTokens::PlainText)?.len();
                    }
                    Ok(n as f64 / start.elapsed().as_secs_f64())
                })
                .collect::<Result<_, Error>>()?;
            rates.sort_by(f64::total_cmp);
            println!(
                "{}: {} texts of about {tokens_of_text} tokens: {:.2} million tokens/s",
                file.display(),
                texts.len(),
                rates[RUNS / 2] / 1e6
            );
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// Parts of a text, each of at most `n_bytes` bytes. At least one character fits.
fn split(text: &str, n_bytes: usize) -> Vec<&str> {
    let (mut rest, mut parts) = (text, Vec::new());
    while !rest.is_empty() {
        let mut end = n_bytes.min(rest.len());
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (part, after) = rest.split_at(end);
        parts.push(part);
        rest = after;
    }
    parts
}
