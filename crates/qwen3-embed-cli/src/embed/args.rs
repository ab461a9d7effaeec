//! The flags of `qwen3-embed embed`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Result;
use clap::ValueEnum;
use qwen3_embed::{Embedder, Overflow, SpecialTokens};
use serde::Serialize;

use crate::lines::InputArgs;
use crate::model::{EmbedderArgs, ModelIdentity, PromptArgs};

/// Embed texts: read them from files or standard input, and write their vectors to a file, a folder or standard output
///
/// Without FILE, each line of standard input is {"text": "…"}, {"tokens": [1, 2, …]} or a JSON string, and each line of
/// standard output is {"index": 0, "embedding": [0.1, …], "n_tokens": 9}, followed by the other fields of the input.
/// Tokens are embedded as they are, without an instruction, and no end-of-text token is appended. A text may have its
/// own instruction: {"text": "…", "instruct": "…"}. Rows are in the order of the input. Empty lines are skipped. A field
/// of the input that has the name of a field of the output is not copied.
///
/// The exit status is 0 if all texts were embedded or skipped, 1 if the command failed or was interrupted, and 2 if the
/// command line was wrong.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) input: Input,
    #[command(flatten)]
    pub(super) invalid: InputArgs,
    #[command(flatten)]
    pub(super) output: Output,
    #[command(flatten)]
    pub(super) embedder: EmbedderArgs,
    #[command(flatten)]
    pub(super) prompt: PromptArgs,
    /// What happens to a text that is longer than --max-tokens
    #[arg(long, value_enum, default_value = "error")]
    pub(super) overflow: OverflowArg,
    /// Treat special tokens in texts, such as <|im_end|>, as plain text
    #[arg(long)]
    pub(super) plain_text: bool,
    /// What happens to a record without a valid text, or with a text that cannot be embedded
    #[arg(long, value_enum, default_value = "fail")]
    pub(super) on_error: OnError,
    /// File with a JSON object for each skipped record [default: errors.jsonl in --output-dir, or standard error]
    #[arg(long, value_name = "FILE")]
    pub(super) errors: Option<PathBuf>,
    /// Show no progress
    #[arg(long)]
    pub(super) quiet: bool,
}

/// The flags about the input.
#[derive(clap::Args)]
pub(super) struct Input {
    /// Files to read, or patterns such as 'texts/*.parquet'. Files compressed with gzip or zstd are recognized by their
    /// contents. `-` is standard input [default: standard input]
    #[arg(value_name = "FILE")]
    pub(super) files: Vec<String>,
    /// Format of the input [default: by the name of each file, or jsonl for standard input]
    #[arg(long, value_enum)]
    pub(super) format: Option<InputFormat>,
    /// Column or JSON field with the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub(super) text_column: String,
    /// Column or JSON field with the instruction of a text, if there is such a column
    #[arg(long, value_name = "NAME", default_value = "instruct")]
    pub(super) instruct_column: String,
    /// Columns or JSON fields that are copied to the output, separated by commas [default: all except for the text and
    /// its instruction]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(super) columns: Option<Vec<String>>,
    /// Embed one of N parts of the input, from 1/N to N/N, so that N machines share the work. Blocks of 1,024 records
    /// take turns
    #[arg(long, value_name = "I/N", default_value_t)]
    pub(super) shard: Part,
}

/// The flags about the output.
#[derive(clap::Args)]
pub(super) struct Output {
    /// File to write, whose name ends with .jsonl, .npy, .safetensors, .arrow or .parquet. `-` is standard output
    /// [default: standard output]
    #[arg(long, short, value_name = "FILE", conflicts_with = "output_dir")]
    pub(super) output: Option<PathBuf>,
    /// Folder to write files with --shard-rows vectors to
    #[arg(long, value_name = "DIR")]
    pub(super) output_dir: Option<PathBuf>,
    /// Number of vectors in each file of --output-dir
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100_000,
        value_parser = clap::value_parser!(u64).range(1..),
        requires = "output_dir"
    )]
    pub(super) shard_rows: u64,
    /// Go on with an interrupted run in --output-dir, whose input and settings must be the same. Starts a new run if the
    /// folder has none
    #[arg(long, requires = "output_dir")]
    pub(super) resume: bool,
    /// Replace the file --output if it exists
    #[arg(long, requires = "output")]
    pub(super) overwrite: bool,
    /// Format of the output [default: by the name of --output; parquet with --output-dir; jsonl on standard output]
    #[arg(long, value_enum)]
    pub(super) output_format: Option<OutputFormat>,
    /// Type of the values of vectors
    #[arg(long, value_enum, default_value = "f32")]
    pub(super) vectors: VectorFormat,
}

