//! One JSON object on each line.

use std::io::{self, Write};

use anyhow::{Result, anyhow, ensure};
use clap::ValueEnum;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How commands read standard input and write standard output.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    /// One JSON object on each line
    Jsonl,
}

/// Reads the object on a line.
pub(crate) fn parse_line<T: DeserializeOwned>(line: &str) -> Result<T> {
    let line = line.trim_end();
    // Serde would take a list of the fields too.
    ensure!(line.trim_start().starts_with('{'), "expected an object, such as {{\"text\": \"…\"}}");
    // It is line 1 of what is parsed, whichever line of the input it is.
    let one_line =
        |e: serde_json::Error| anyhow!(e.to_string().replace(" at line 1 col", " at col"));
    serde_json::from_str(line).map_err(one_line)
}

/// What an error calls a line, counted from 1.
pub(crate) fn line_name(line_number: usize) -> String {
    format!("line {line_number} of standard input")
}

/// Writes a value on a line of its own.
pub(crate) fn write_line(output: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *output, line)?;
    output.write_all(b"\n")
}
