//! Searches documents in four languages with a query in any of them.
//!
//! ```text
//! cargo run --release --example multilingual_search
//! cargo run --release --example multilingual_search -- --query "図書館は何時まで開いていますか"
//! cargo run --release --example multilingual_search -- \
//!     --model Qwen/Qwen3-Embedding-0.6B --rerank Qwen/Qwen3-Reranker-0.6B --index documents.db
//! ```
//!
//! ```console
//! how to cook rice
//!   0.46  d01 (zh)  大米淘洗两遍，加水没过一个指节，煮开后小火焖十五分钟，米饭就好了。
//!   0.29  d17 (ja)  卵を沸騰したお湯で八分ゆで、冷たい水で冷やすと、殻がきれいにむけます。
//!   0.24  d25 (ko)  김치는 배추를 소금에 절인 뒤 고춧가루와 마늘을 섞어 버무려서 만듭니다.
//! ...
//! the right document is the first: 29 of 32, among 3: 31
//! ```
//!
//! Search is exact: the query is compared with every vector. With `--index`, the vectors are in an SQLite database with
//! the extension sqlite-vec, and documents are embedded only once. This suits up to about a million documents.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use qwen3_embed::{EmbedOptions, Embedder, Prompt, Reranker};
use qwen3_embed_examples::sqlite::Index;
use qwen3_embed_examples::{ModelArgs, rows};

const DOCUMENTS: &str = include_str!("../../data/documents.tsv");
const QUERIES: &str = include_str!("../../data/queries.tsv");

/// Searches documents in four languages.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What to search, in any language [default: the bundled queries]
    #[arg(long, value_name = "TEXT")]
    query: Vec<String>,
    /// Instruction for the queries [default: the model's prompt for queries]
    #[arg(long, value_name = "TEXT")]
    instruct: Option<String>,
    /// Number of documents to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    top_k: usize,
    /// Id, folder or GGUF file of a Qwen3-Reranker model, which sorts the ten best documents again
    #[arg(long, value_name = "PATH or ID")]
    rerank: Option<String>,
    /// SQLite database that keeps the vectors. It is made if it does not exist
    #[arg(long, value_name = "FILE")]
    index: Option<PathBuf>,
}

/// A document that was found: its index, and its cosine similarity or rerank score.
type Found = (usize, f32);

/// Finds the documents nearest to a vector, at most as many as the number says.
type Search = Box<dyn Fn(&[f32], usize) -> Result<Vec<Found>>>;

#[expect(clippy::print_stdout, reason = "an example prints")]
fn main() -> Result<()> {
    let args = Args::parse();
    let embedder = args.model.embedder()?;
    let reranker = args.rerank.as_deref().map(|model| Reranker::builder(model).build());
    let reranker = reranker.transpose()?;
    let documents = rows::<3>(DOCUMENTS);
    let texts: Vec<&str> = documents.iter().map(|&[.., text]| text).collect();
    let search = searcher(&embedder, &texts, args.index)?;

    let mut options = EmbedOptions::new();
    options.prompt = args.instruct.map_or(Prompt::Query, Prompt::Instruction);
    let answer = |query: &str| -> Result<Vec<Found>> {
        let vector = embedder.embed_with([query], &options)?;
        let n = if reranker.is_some() { args.top_k.max(10) } else { args.top_k };
        let mut found = search(vector.row(0), n)?;
        if let Some(reranker) = &reranker {
            let best: Vec<&str> = found.iter().map(|&(idx, _)| texts[idx]).collect();
            let ranked = reranker.rank(query, &best)?;
            found = ranked.iter().map(|ranked| (found[ranked.index].0, ranked.score)).collect();
            found.truncate(args.top_k);
        }
        Ok(found)
    };
    let show = |query: &str, found: &[Found]| {
        println!("{query}");
        for &(idx, score) in found {
            let [id, language, text] = documents[idx];
            println!("  {score:.2}  {id} ({language})  {text}");
        }
    };

    if !args.query.is_empty() {
        for query in &args.query {
            show(query, &answer(query)?);
        }
        return Ok(());
    }
    // The bundled queries, whose right answers are known.
    let queries = rows::<3>(QUERIES);
    let (mut n_first, mut n_shown) = (0, 0);
    for (i, &[query, _, id]) in queries.iter().enumerate() {
        let found = answer(query)?;
        let rank = found.iter().position(|&(idx, _)| documents[idx][0] == id);
        n_first += usize::from(rank == Some(0));
        n_shown += usize::from(rank.is_some());
        if i % 10 == 0 {
            show(query, &found);
        }
    }
    let n = queries.len();
    println!(
        "\nthe right document is the first: {n_first} of {n}, among {}: {n_shown}",
        args.top_k
    );
    Ok(())
}

/// A function that finds the documents nearest to a vector: in memory, or in a database.
fn searcher(embedder: &Embedder, texts: &[&str], index: Option<PathBuf>) -> Result<Search> {
    let Some(path) = index else {
        let vectors = embedder.embed_documents(texts)?;
        return Ok(Box::new(move |query, n| {
            let hits = vectors.top_k(query, n)?;
            Ok(hits.into_iter().map(|hit| (hit.index, hit.score)).collect())
        }));
    };
    let mut index = Index::open(&path, embedder.dimensions())?;
    let known = index.n_vectors()?;
    if known < texts.len() {
        index.add(&embedder.embed_documents(&texts[known..])?)?;
    }
    Ok(Box::new(move |query, n| index.search(query, n)))
}
