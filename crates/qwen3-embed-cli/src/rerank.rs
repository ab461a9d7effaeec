use std::io::{self, BufRead, BufWriter, Write as _};

use anyhow::{Context, Result};
use qwen3_embed::{Error, ScoreOptions};
use serde::{Deserialize, Serialize};

use crate::jsonl::{Format, InputArgs, line_name, parse_line, write_line};
use crate::model::{MODEL, ModelArgs};

/// Rank documents by how well they answer a query: read one document from each line of standard input
///
/// Each line of standard input is a document, {"text": "…"}. Each line of standard output is
/// {"index": 0, "score": 0.98}: the index of a document, starting at 0, and its score from 0 to 1. The document with
/// the highest score comes first. If a prompt is longer than --max-tokens, the end of its document is cut off. Empty
/// lines are skipped.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_name = "PATH or ID", help = MODEL)]
    model: String,
    #[command(flatten)]
    settings: ModelArgs,
    /// Query that the documents should answer
    #[arg(long, value_name = "TEXT")]
    query: String,
    /// Instruction: one sentence that says which documents are relevant [default: that of the model]
    #[arg(long, value_name = "TEXT")]
    instruct: Option<String>,
    /// Write only the N documents with the highest scores [default: all documents]
    #[arg(long, value_name = "N")]
    top_n: Option<usize>,
    /// Write the score before the sigmoid: the logit of "yes" minus the logit of "no", or the logit of a classifier
    #[arg(long)]
    raw: bool,
    /// Format of standard input and output
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Format,
    #[command(flatten)]
    input: InputArgs,
}

/// A line of standard input.
#[derive(Deserialize)]
struct Input {
    text: String,
}

/// A line of standard output.
#[derive(Serialize)]
struct Output {
    index: usize,
    score: f32,
}

/// The documents on standard input, and the line number of each document.
struct Documents {
    texts: Vec<String>,
    line_numbers: Vec<usize>,
}

/// Runs `qwen3-embed rerank` on standard input and output.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Format::Jsonl = args.format;
    let reranker = args.settings.reranker(&args.model).build()?;
    let documents = Documents::read(io::stdin().lock(), args.input)?;
    let mut options = ScoreOptions::new();
    options.instruction = args.instruct.clone();
    let ranked = reranker.rank_with(&args.query, &documents.texts, &options);
    let mut ranked = ranked.map_err(|error| documents.name_line(error))?;
    ranked.truncate(args.top_n.unwrap_or(usize::MAX));
    let mut output = BufWriter::new(io::stdout().lock());
    for document in ranked {
        let score = if args.raw { document.logit } else { document.score };
        write_line(&mut output, &Output { index: document.index, score })?;
    }
    Ok(output.flush()?)
}

impl Documents {
    /// Reads all lines that are not empty.
    fn read(mut input: impl BufRead, args: InputArgs) -> Result<Self> {
        let mut documents = Self { texts: Vec::new(), line_numbers: Vec::new() };
        let mut line = String::new();
        for line_number in 1.. {
            let context = || line_name(line_number);
            args.read_line(&mut input, &mut line).with_context(context)?;
            if line.is_empty() {
                break;
            }
            if !line.trim().is_empty() {
                let Input { text } = parse_line(&line).with_context(context)?;
                documents.texts.push(text);
                documents.line_numbers.push(line_number);
            }
        }
        Ok(documents)
    }

    /// Adds the line number to an error about a document.
    fn name_line(&self, error: Error) -> anyhow::Error {
        let line_number = error.text_index().and_then(|document| self.line_numbers.get(document));
        match line_number {
            Some(&line_number) => anyhow::Error::new(error).context(line_name(line_number)),
            None => error.into(),
        }
    }
}
