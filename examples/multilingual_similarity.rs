//! One sentence in four languages, and how similar its embeddings are.
//!
//! ```text
//! cargo run --release --example multilingual_similarity
//! cargo run --release --example multilingual_similarity -- --model Qwen/Qwen3-Embedding-0.6B
//! ```

use clap::Parser;
use qwen3_embed::{Embedder, Similarities};
use unicode_width::UnicodeWidthStr;

/// "The weather is great today, perfect for a walk", as the Chinese call the languages.
const WEATHER: [(&str, &str); 4] = [
    ("中文", "今天天气真好,适合出去散步"),
    ("英文", "The weather is great today, perfect for a walk"),
    ("日文", "今日の天気はとても良いです、散歩に最適です"),
    ("韩文", "오늘 날씨가 정말 좋네요, 산책하기 딱 좋아요"),
];

/// A tiny checkpoint with random weights that comes with the repository.
const BUNDLED_MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/wide");

/// Embeds a sentence in four languages and prints the matrix of their cosine similarities.
#[derive(Parser)]
struct Args {
    /// Id, folder or GGUF file of a Qwen3-Embedding model [default: the bundled random one]
    #[arg(long, value_name = "PATH or ID")]
    model: Option<String>,
    /// Dimensions of the vectors [default: the model's hidden size]
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
    /// Embed the texts as queries behind this instruction
    #[arg(long, value_name = "TEXT")]
    instruct: Option<String>,
    /// Compare these texts instead: repeat the option for each
    #[arg(long, value_name = "TEXT")]
    text: Vec<String>,
}

#[expect(clippy::print_stdout, reason = "an example prints")]
fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut builder = Embedder::builder(args.model.as_deref().unwrap_or(BUNDLED_MODEL));
    if let Some(dimensions) = args.dimensions {
        builder = builder.dimensions(dimensions);
    }
    let embedder = builder.build()?;

    let (names, texts): (Vec<String>, Vec<String>) = if args.text.is_empty() {
        WEATHER.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).unzip()
    } else {
        args.text.iter().enumerate().map(|(i, text)| (format!("#{}", i + 1), text.clone())).unzip()
    };
    let embeddings = match &args.instruct {
        Some(instruction) => embedder.embed_queries_with(instruction, &texts)?,
        None => embedder.embed_documents(&texts)?,
    };

    let width = names.iter().map(|name| name.width()).max().unwrap_or(0);
    for (name, text) in names.iter().zip(&texts) {
        println!("{}  {text}", padded(name, width));
    }
    println!("\n{} embeddings of {} dimensions\n", embeddings.rows(), embeddings.dim());
    print_matrix(&names, &embeddings.similarity(&embeddings)?);
    if args.model.is_none() {
        println!(
            "\nThese vectors come from a bundled test model whose weights are random: they say\n\
             nothing about the texts. Name a real model, or its folder, with --model, such as\n\
             --model Qwen/Qwen3-Embedding-0.6B, which is downloaded once."
        );
    }
    Ok(())
}

/// The matrix with a name at each row and column, to three decimals.
#[expect(clippy::print_stdout, reason = "an example prints")]
fn print_matrix(names: &[String], similarities: &Similarities) {
    let left = names.iter().map(|name| name.width()).max().unwrap_or(0);
    let column = left.max("-0.000".len()) + 2;
    let header: String = names.iter().map(|name| right_aligned(name, column)).collect();
    println!("{}{header}", " ".repeat(left));
    for (i, name) in names.iter().enumerate() {
        let row = similarities.row(i).iter();
        let row: String =
            row.map(|cosine| right_aligned(&format!("{cosine:.3}"), column)).collect();
        println!("{}{row}", padded(name, left));
    }
}

/// `text` and spaces to `width` terminal columns, of which a Chinese character takes two.
fn padded(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(text.width())))
}

/// Spaces and `text`, together `width` terminal columns.
fn right_aligned(text: &str, width: usize) -> String {
    format!("{}{text}", " ".repeat(width.saturating_sub(text.width())))
}
