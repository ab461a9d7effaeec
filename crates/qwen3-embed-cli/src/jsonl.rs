//! One JSON object on each line.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

/// How commands read standard input and write standard output.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    /// One JSON object on each line
    Jsonl,
}

/// Writes a value on a line of its own.
pub(crate) fn write_line(output: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *output, line)?;
    output.write_all(b"\n")
}
