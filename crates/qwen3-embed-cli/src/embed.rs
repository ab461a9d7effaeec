use std::io::{self, BufWriter, StdinLock, Write};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use qwen3_embed::{EmbedOptions, Embedder, Overflow, SpecialTokens, Text};
use serde::{Deserialize, Serialize};

use crate::lines::{Format, InputArgs, Line, Lines, write_line};
use crate::model::{EmbedderArgs, PromptArgs};

/// Embed texts: read one text from each line of standard input, and write one line for each text
///
/// Each line of standard input is {"text": "…"}, {"tokens": [1, 2, …]} or a JSON string, or a plain text with --format
/// text. Tokens are embedded as they are, without an instruction, and no end-of-text token is appended. Each line of
/// standard output is {"index": 0, "embedding": [0.1, …], "n_tokens": 9}, in the order of the input. Empty lines are
/// skipped.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    embedder: EmbedderArgs,
    /// Format of standard input
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Format,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    prompt: PromptArgs,
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

/// A text and its line.
struct TextLine {
    /// The number of the line, starting at 1.
    number: usize,
    text: Text<'static>,
}

/// The maximum number of texts that are embedded together.
const MAX_LINES: usize = 1024;

/// Runs `qwen3-embed embed` on standard input and output.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (embedder, options) = (args.build()?, args.prompt.options());
    let lines = Lines::of_standard_input(args.format, args.input);
    let mut input = Batches { lines, failure: None };
    let mut output = BufWriter::new(io::stdout().lock());
    let mut n_before = 0;
    loop {
        let batch = input.next()?;
        if batch.is_empty() {
            return Ok(());
        }
        let name_of = |number| input.lines.name_of(number);
        let result = embed(&embedder, &options, &batch, n_before, name_of, &mut output);
        // The lines before an error are written even if there is an error.
        output.flush()?;
        result?;
        n_before += batch.len();
    }
}

/// Embeds the texts of a batch and writes one line for each of them. `n_before` is the number of texts in earlier
/// batches, and `name_of` names a line of standard input.
fn embed(
    embedder: &Embedder,
    options: &EmbedOptions,
    batch: &[TextLine],
    n_before: usize,
    name_of: impl Fn(usize) -> String,
    output: &mut impl Write,
) -> Result<()> {
    let embeddings = embedder.embed_iter(batch.iter().map(|line| &line.text), options)?;
    for (index, (line, embedding)) in (n_before..).zip(batch.iter().zip(embeddings)) {
        let embedding = embedding.map_err(|error| {
            let is_about_line = error.text_index().is_some();
            let error = anyhow::Error::new(error.map_text_index(|_| index));
            if is_about_line { error.context(name_of(line.number)) } else { error }
        })?;
        let n_tokens = embedding.n_tokens;
        write_line(output, &Output { index, embedding: embedding.vector, n_tokens })?;
    }
    Ok(())
}

impl Args {
    fn build(&self) -> Result<Embedder> {
        let mut builder = self.embedder.builder()?.overflow(match self.overflow {
            OverflowArg::Error => Overflow::Error,
            OverflowArg::TruncateLeft => Overflow::TruncateLeft,
            OverflowArg::TruncateRight => Overflow::TruncateRight,
        });
        if self.plain_text {
            builder = builder.special_tokens(SpecialTokens::PlainText);
        }
        Ok(builder.build()?)
    }
}

/// Standard input, read in batches of lines.
struct Batches {
    lines: Lines<StdinLock<'static>>,
    /// The error about the line that follows the last batch.
    failure: Option<anyhow::Error>,
}

impl Batches {
    /// Waits for a text, and returns it with all texts on complete lines that were read together with it. So a program
    /// that writes one line and waits for its embedding is not blocked. The result is empty at the end of the input. If
    /// a line is invalid, the lines before it are returned first, and the error is returned by the next call.
    fn next(&mut self) -> Result<Vec<TextLine>> {
        let mut batch = Vec::new();
        if self.failure.is_none() {
            self.failure = self.fill(&mut batch).err();
        }
        match self.failure.take_if(|_| batch.is_empty()) {
            Some(failure) => Err(failure),
            None => Ok(batch),
        }
    }

    fn fill(&mut self, batch: &mut Vec<TextLine>) -> Result<()> {
        while batch.is_empty() || (batch.len() < MAX_LINES && self.lines.has_line()) {
            let Some(Line { number, value }) = self.lines.next::<Input>()? else { break };
            if let Some(input) = value {
                let text = input.into_text().with_context(|| self.lines.name_of(number))?;
                batch.push(TextLine { number, text });
            }
        }
        Ok(())
    }
}

impl From<String> for Input {
    fn from(text: String) -> Self {
        Self { text: Some(text), tokens: None }
    }
}

impl Input {
    fn into_text(self) -> Result<Text<'static>> {
        match (self.text, self.tokens) {
            (Some(text), None) => Ok(text.into()),
            (None, Some(tokens)) => Ok(tokens.into()),
            (Some(_), Some(_)) => bail!("expected `text` or `tokens`, got both"),
            (None, None) => bail!("expected `text` or `tokens`, got neither"),
        }
    }
}
