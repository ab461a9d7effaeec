//! Searches documents in four languages in PostgreSQL with pgvector: with full vectors, and with one bit per dimension.
//!
//! ```text
//! docker run --publish 5432:5432 --env POSTGRES_HOST_AUTH_METHOD=trust pgvector/pgvector:pg17
//! export DATABASE_URL=postgresql://postgres@127.0.0.1/postgres
//! cargo run --release --example pgvector_search
//! cargo run --release --example pgvector_search -- --query "図書館は何時まで開いていますか" --top-k 5
//! ```
//!
//! ```console
//! how to cook rice
//!   0.46  d01  大米淘洗两遍，加水没过一个指节，煮开后小火焖十五分钟，米饭就好了。
//!   0.29  d17  卵を沸騰したお湯で八分ゆで、冷たい水で冷やすと、殻がきれいにむけます。
//!   0.24  d25  김치는 배추를 소금에 절인 뒤 고춧가루와 마늘을 섞어 버무려서 만듭니다.
//!
//! full vectors: the right document is the first: 29 of 32
//! bits and 12 full vectors: 29 of 32
//! ```
//!
//! The search with bits first finds candidates whose bits differ least from those of the query, and then sorts them by
//! their full vectors. Bits take a 32nd of the memory. Their HNSW index may have up to 64,000 dimensions, that of full
//! vectors up to 2,000 (`vector`) or 4,000 (`halfvec`).

use anyhow::{Result, ensure};
use clap::{Parser, value_parser};
use pgvector::Vector;
use postgres::{Client, NoTls};
use qwen3_embed::Embedder;
use qwen3_embed_examples::{ModelArgs, rows};

const DOCUMENTS: &str = include_str!("../../data/documents.tsv");
const QUERIES: &str = include_str!("../../data/queries.tsv");

/// The nearest documents to the vector $1: the exact order.
const FULL: &str = "
    SELECT id, body, 1 - (embedding <=> $1) AS cosine
    FROM qwen3_embed_documents ORDER BY embedding <=> $1 LIMIT $2";

/// The nearest documents among $3 candidates, which have the fewest bits that differ from those of $1.
const BITS: &str = "
    SELECT id, body, 1 - (embedding <=> $1) AS cosine
    FROM (
        SELECT * FROM qwen3_embed_documents
        ORDER BY binary_quantize(embedding)::bit(DIMENSIONS) <~> binary_quantize($1::vector) LIMIT $3
    ) AS candidates
    ORDER BY embedding <=> $1 LIMIT $2";

/// Searches documents in a PostgreSQL database.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Database with the extension pgvector
    #[arg(long, value_name = "URL", env = "DATABASE_URL")]
    database: String,
    /// What to search, in any language [default: the bundled queries]
    #[arg(long, value_name = "TEXT")]
    query: Vec<String>,
    /// Number of documents to show
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(i64).range(1..))]
    top_k: i64,
    /// Number of candidates of the search with bits, for each document to show
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = value_parser!(i64).range(1..))]
    oversampling: i64,
}

#[expect(clippy::print_stdout, reason = "an example prints")]
fn main() -> Result<()> {
    let args = Args::parse();
    let embedder = args.model.embedder()?;
    let mut database = open(&args.database, embedder.dimensions())?;
    eprintln!("{} documents are new", add_documents(&mut database, &embedder)?);
    let bits = BITS.replace("DIMENSIONS", &embedder.dimensions().to_string());
    let (full, bits) = (database.prepare(FULL)?, database.prepare(&bits)?);
    let n_candidates = args.oversampling.saturating_mul(args.top_k);
    // The index finds at most as many candidates as this setting, whose default is 40 and maximum is 1,000.
    database.batch_execute(&format!("SET hnsw.ef_search = {}", n_candidates.clamp(40, 1000)))?;
    let known = rows::<3>(QUERIES);
    let own: Vec<&str> = args.query.iter().map(String::as_str).collect();
    let queries =
        if own.is_empty() { known.iter().map(|&[query, ..]| query).collect() } else { own };
    let vectors = embedder.embed_queries(&queries)?;
    let mut n_right = [0, 0];
    for (i, (&query, vector)) in queries.iter().zip(vectors.iter()).enumerate() {
        let vector = Vector::from(vector.to_vec());
        let found = [
            database.query(&full, &[&vector, &args.top_k])?,
            database.query(&bits, &[&vector, &args.top_k, &n_candidates])?,
        ];
        if !args.query.is_empty() || i == 0 {
            println!("{query}");
            for row in &found[1] {
                let (id, body, cosine): (&str, &str, f64) = (row.get(0), row.get(1), row.get(2));
                println!("  {cosine:.2}  {id}  {body}");
            }
        }
        for (n_right, found) in n_right.iter_mut().zip(&found) {
            let first = found.first().map(|row| row.get::<_, &str>(0));
            *n_right += usize::from(args.query.is_empty() && first == Some(known[i][2]));
        }
    }
    if args.query.is_empty() {
        let ([full, bits], n) = (n_right, queries.len());
        println!("\nfull vectors: the right document is the first: {full} of {n}");
        println!("bits and {n_candidates} full vectors: {bits} of {n}");
    }
    Ok(())
}

/// Connects to the database, and makes a table for vectors of this number of dimensions unless it exists.
fn open(url: &str, dimensions: usize) -> Result<Client> {
    let mut database = Client::connect(url, NoTls)?;
    database.batch_execute(&format!(
        "SET client_min_messages = warning;
         CREATE EXTENSION IF NOT EXISTS vector;
         CREATE TABLE IF NOT EXISTS qwen3_embed_documents (
             id text PRIMARY KEY, body text NOT NULL, embedding vector({dimensions}) NOT NULL
         )"
    ))?;
    let column = "SELECT atttypmod FROM pg_attribute
        WHERE attrelid = 'qwen3_embed_documents'::regclass AND attname = 'embedding'";
    let found: i32 = database.query_one(column, &[])?.get(0);
    ensure!(
        usize::try_from(found) == Ok(dimensions),
        "the table qwen3_embed_documents has vectors of {found} dimensions, expected {dimensions}"
    );
    database.batch_execute(&format!(
        "CREATE INDEX IF NOT EXISTS qwen3_embed_bits ON qwen3_embed_documents
         USING hnsw ((binary_quantize(embedding)::bit({dimensions})) bit_hamming_ops)"
    ))?;
    Ok(database)
}

/// Embeds the documents that the table lacks, and adds all or none of them. Returns their number.
fn add_documents(database: &mut Client, embedder: &Embedder) -> Result<usize> {
    let known = database.query("SELECT id FROM qwen3_embed_documents", &[])?;
    let is_new = |id: &str| !known.iter().any(|row| row.get::<_, &str>(0) == id);
    let documents: Vec<_> =
        rows::<3>(DOCUMENTS).into_iter().filter(|&[id, ..]| is_new(id)).collect();
    let texts: Vec<&str> = documents.iter().map(|&[.., text]| text).collect();
    let vectors = embedder.embed_documents(&texts)?;
    let mut transaction = database.transaction()?;
    let insert = transaction.prepare("INSERT INTO qwen3_embed_documents VALUES ($1, $2, $3)")?;
    for (&[id, _, text], vector) in documents.iter().zip(vectors.iter()) {
        transaction.execute(&insert, &[&id, &text, &Vector::from(vector.to_vec())])?;
    }
    transaction.commit()?;
    Ok(documents.len())
}
