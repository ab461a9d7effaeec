use std::io::{self, BufReader, BufWriter, Read, Write as _};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use qwen3_embed::{Embedder, Embeddings, Error, Overflow, SpecialTokens, instruct};
use serde::{Deserialize, Serialize};

use crate::jsonl::{Format, InputArgs, line_name, parse_line, write_line};
use crate::model::ModelArgs;

/// Embed texts: one JSON object in on each line of standard input, one out
///
/// Each line of standard input is {"text": "…"} or {"tokens": [1, 2, …]}. Tokens are embedded as
/// they are, without an instruction and without an end-of-text token being appended. Each line of
/// standard output is {"index": 0, "embedding": [0.1, …], "n_tokens": 9}, in the order of the input.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Format of standard input and output
    #[arg(long, value_enum, default_value = "jsonl")]
    format: Format,
    #[command(flatten)]
    input: InputArgs,
    /// Dimensions of the vectors [default: those of the model]
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
    /// Embed the texts as queries, behind the model's prompt for queries
    #[arg(long)]
    query: bool,
    /// Embed the texts as queries, behind this instruction
    #[arg(long, value_name = "TEXT", conflicts_with = "query")]
    instruct: Option<String>,
    /// Embed the texts behind the model's prompt of this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["query", "instruct"])]
    prompt_name: Option<String>,
    /// The longest text, in tokens [default: the model's limit, at most 32768]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// What becomes of a longer text
    #[arg(long, value_enum, default_value = "error")]
    overflow: OverflowArg,
    /// Take what spells a special token, such as <|im_end|>, as plain text
    #[arg(long)]
    plain_text: bool,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Tokens that are computed together
    #[arg(long, value_name = "N")]
    batch_tokens: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum OverflowArg {
    /// The command fails
    Error,
    /// The beginning is cut
    TruncateLeft,
    /// The end is cut
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
struct Output<'a> {
    index: usize,
    embedding: &'a [f32],
    n_tokens: usize,
}

/// Lines that are embedded together at most.
const MAX_LINES: usize = 1024;

/// Bytes that are read from standard input together, so that the lines within them can be embedded
/// together.
const READ_BYTES: usize = 1 << 20;

/// Runs `qwen3-embed embed` on standard input and output.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Format::Jsonl = args.format;
    let embedder = args.build()?;
    let mut input = Lines::new(io::stdin().lock(), args.input);
    let mut output = BufWriter::new(io::stdout().lock());
    let mut first = 0;
    loop {
        let mut lines = input.next_batch()?;
        if lines.is_empty() {
            return Ok(());
        }
        let mut failure = None;
        let (tokens, embeddings) = loop {
            let mut error = match args.embed(&embedder, &lines) {
                Ok(embedded) => break embedded,
                Err(error) => error,
            };
            let text = error.text_mut().map_or(usize::MAX, |text| *text);
            let Some(line) = lines.get(text) else { return Err(error.into()) };
            let context = line_name(line.number);
            failure = Some(anyhow::Error::new(error.shift_text(first)).context(context));
            // Those before it are written all the same.
            lines.truncate(text);
        };
        for (i, embedding) in embeddings.iter().enumerate() {
            let line = Output { index: first + i, embedding, n_tokens: tokens[i].len() };
            write_line(&mut output, &line)?;
        }
        output.flush()?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        first += lines.len();
    }
}

impl Args {
    fn build(&self) -> Result<Embedder, Error> {
        let mut builder = self.model.builder().overflow(match self.overflow {
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

    /// The tokens and the vector of each line, in order.
    fn embed(
        &self,
        embedder: &Embedder,
        lines: &[Line],
    ) -> Result<(Vec<Vec<u32>>, Embeddings), Error> {
        let tokens = self.tokenize(embedder, lines)?;
        let embeddings = embedder.embed_tokens(&tokens)?;
        Ok((tokens, embeddings))
    }

    /// The tokens of each line, in order.
    fn tokenize(&self, embedder: &Embedder, lines: &[Line]) -> Result<Vec<Vec<u32>>, Error> {
        let prompt = match (&self.instruct, &self.prompt_name) {
            (Some(instruction), _) => &instruct(instruction, ""),
            (None, Some(name)) => embedder.prompt(name)?,
            (None, None) if self.query => embedder.query_prompt(),
            (None, None) => embedder.document_prompt(),
        };
        // Lines of tokens take part as prompts alone, so that an error names the right line.
        let texts: Vec<String> = lines
            .iter()
            .map(|line| match &line.text {
                Text::String(text) => [prompt, text].concat(),
                Text::Tokens(_) => prompt.to_owned(),
            })
            .collect();
        let mut tokens = embedder.tokenize(&texts)?;
        for (tokens, line) in tokens.iter_mut().zip(lines) {
            if let Text::Tokens(given) = &line.text {
                tokens.clone_from(given);
            }
        }
        Ok(tokens)
    }
}

/// One line of standard input, checked.
struct Line {
    /// Counted from 1.
    number: usize,
    text: Text,
}

enum Text {
    String(String),
    Tokens(Vec<u32>),
}

/// Standard input, read in batches of the lines that are there.
struct Lines<R> {
    reader: BufReader<R>,
    args: InputArgs,
    line_number: usize,
    /// What was wrong with the line behind the last batch.
    failure: Option<anyhow::Error>,
}

impl<R: Read> Lines<R> {
    fn new(reader: R, args: InputArgs) -> Self {
        let reader = BufReader::with_capacity(READ_BYTES, reader);
        Self { reader, args, line_number: 0, failure: None }
    }

    /// Waits for a line and takes the whole ones that came with it; nothing at the end of the input.
    /// A program that writes one line and waits for its embedding gets it. A line that is wrong fails when
    /// those before it have been taken.
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

fn parse(line: &str) -> Result<Text> {
    let input: Input = parse_line(line)?;
    match (input.text, input.tokens) {
        (Some(text), None) => Ok(Text::String(text)),
        (None, Some(tokens)) => Ok(Text::Tokens(tokens)),
        (Some(_), Some(_)) => bail!("expected `text` or `tokens`, got both"),
        (None, None) => bail!("expected `text` or `tokens`, got neither"),
    }
}
