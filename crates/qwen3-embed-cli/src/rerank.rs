use std::io::{self, BufWriter, Write as _};

use anyhow::Result;
use qwen3_embed::ScoreOptions;
use serde::Serialize;

use crate::lines::{Format, InputArgs, documents_of_standard_input, name_place, write_line};
use crate::model::{MODEL, ModelArgs};

/// Rank documents by how well they answer a query: read one document from each line of standard input
///
/// Each line of standard input is a document, {"text": "…"} or a JSON string, or a plain text with --format text. Each
/// line of standard output is {"index": 0, "score": 0.98}: the index of a document, starting at 0, and its score from 0
/// to 1. The document with the highest score comes first. If a prompt is longer than --max-tokens, the end of its
/// document is cut off. Empty lines are skipped.
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
    /// Format of standard input
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Format,
    #[command(flatten)]
    input: InputArgs,
}

/// A line of standard output.
#[derive(Serialize)]
struct Output {
    index: usize,
    score: f32,
}

/// Runs `qwen3-embed rerank` on standard input and output.
pub(crate) fn run(args: &Args) -> Result<()> {
    let reranker = args.settings.reranker(&args.model).build()?;
    let documents = documents_of_standard_input(args.format, args.input)?;
    let mut options = ScoreOptions::new();
    options.instruction = args.instruct.clone();
    let ranked = reranker.rank_with(&args.query, &documents, &options);
    let mut ranked = ranked.map_err(|error| name_place(&documents, error))?;
    ranked.truncate(args.top_n.unwrap_or(usize::MAX));
    let mut output = BufWriter::new(io::stdout().lock());
    for document in ranked {
        let score = if args.raw { document.logit } else { document.score };
        write_line(&mut output, &Output { index: document.index, score })?;
    }
    Ok(output.flush()?)
}
