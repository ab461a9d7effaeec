use std::io::{self, BufReader, BufWriter, Read, Write};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use qwen3_embed::{EmbedOptions, Embedder, Overflow, Prompt, SpecialTokens, Text};
use serde::{Deserialize, Serialize};

use crate::jsonl::{Format, InputArgs, line_name, parse_line, write_line};
use crate::model::{self, ModelArgs};

/// Embed texts: read one JSON object from each line of standard input, and write one line for each text
///
/// Each line of standard input is {"text": "…"} or {"tokens": [1, 2, …]}. Tokens are embedded as they are, without an
/// instruction, and no end-of-text token is appended. Each line of standard output is
/// {"index": 0, "embedding": [0.1, …], "n_tokens": 9}, in the order of the input. Empty lines are skipped.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_name = "PATH or ID", help = model_help())]
    model: Option<String>,
    #[command(flatten)]
    settings: ModelArgs,
    /// Format of standard input and output
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Format,
    #[command(flatten)]
    input: InputArgs,
    /// Number of dimensions of the vectors [default: that of the model]
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
    /// Embed the texts as queries, with the model's prompt for queries
    #[arg(long)]
    query: bool,
    /// Embed the texts as queries, with this instruction
    #[arg(long, value_name = "TEXT", conflicts_with = "query")]
    instruct: Option<String>,
    /// Embed the texts with the model's prompt of this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["query", "instruct"])]
    prompt_name: Option<String>,
    /// What happens to a text that is longer than --max-tokens
    #[arg(long, value_enum, default_value = "error")]
    overflow: OverflowArg,
    /// Treat special tokens in texts, such as <|im_end|>, as plain text
    #[arg(long)]
    plain_text: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum OverflowArg {
    /// The command fails
    Error,
    /// The beginning is cut off
    TruncateLeft,
    /// The end is cut off
    TruncateRight,
}

/// A line of standard input.
#[derive(Deserialize)]
struct Input {
    text: Option<String>,
    tokens: Option<Vec<u32>>,
}

/// A line of standard output.
#[derive(Serialize)]
struct Output {
    index: usize,
    embedding: Vec<f32>,
    n_tokens: usize,
}

/// The help of `--model`, which is optional.
fn model_help() -> String {
    format!(
        "{} [default: a small model for demonstrations, which is part of this program]",
        model::MODEL
    )
}

/// The maximum number of lines that are embedded together.
const MAX_LINES: usize = 1024;

/// The size of the buffer for standard input, in bytes. The complete lines in the buffer are embedded together.
const READ_BYTES: usize = 1 << 20;

/// Runs `qwen3-embed embed` on standard input and output.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Format::Jsonl = args.format;
    let (embedder, options) = (args.build()?, args.options());
    let mut input = Lines::new(io::stdin().lock(), args.input);
    let mut output = BufWriter::new(io::stdout().lock());
    let mut n_before = 0;
    loop {
        let lines = input.next_batch()?;
        if lines.is_empty() {
            return Ok(());
        }
        let result = embed(&embedder, &options, &lines, n_before, &mut output);
        // The lines before an error are written even if there is an error.
        output.flush()?;
        result?;
        n_before += lines.len();
    }
}

/// Embeds the texts of `lines` and writes one line for each of them. `n_before` is the number of texts in earlier
/// batches.
fn embed(
    embedder: &Embedder,
    options: &EmbedOptions,
    lines: &[Line],
    n_before: usize,
    output: &mut impl Write,
) -> Result<()> {
    let embeddings = embedder.embed_iter(lines.iter().map(|line| &line.text), options)?;
    for (index, (line, embedding)) in (n_before..).zip(lines.iter().zip(embeddings)) {
        let embedding = embedding.map_err(|error| {
            let is_about_line = error.text_index().is_some();
            let error = anyhow::Error::new(error.map_text_index(|_| index));
            if is_about_line { error.context(line_name(line.number)) } else { error }
        })?;
        let n_tokens = embedding.n_tokens;
        write_line(output, &Output { index, embedding: embedding.vector, n_tokens })?;
    }
    Ok(())
}

impl Args {
    fn build(&self) -> Result<Embedder> {
        let example = "--model Qwen/Qwen3-Embedding-0.6B";
        let source = model::named_or_bundled(self.model.as_deref(), example)?;
        let mut builder = self.settings.embedder(source).overflow(match self.overflow {
            OverflowArg::Error => Overflow::Error,
            OverflowArg::TruncateLeft => Overflow::TruncateLeft,
            OverflowArg::TruncateRight => Overflow::TruncateRight,
        });
        if self.plain_text {
            builder = builder.special_tokens(SpecialTokens::PlainText);
        }
        if let Some(dimensions) = self.dimensions {
            builder = builder.dimensions(dimensions);
        }
        Ok(builder.build()?)
    }

    fn options(&self) -> EmbedOptions {
        EmbedOptions::new().prompt(match (&self.instruct, &self.prompt_name) {
            (Some(instruction), _) => Prompt::Instruction(instruction.clone()),
            (None, Some(name)) => Prompt::Named(name.clone()),
            (None, None) if self.query => Prompt::Query,
            (None, None) => Prompt::Document,
        })
    }
}

/// A parsed line of standard input.
struct Line {
    /// The number of the line, starting at 1.
    number: usize,
    text: Text<'static>,
}

/// Standard input, read in batches of lines.
struct Lines<R> {
    reader: BufReader<R>,
    args: InputArgs,
    line_number: usize,
    /// The error about the line that follows the last batch.
    failure: Option<anyhow::Error>,
}

impl<R: Read> Lines<R> {
    fn new(reader: R, args: InputArgs) -> Self {
        let reader = BufReader::with_capacity(READ_BYTES, reader);
        Self { reader, args, line_number: 0, failure: None }
    }

    /// Waits for a line, and returns the line with all complete lines that were read together with it. So a program
    /// that writes one line and waits for its embedding is not blocked. The result is empty at the end of the input. If
    /// a line is invalid, the lines before it are returned first, and the error is returned by the next call.
    fn next_batch(&mut self) -> Result<Vec<Line>> {
        let mut batch = Vec::new();
        if self.failure.is_none() {
            self.failure = self.fill(&mut batch).err();
        }
        match self.failure.take_if(|_| batch.is_empty()) {
            Some(failure) => Err(failure),
            None => Ok(batch),
        }
    }

    fn fill(&mut self, batch: &mut Vec<Line>) -> Result<()> {
        let mut line = String::new();
        while batch.is_empty() || (batch.len() < MAX_LINES && self.reader.buffer().contains(&b'\n'))
        {
            self.line_number += 1;
            let context = || line_name(self.line_number);
            self.args.read_line(&mut self.reader, &mut line).with_context(context)?;
            if line.is_empty() {
                break;
            }
            if !line.trim().is_empty() {
                let text = parse(&line).with_context(context)?;
                batch.push(Line { number: self.line_number, text });
            }
        }
        Ok(())
    }
}

fn parse(line: &str) -> Result<Text<'static>> {
    let input: Input = parse_line(line)?;
    match (input.text, input.tokens) {
        (Some(text), None) => Ok(text.into()),
        (None, Some(tokens)) => Ok(tokens.into()),
        (Some(_), Some(_)) => bail!("expected `text` or `tokens`, got both"),
        (None, None) => bail!("expected `text` or `tokens`, got neither"),
    }
}
