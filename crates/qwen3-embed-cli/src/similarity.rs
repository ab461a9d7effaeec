use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use qwen3_embed::Similarities;
use qwen3_embed_plot::heatmap;
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use crate::lines::{Format, InputArgs, documents_of_standard_input, name_place, on_one_line};
use crate::model::{EmbedderArgs, PromptArgs};

/// Compare texts: show the cosine similarity of each pair
///
/// The texts are arguments, or the lines of standard input if there are no arguments. Empty lines are skipped.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Texts to compare [default: the lines of standard input]
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// Names of the texts, separated by commas [default: their numbers]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    names: Vec<String>,
    /// Write one JSON object, {"texts": ["…"], "similarities": [[1.0, …], …]}
    #[arg(long)]
    json: bool,
    /// Also draw the similarities as a picture, in a file whose name ends with .png or .svg
    #[arg(long, value_name = "FILE")]
    heatmap: Option<PathBuf>,
    /// Format of standard input
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    embedder: EmbedderArgs,
    #[command(flatten)]
    prompt: PromptArgs,
}

/// The JSON object on standard output.
#[derive(Serialize)]
struct Output<'a> {
    texts: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    names: &'a [String],
    similarities: Vec<&'a [f32]>,
}

/// Runs `qwen3-embed similarity`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let documents = match args.texts.is_empty() {
        true => documents_of_standard_input(args.format, args.input)?,
        false => Vec::new(),
    };
    let lines = documents.iter().map(|document| &document.text);
    let texts: Vec<String> = args.texts.iter().chain(lines).cloned().collect();
    let n = texts.len();
    ensure!(n > 0, "expected texts to compare, got none");
    let n_names = args.names.len();
    ensure!([0, n].contains(&n_names), "expected {n} names, one for each text, got {n_names}");

    let embedder = args.embedder.builder()?.build()?;
    let vectors = embedder.embed_with(texts.iter().map(String::as_str), &args.prompt.options());
    let vectors = vectors.map_err(|error| name_place(&documents, error))?;
    let similarities = vectors.similarity(&vectors)?;
    let mut output = BufWriter::new(io::stdout().lock());
    if args.json {
        let similarities = (0..n).map(|row| similarities.row(row)).collect();
        let result = Output { texts: &texts, names: &args.names, similarities };
        serde_json::to_writer(&mut output, &result)?;
        writeln!(output)?;
    } else {
        write_table(&mut output, &texts, &args.names, &similarities)?;
    }
    output.flush()?;
    if let Some(path) = &args.heatmap {
        let names = if args.names.is_empty() { &texts } else { &args.names };
        heatmap(names, &similarities)?.write(path)?;
    }
    Ok(())
}

/// Writes the matrix with the names or numbers of the texts, and the text of each row after its similarities.
fn write_table(
    output: &mut impl Write,
    texts: &[String],
    names: &[String],
    similarities: &Similarities,
) -> io::Result<()> {
    let numbers: Vec<String> = (1..=texts.len()).map(|number| number.to_string()).collect();
    let names = if names.is_empty() { &numbers } else { names };
    let widest = names.iter().map(|name| name.width()).max().unwrap_or(0);
    // A similarity has 6 columns at most.
    let column = widest.max(6);
    let spaces = |n: usize| " ".repeat(n);
    write!(output, "{}", spaces(widest))?;
    for name in names {
        write!(output, "  {}{name}", spaces(column - name.width()))?;
    }
    writeln!(output)?;
    for (row, (name, text)) in names.iter().zip(texts).enumerate() {
        write!(output, "{name}{}", spaces(widest - name.width()))?;
        for similarity in similarities.row(row) {
            write!(output, "  {similarity:column$.3}")?;
        }
        writeln!(output, "  {}", on_one_line(text))?;
    }
    Ok(())
}