/// The format of a file of the input.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum InputFormat {
    /// A JSON object or a JSON string on each line (.jsonl, .ndjson)
    Jsonl,
    /// A text on each line (.txt)
    Text,
    /// Values separated by commas, with a line of names (.csv)
    Csv,
    /// Values separated by tabs, with a line of names (.tsv)
    Tsv,
    /// Apache Parquet (.parquet)
    Parquet,
}

impl InputFormat {
    /// The format of a file by its name. The endings .gz and .zst are ignored.
    pub(super) fn of_name(path: &Path) -> Option<Self> {
        let mut path = path.to_owned();
        if ["gz", "zst"].contains(&extension(&path).as_str()) {
            path.set_extension("");
        }
        match extension(&path).as_str() {
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "txt" | "text" => Some(Self::Text),
            "csv" => Some(Self::Csv),
            "tsv" => Some(Self::Tsv),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// The format of the output.
#[derive(Clone, Copy, PartialEq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OutputFormat {
    /// A JSON object on each line
    Jsonl,
    /// An array of NumPy, without other columns
    Npy,
    /// A tensor `embeddings`, without other columns
    Safetensors,
    /// Arrow IPC file
    Arrow,
    /// Apache Parquet
    Parquet,
}

impl OutputFormat {
    pub(super) fn of_name(path: &Path) -> Option<Self> {
        Self::from_str(&extension(path), true).ok()
    }

    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Npy => "npy",
            Self::Safetensors => "safetensors",
            Self::Arrow => "arrow",
            Self::Parquet => "parquet",
        }
    }

    /// Whether the output has columns with types, so that the fields of JSON lines need types.
    pub(super) fn has_columns(self) -> bool {
        matches!(self, Self::Arrow | Self::Parquet)
    }
}

fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

/// The type of the values of vectors in the output.
#[derive(Clone, Copy, PartialEq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum VectorFormat {
    F32,
    F16,
    /// 8-bit integers, and for each vector a scale that they are multiplied by
    Int8,
    /// One bit for each dimension, 1 if the value is positive, packed as by `numpy.packbits`
    Binary,
}

#[derive(Clone, Copy, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum OverflowArg {
    /// The text is an error
    Error,
    /// The beginning is cut off
    TruncateLeft,
    /// The end is cut off
    TruncateRight,
}

impl From<OverflowArg> for Overflow {
    fn from(arg: OverflowArg) -> Self {
        match arg {
            OverflowArg::Error => Self::Error,
            OverflowArg::TruncateLeft => Self::TruncateLeft,
            OverflowArg::TruncateRight => Self::TruncateRight,
        }
    }
}

/// What happens to a record that cannot be embedded.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum OnError {
    /// The command fails
    Fail,
    /// The record is listed in --errors, and is missing in the output
    Skip,
}

/// A part of the input: `index` of `n_parts`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Part {
    /// Starts at 1.
    index: u64,
    n_parts: u64,
}

/// The number of consecutive records that belong to the same part.
const BLOCK: u64 = 1024;

impl Part {
    /// Whether the record at `index` belongs to the part.
    pub(super) fn contains(self, index: u64) -> bool {
        index / BLOCK % self.n_parts == self.index - 1
    }

    /// The end of a file name, such as `-1-of-4`, or nothing if the part is the whole input.
    pub(super) fn suffix(self) -> String {
        match self.n_parts {
            1 => String::new(),
            n_parts => format!("-{}-of-{n_parts}", self.index),
        }
    }
}

impl Default for Part {
    fn default() -> Self {
        Self { index: 1, n_parts: 1 }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.n_parts)
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let numbers = s.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, n_parts)) if (1..=n_parts).contains(&index) => Ok(Self { index, n_parts }),
            _ => Err(format!("expected I/N with I from 1 to N, such as 1/4, got {s}")),
        }
    }
}

impl Args {
    /// Loads the model.
    pub(super) fn build(&self) -> Result<(Embedder, ModelIdentity)> {
        let (builder, identity) = self.embedder.local_builder()?;
        let mut builder = builder.overflow(self.overflow.into());
        if self.plain_text {
            builder = builder.special_tokens(SpecialTokens::PlainText);
        }
        Ok((builder.build()?, identity))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_the_input_are_disjoint_and_complete() {
        let parts: Vec<Part> = (1..=3).map(|i| format!("{i}/3").parse().expect("valid")).collect();
        for index in (0..10 * BLOCK).step_by(100) {
            assert_eq!(parts.iter().filter(|part| part.contains(index)).count(), 1, "{index}");
        }
        for invalid in ["0/3", "4/3", "1", "1/0", "a/3", "1/3/5", "-1/3"] {
            assert!(invalid.parse::<Part>().is_err(), "{invalid}");
        }
    }
}
