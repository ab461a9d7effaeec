//! A search in two steps: embeddings find the documents nearest to a query, a reranker sorts them.
//!
//! ```text
//! cargo run --release --example retrieve_and_rerank
//! cargo run --release --example retrieve_and_rerank -- \
//!     --embedder path/to/Qwen3-Embedding-0.6B --reranker path/to/Qwen3-Reranker-0.6B
//! ```

use std::path::PathBuf;

use clap::Parser;
use qwen3_embed::{Embedder, RankOptions, Reranker};

const QUERY: &str = "What is the capital of China?";

/// Some answer the query, some only sound like it.
const DOCUMENTS: [&str; 8] = [
    "The capital of China is Beijing.",
    "北京是中华人民共和国的首都。",
    "Shanghai is the largest city of China by population.",
    "China has had several capitals, among them Xi'an, Luoyang and Nanjing.",
    "Paris is the capital of France.",
    "The capital of a company is what its owners have put into it.",
    "Gravity is a force that attracts two bodies towards each other.",
    "What is the capital of Japan?",
];

/// Tiny checkpoints with random weights that come with the repository.
const BUNDLED_EMBEDDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/wide");
const BUNDLED_RERANKER: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/rerankers/tied");

/// Finds the documents nearest to a query by their embeddings, reranks them, and prints both orders.
#[derive(Parser)]
struct Args {
    /// Folder or GGUF file of a Qwen3-Embedding model [default: the bundled random one]
    #[arg(long, value_name = "PATH", requires = "reranker")]
    embedder: Option<PathBuf>,
    /// Folder or GGUF file of a Qwen3-Reranker model [default: the bundled random one]
    #[arg(long, value_name = "PATH", requires = "embedder")]
    reranker: Option<PathBuf>,
    /// What is searched for
    #[arg(long, value_name = "TEXT", default_value = QUERY)]
    query: String,
    /// Search these documents instead: repeat the option for each
    #[arg(long, value_name = "TEXT")]
    document: Vec<String>,
    /// Documents that the embeddings find and the reranker reads
    #[arg(long, value_name = "N", default_value_t = 5)]
    top_k: usize,
}

#[expect(clippy::print_stdout, reason = "an example prints")]
fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let embedder = args.embedder.clone().unwrap_or_else(|| BUNDLED_EMBEDDER.into());
    let embedder = Embedder::builder(embedder).build()?;
    let reranker = args.reranker.clone().unwrap_or_else(|| BUNDLED_RERANKER.into());
    let reranker = Reranker::builder(reranker).build()?;
    let documents: Vec<&str> = if args.document.is_empty() {
        DOCUMENTS.to_vec()
    } else {
        args.document.iter().map(String::as_str).collect()
    };

    // In a program, the documents' embeddings would be computed once and kept.
    let embeddings = embedder.embed_documents(&documents)?;
    let query = embedder.embed_queries(&[&args.query])?;
    let hits = embeddings.top_k(query.row(0), args.top_k)?;
    println!("{}\n\nby the similarity of embeddings", args.query);
    for hit in &hits {
        println!("{:7.3}  {}", hit.score, documents[hit.index]);
    }

    let found: Vec<&str> = hits.iter().map(|hit| documents[hit.index]).collect();
    let ranked = reranker.rank(&args.query, &found, RankOptions::default())?;
    println!("\nby the reranker");
    for document in ranked {
        println!("{:7.3}  {}", document.score, found[document.index]);
    }
    if args.embedder.is_none() {
        println!(
            "\nThese numbers come from bundled test models whose weights are random: they say nothing\n\
             about the texts. Name real models with --embedder and --reranker."
        );
    }
    Ok(())
}
