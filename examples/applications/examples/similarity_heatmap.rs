//! Draws the matrix of cosine similarities of one sentence in four languages as a picture.
//!
//! ```text
//! cargo run --release --example similarity_heatmap
//! cargo run --release --example similarity_heatmap -- --out matrix.png --model Qwen/Qwen3-Embedding-4B
//! ```

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use qwen3_embed_examples::ModelArgs;
use qwen3_embed_plot::heatmap;

/// "The weather is great today, perfect for a walk" in four languages, with the Chinese names of the languages.
const WEATHER: [(&str, &str); 4] = [
    ("中文", "今天天气真好,适合出去散步"),
    ("英文", "The weather is great today, perfect for a walk"),
    ("日文", "今日の天気はとても良いです、散歩に最適です"),
    ("韩文", "오늘 날씨가 정말 좋네요, 산책하기 딱 좋아요"),
];

/// Draws the similarities of sentences.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to compare instead of the four sentences. Repeat the flag for each text
    #[arg(long, value_name = "TEXT")]
    text: Vec<String>,
    /// The picture: a file with the extension .svg or .png. Repeat the flag for several files
    #[arg(long, value_name = "FILE", default_values = ["similarity.svg", "similarity.png"])]
    out: Vec<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "an example prints")]
fn main() -> Result<()> {
    let args = Args::parse();
    let (names, texts): (Vec<String>, Vec<&str>) = if args.text.is_empty() {
        WEATHER.iter().map(|&(name, text)| (name.to_owned(), text)).unzip()
    } else {
        args.text.iter().map(|text| (text.clone(), text.as_str())).unzip()
    };
    let vectors = args.model.embedder()?.embed_documents(&texts)?;
    let picture = heatmap(&names, &vectors.similarity(&vectors)?)?;
    for path in &args.out {
        picture.write(path)?;
        println!("wrote {}", path.display());
    }
    Ok(())
}
