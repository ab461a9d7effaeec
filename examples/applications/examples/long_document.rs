//! Finds the passage of a long document that answers a question: the document is divided into chunks, and each chunk has
//! a vector of its own.
//!
//! A document of up to 32,768 tokens can also be embedded as a whole. Its vector says what the document is about, but not
//! where, and computing it takes longer than computing those of the chunks, because attention grows with the square of
//! the length.
//!
//! ```text
//! cargo run --release --example long_document
//! cargo run --release --example long_document -- --model Qwen/Qwen3-Embedding-4B --chunk-tokens 512
//! cargo run --release --example long_document -- --document report.txt --query "Why did the sales decrease?"
//! ```
//!
//! ```console
//! the document: 1224 tokens, 0.2 s
//! 18 chunks of at most 96 tokens, 0.2 s
//!
//! 毛巾和床单在哪里
//!   0.22  the whole document
//!   0.38  bytes 412..710: Your room The heating is controlled by the round knob on the
//! ...
//! the chunk with the answer is the first: 15 of 20, among three: 18
//! ```

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use qwen3_embed::{ChunkOptions, Hit, cosine};
use qwen3_embed_examples::{ModelArgs, rows};

const HANDBOOK: &str = include_str!("../../data/handbook.txt");
const QUERIES: &str = include_str!("../../data/handbook_queries.tsv");

/// Searches in a long document.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text file to search instead of the bundled handbook
    #[arg(long, value_name = "FILE", requires = "query")]
    document: Option<PathBuf>,
    /// Question, in any language. Repeat the flag for each question
    #[arg(long, value_name = "TEXT")]
    query: Vec<String>,
    /// Maximum number of tokens of a chunk
    #[arg(long, value_name = "N", default_value_t = 96)]
    chunk_tokens: usize,
    /// Maximum number of tokens that a chunk repeats from the chunk before it
    #[arg(long, value_name = "N", default_value_t = 24)]
    overlap: usize,
}

#[expect(clippy::print_stdout, reason = "an example prints")]
fn main() -> Result<()> {
    let args = Args::parse();
    let embedder = args.model.embedder()?;
    let document = match &args.document {
        Some(path) => fs::read_to_string(path).with_context(|| format!("{}", path.display()))?,
        None => HANDBOOK.to_owned(),
    };

    let [n_tokens] = embedder.count_tokens(&[&document])?[..] else { unreachable!("one text") };
    let start = Instant::now();
    let whole = match n_tokens <= embedder.max_tokens() {
        true => Some(embedder.embed_document(&document)?),
        false => None,
    };
    println!("the document: {n_tokens} tokens, {:.1} s", start.elapsed().as_secs_f64());

    let options = ChunkOptions { max_tokens: args.chunk_tokens, overlap: args.overlap };
    let start = Instant::now();
    let chunks = embedder.tokenizer().chunks(&document, &options)?;
    let texts: Vec<&str> = chunks.iter().map(|chunk| chunk.text).collect();
    let vectors = embedder.embed_documents(&texts)?;
    let (n, seconds) = (chunks.len(), start.elapsed().as_secs_f64());
    println!("{n} chunks of at most {} tokens, {seconds:.1} s", args.chunk_tokens);

    let search = |query: &str| -> Result<(Vec<f32>, Vec<Hit>)> {
        let vector = embedder.embed_query(query)?;
        let hits = vectors.top_k(&vector, 3)?;
        Ok((vector, hits))
    };
    let show = |query: &str, vector: &[f32], hits: &[Hit]| -> Result<()> {
        println!("\n{query}");
        if let Some(whole) = &whole {
            println!("  {:.2}  the whole document", cosine(vector, whole)?);
        }
        for hit in hits {
            let chunk = &chunks[hit.index];
            println!("  {:.2}  bytes {:?}: {}", hit.score, chunk.range, beginning(chunk.text));
        }
        Ok(())
    };
    if !args.query.is_empty() {
        for query in &args.query {
            let (vector, hits) = search(query)?;
            show(query, &vector, &hits)?;
        }
        return Ok(());
    }
    // The bundled questions, whose answers are known.
    let questions = rows::<3>(QUERIES);
    let (mut n_first, mut n_third) = (0, 0);
    for (i, &[query, _, answer]) in questions.iter().enumerate() {
        let (vector, hits) = search(query)?;
        if i % 5 == 0 {
            show(query, &vector, &hits)?;
        }
        let rank = hits.iter().position(|hit| chunks[hit.index].text.contains(answer));
        n_first += usize::from(rank == Some(0));
        n_third += usize::from(rank.is_some());
    }
    let n = questions.len();
    println!("\nthe chunk with the answer is the first: {n_first} of {n}, among three: {n_third}");
    Ok(())
}

/// The beginning of a text.
fn beginning(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(60).collect()
}
