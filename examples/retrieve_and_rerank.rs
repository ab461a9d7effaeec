//! Search in two steps: embeddings find the documents that are most similar to a query, and a reranker sorts these
//! documents. Without `--reranker`, there is only the first step.
//!
//! ```text
//! cargo run --release --example retrieve_and_rerank
//! cargo run --release --example retrieve_and_rerank -- \
//!     --embedder Qwen/Qwen3-Embedding-0.6B --reranker Qwen/Qwen3-Reranker-0.6B
//! ```

use clap::Parser;
use qwen3_embed::{Embedder, Reranker, Source};

const QUERY: &str = "What is the capital of China?";

/// Documents that answer the query, and documents that only contain similar words.
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

/// Finds the documents that are most similar to a query, reranks them if there is a reranker, and prints both orders.
#[derive(Parser)]
struct Args {
    /// Id on the hub, folder or GGUF file of a Qwen3-Embedding model [default: the bundled model]
    #[arg(long, value_name = "PATH or ID")]
    embedder: Option<String>,
    /// Id on the hub, folder or GGUF file of a Qwen3-Reranker model [default: no reranking, because no reranker is
    /// bundled]
    #[arg(long, value_name = "PATH or ID")]
    reranker: Option<String>,
    /// Query
    #[arg(long, value_name = "TEXT", default_value = QUERY)]
    query: String,
    /// Document to search instead of the bundled documents. Repeat the flag for each document
    #[arg(long, value_name = "TEXT")]
    document: Vec<String>,
    /// Number of documents that the embeddings find and the reranker sorts
    #[arg(long, value_name = "N", default_value_t = 5)]
    top_k: usize,
}

#[expect(clippy::print_stdout, reason = "an example prints")]
fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let source = args.embedder.as_ref().map_or_else(Source::demo, Source::from);
    let embedder = Embedder::builder(source).build()?;
    let reranker = args.reranker.map(|source| Reranker::builder(source).build()).transpose()?;
    let documents: Vec<&str> = if args.document.is_empty() {
        DOCUMENTS.to_vec()
    } else {
        args.document.iter().map(String::as_str).collect()
    };

    // A real program computes the embeddings of the documents once and stores them.
    let embeddings = embedder.embed_documents(&documents)?;
    let query = embedder.embed_query(&args.query)?;
    let hits = embeddings.top_k(&query, args.top_k)?;
    println!("{}\n\nby the similarity of embeddings", args.query);
    for hit in &hits {
        println!("{:7.3}  {}", hit.score, documents[hit.index]);
    }

    if let Some(reranker) = &reranker {
        let found: Vec<&str> = hits.iter().map(|hit| documents[hit.index]).collect();
        println!("\nby the reranker");
        for document in reranker.rank(&args.query, &found)? {
            println!("{:7.3}  {}", document.score, found[document.index]);
        }
    }
    if args.embedder.is_none() {
        println!(
            "\nThe embeddings come from {}, a small model that is part of this program.\n\
             Choose another model with --embedder.",
            Source::demo()
        );
    }
    if reranker.is_none() {
        println!(
            "\nName a reranker with --reranker, for instance --reranker Qwen/Qwen3-Reranker-0.6B."
        );
    }
    Ok(())
}
