//! Finds the passage of a long document that answers a question: the document is divided into chunks, and each chunk has
//! a vector of its own.
//!
//! ```text
//! cargo run --release --example long_document
//! cargo run --release --example long_document -- --model Qwen/Qwen3-Embedding-4B --chunk-tokens 512
//! ```
//!
//! ```console
//! the document has 1224 tokens
//! 18 chunks of at most 96 tokens
//!
//! 几点可以入住
//!   0.05  the whole document
//!   0.12  bytes 1976..2306: Trails and sport The easiest hike leads along the river to the waterfall
//! ...
//! the passage with the answer is the first: 15 of 20, among three: 18
//! ```

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use qwen3_embed::{ChunkOptions, cosine};
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

    // One vector for the whole document says what it is about, but not where.
    let [n_tokens] = embedder.count_tokens(&[&document])?[..] else { unreachable!("one text") };
    println!("the document has {n_tokens} tokens");
    let whole = (n_tokens <= embedder.max_tokens())
        .then(|| embedder.embed_document(&document))
        .transpose()?;

    let options = ChunkOptions { max_tokens: args.chunk_tokens, overlap: args.overlap };
    let chunks = embedder.tokenizer().chunks(&document, &options)?;
    let texts: Vec<&str> = chunks.iter().map(|chunk| chunk.text).collect();
    let vectors = embedder.embed_documents(&texts)?;
    println!("{} chunks of at most {} tokens\n", chunks.len(), args.chunk_tokens);

    let known = rows::<3>(QUERIES);
    let own = args.query.iter().map(|query| (query.as_str(), None));
    let known = known.iter().map(|&[query, _, answer]| (query, Some(answer)));
    let queries: Vec<_> = if args.query.is_empty() { known.collect() } else { own.collect() };
    let (mut n_first, mut n_third) = (0, 0);
    for &(query, answer) in &queries {
        let vector = embedder.embed_query(query)?;
        let hits = vectors.top_k(&vector, 3)?;
        println!("{query}");
        if let Some(whole) = &whole {
            println!("  {:.2}  the whole document", cosine(&vector, whole)?);
        }
        let chunk = &chunks[hits[0].index];
        println!("  {:.2}  bytes {:?}: {}", hits[0].score, chunk.range, first_line(chunk.text));
        if let Some(answer) = answer {
            let rank = hits.iter().position(|hit| chunks[hit.index].text.contains(answer));
            n_first += usize::from(rank == Some(0));
            n_third += usize::from(rank.is_some());
        }
    }
    if args.query.is_empty() {
        let n = queries.len();
        println!(
            "\nthe passage with the answer is the first: {n_first} of {n}, among three: {n_third}"
        );
    }
    Ok(())
}

/// The beginning of a text.
fn first_line(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(72).collect()
}
