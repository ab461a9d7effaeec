//! Embeds one sentence in four languages and compares the embeddings.
//!
//! ```text
//! cargo run --release --example multilingual_similarity
//! cargo run --release --example multilingual_similarity -- --model Qwen/Qwen3-Embedding-0.6B
//! ```

use clap::Parser;
use qwen3_embed::{EmbedOptions, Embedder, Prompt, Similarities, Source};
use unicode_width::UnicodeWidthStr;

/// "The weather is great today, perfect for a walk" in four languages, with the Chinese names of the languages.
const WEATHER: [(&str, &str); 4] = [
    ("中文", "今天天气真好,适合出去散步"),
    ("英文", "The weather is great today, perfect for a walk"),
    ("日文", "今日の天気はとても良いです、散歩に最適です"),
    ("韩文", "오늘 날씨가 정말 좋네요, 산책하기 딱 좋아요"),
];

/// Embeds a sentence in four languages and prints the matrix of their cosine similarities.
#[derive(Parser)]
struct Args {
    /// Id on the hub, folder or GGUF file of a Qwen3-Embedding model [default: the bundled model]
    #[arg(long, value_name = "PATH or ID")]
    model: Option<String>,
    /// Number of dimensions of the vectors [default: that of the model]
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
    /// Embed the texts as queries with this instruction
    #[arg(long, value_name = "TEXT")]
    instruct: Option<String>,
    /// Text to compare instead of the four sentences. Repeat the flag for each text
    #[arg(long, value_name = "TEXT")]
    text: Vec<String>,
}

#[expect(clippy::print_stdout, reason = "an example prints")]
fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let source = args.model.as_ref().map_or_else(Source::demo, Source::from);
    let embedder = Embedder::builder(source).build()?;
    let mut options = EmbedOptions::new();
    options.dimensions = args.dimensions;
    if let Some(instruction) = args.instruct {
        options.prompt = Prompt::Instruction(instruction);
    }

    let (names, texts): (Vec<String>, Vec<String>) = if args.text.is_empty() {
        WEATHER.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).unzip()
    } else {
        args.text.iter().enumerate().map(|(i, text)| (format!("#{}", i + 1), text.clone())).unzip()
    };
    let embeddings = embedder.embed_with(&texts, &options)?;

    let width = names.iter().map(|name| name.width()).max().unwrap_or(0);
    for (name, text) in names.iter().zip(&texts) {
        println!("{}  {text}", padded(name, width));
    }
    println!("\n{} embeddings of {} dimensions\n", embeddings.len(), embeddings.dimensions());
    print_matrix(&names, &embeddings.similarity(&embeddings)?);
    if args.model.is_none() {
        println!(
            "\nThese vectors come from {}, a small model that is part of this program.\n\
             Choose another model with --model, for instance --model Qwen/Qwen3-Embedding-0.6B,\n\
             which is downloaded once.",
            Source::demo()
        );
    }
    Ok(())
}

/// Prints the matrix with three decimals, and with the names of its rows and columns.
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

/// `text`, padded with spaces to `width` terminal columns. A Chinese character takes two columns.
fn padded(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(text.width())))
}

/// `text`, padded with spaces on the left to `width` terminal columns.
fn right_aligned(text: &str, width: usize) -> String {
    format!("{}{text}", " ".repeat(width.saturating_sub(text.width())))
}
