use std::io::{self, BufRead, BufWriter, Write as _};

use anyhow::{Context, Result};
use qwen3_embed::{Error, RankOptions, Reranker};
use serde::{Deserialize, Serialize};

use crate::jsonl::{Format, InputArgs, line_name, parse_line, write_line};
use crate::model::ModelArgs;

/// Rank documents by how well they answer a query: one JSON object in on each line of standard input
///
/// Each line of standard input is a document, {"text": "…"}. Each line of standard output is
/// {"index": 0, "score": 0.98}, the best document first: which of the documents it is, counted from 0,
/// and a score from 0 to 1.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What the documents are to answer
    #[arg(long, value_name = "TEXT")]
    query: String,
    /// What is asked of a document [default: that of the models]
    #[arg(long, value_name = "TEXT")]
    instruct: Option<String>,
    /// Write only the best N documents
    #[arg(long, value_name = "N")]
    top_n: Option<usize>,
    /// Write scores before the sigmoid: the logit of yes less that of no
    #[arg(long)]
    raw: bool,
    /// Format of standard input and output
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Format,
    #[command(flatten)]
    input: InputArgs,
    /// The longest prompt, in tokens: a longer document is cut [default: the model's limit, at most 8192]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Tokens that are computed together
    #[arg(long, value_name = "N")]
    batch_tokens: Option<usize>,
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

/// The documents on standard input, and on which line each is.
struct Documents {
    texts: Vec<String>,
    line_numbers: Vec<usize>,
}

/// Runs `qwen3-embed rerank` on standard input and output.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Format::Jsonl = args.format;
    let reranker = args.build()?;
    let documents = Documents::read(io::stdin().lock(), args.input)?;
    let instruction = args.instruct.as_deref();
    let options = RankOptions { instruction, top_n: args.top_n, max_tokens: None };
    let ranked = reranker.rank(&args.query, &documents.texts, options);
    let ranked = ranked.map_err(|error| documents.name_line(error))?;
    let mut output = BufWriter::new(io::stdout().lock());
    for document in ranked {
        let score = if args.raw { document.logit } else { document.score };
        write_line(&mut output, &Output { index: document.index, score })?;
    }
    Ok(output.flush()?)
}

impl Args {
    fn build(&self) -> Result<Reranker, Error> {
        let mut builder = self.model.reranker();
        if let Some(max_tokens) = self.max_tokens {
            builder = builder.max_tokens(max_tokens);
        }
        if let Some(threads) = self.threads {
            builder = builder.threads(threads);
        }
        if let Some(batch_tokens) = self.batch_tokens {
            builder = builder.batch_tokens(batch_tokens);
        }
        builder.build()
    }
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

    /// An error about a document, with its line.
    fn name_line(&self, mut error: Error) -> anyhow::Error {
        let line_number = error.text_mut().and_then(|document| self.line_numbers.get(*document));
        match line_number {
            Some(&line_number) => anyhow::Error::new(error).context(line_name(line_number)),
            None => error.into(),
        }
    }
}
