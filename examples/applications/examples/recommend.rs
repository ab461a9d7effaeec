//! Recommends products across languages: a catalog in Chinese, English, Japanese and Korean, and one model that
//! understands all of them.
//!
//! ```text
//! cargo run --release --example recommend
//! cargo run --release --example recommend -- --model Qwen/Qwen3-Embedding-4B
//! ```
//!
//! ```console
//! 下雨天用的伞  (market jp)
//!   0.63  自動開閉 折りたたみ傘 耐風 晴雨兼用
//!   0.17  キャンプテント 4人用 防水 簡単設営
//!   0.17  日焼け止め SPF50+ ウォータープルーフ 敏感肌用
//! ...
//! the expected product is the first: 13 of 24 queries
//!
//! the Chinese version of 스테인리스 진공 보온 텀블러 500ml 원터치 뚜껑
//!   0.68  不锈钢保温杯 500毫升 真空双层 可单手开盖
//! the Chinese version is the first: 19 of 20 Korean products
//! ...
//! ```

use anyhow::Result;
use clap::Parser;
use qwen3_embed::{Embedder, Embeddings, Hit, normalize};
use qwen3_embed_examples::{ModelArgs, rows};

const PRODUCTS: &str = include_str!("../../data/products.tsv");
const QUERIES: &str = include_str!("../../data/product_queries.tsv");

/// What a shopper has liked, to recommend more of it.
const LIKED: [&str; 3] = ["tent-jp", "yoga-mat-jp", "running-shoes-jp"];

/// Finds and recommends products across languages.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
}

struct Product {
    id: &'static str,
    market: &'static str,
    title: &'static str,
}

/// The products and their vectors. A service would keep the vectors in a database.
struct Catalog {
    products: Vec<Product>,
    vectors: Embeddings,
}

impl Catalog {
    fn new(embedder: &Embedder) -> Result<Self> {
        let products = rows(PRODUCTS).into_iter();
        let products = products.map(|[id, market, title]| Product { id, market, title });
        let products: Vec<Product> = products.collect();
        let titles: Vec<&str> = products.iter().map(|product| product.title).collect();
        Ok(Self { vectors: embedder.embed_documents(&titles)?, products })
    }

    fn vector(&self, id: &str) -> &[f32] {
        let idx = self.products.iter().position(|product| product.id == id);
        self.vectors.row(idx.expect("the id of a product"))
    }

    /// The `k` products of a market that are most similar to a vector, without those in `except`.
    fn nearest(&self, vector: &[f32], market: &str, except: &[&str], k: usize) -> Result<Vec<Hit>> {
        let mut hits = self.vectors.top_k(vector, self.products.len())?;
        hits.retain(|hit| {
            let product = &self.products[hit.index];
            product.market == market && !except.contains(&product.id)
        });
        hits.truncate(k);
        Ok(hits)
    }
}

#[expect(clippy::print_stdout, reason = "an example prints")]
fn main() -> Result<()> {
    let embedder = Args::parse().model.embedder()?;
    let catalog = Catalog::new(&embedder)?;
    let show = |hits: Vec<Hit>| {
        for Hit { index, score } in hits {
            println!("  {score:.2}  {}", catalog.products[index].title);
        }
    };

    // Search in another language. The shopper's words and the product have no word in common.
    let queries = rows::<3>(QUERIES);
    for [query, market, _] in queries.iter().step_by(6) {
        println!("{query}  (market {market})");
        show(catalog.nearest(&embedder.embed_query(query)?, market, &[], 3)?);
    }
    let mut n_found = 0;
    for [query, market, id] in &queries {
        let hits = catalog.nearest(&embedder.embed_query(query)?, market, &[], 1)?;
        n_found += usize::from(catalog.products[hits[0].index].id == *id);
    }
    println!("the expected product is the first: {n_found} of {} queries\n", queries.len());

    // The version of a product for another market: its nearest neighbor there.
    let (mut n_versions, mut n_right) = (0, 0);
    for product in catalog.products.iter().filter(|product| product.market == "kr") {
        let Some(common) = product.id.strip_suffix("-kr") else { continue };
        let hits = catalog.nearest(catalog.vector(product.id), "cn", &[], 1)?;
        n_versions += 1;
        n_right += usize::from(catalog.products[hits[0].index].id == format!("{common}-cn"));
        if n_versions == 1 {
            println!("the Chinese version of {}", product.title);
            show(hits);
        }
    }
    println!("the Chinese version is the first: {n_right} of {n_versions} Korean products\n");

    // More of what a shopper likes: the neighbors of the mean of the liked products.
    let mut taste = vec![0.0; catalog.vectors.dimensions()];
    println!("for a shopper who likes");
    for id in LIKED {
        let product = catalog.products.iter().find(|product| product.id == id);
        println!("        {}", product.map_or(id, |product| product.title));
        taste.iter_mut().zip(catalog.vector(id)).for_each(|(sum, value)| *sum += value);
    }
    normalize(&mut taste);
    for market in ["cn", "us", "jp", "kr"] {
        show(catalog.nearest(&taste, market, &LIKED, 1)?);
    }
    Ok(())
}
