//! Standard input and output with one JSON object on each line.

use std::io::{self, BufRead, Write};

use anyhow::{Result, anyhow, ensure};
use clap::ValueEnum;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The format of standard input and output.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    /// One JSON object on each line
    Jsonl,
}

/// Options for reading standard input.
#[derive(Clone, Copy, clap::Args)]
pub(crate) struct InputArgs {
    /// Replace invalid characters with U+FFFD instead of failing: single halves of surrogate pairs, such as \ud83d, and
    /// bytes that are not UTF-8
    #[arg(long)]
    replace_invalid: bool,
}

impl InputArgs {
    /// Reads a line into `line`, including the line break. `line` is empty at the end of the input.
    pub(crate) fn read_line(self, input: &mut impl BufRead, line: &mut String) -> io::Result<()> {
        line.clear();
        if !self.replace_invalid {
            return input.read_line(line).map(drop);
        }
        let mut bytes = Vec::new();
        input.read_until(b'\n', &mut bytes)?;
        replace_lone_surrogates(&mut bytes);
        line.push_str(&String::from_utf8_lossy(&bytes));
        Ok(())
    }
}

/// Replaces each escape in a JSON text with `\ufffd` if it is one half of a surrogate pair without the other half.
fn replace_lone_surrogates(json: &mut [u8]) {
    let mut at = 0;
    while at < json.len() {
        let escaped = escaped_unit(&json[at..]);
        let next = json.get(at + 6..).and_then(escaped_unit);
        at += match (escaped, next) {
            (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => 12,
            (Some(0xd800..0xe000), _) => {
                json[at..at + 6].copy_from_slice(br"\ufffd");
                6
            }
            // The character after a backslash does not start another escape.
            _ if json[at] == b'\\' => 2,
            _ => 1,
        };
    }
}

/// The UTF-16 code unit of the `\u` escape at the beginning of `json`.
fn escaped_unit(json: &[u8]) -> Option<u16> {
    let digits = json.strip_prefix(br"\u")?.get(..4)?;
    let digits = digits.iter().all(u8::is_ascii_hexdigit).then_some(digits)?;
    u16::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

/// Parses the object on a line.
pub(crate) fn parse_line<T: DeserializeOwned>(line: &str) -> Result<T> {
    let line = line.trim_end();
    // Serde would also accept a list of the fields.
    ensure!(line.trim_start().starts_with('{'), "expected an object, such as {{\"text\": \"…\"}}");
    // The parser gets a single line, so the line number in its errors is always 1.
    let one_line =
        |e: serde_json::Error| anyhow!(e.to_string().replace(" at line 1 col", " at col"));
    serde_json::from_str(line).map_err(one_line)
}

/// The name of a line in error messages. Line numbers start at 1.
pub(crate) fn line_name(line_number: usize) -> String {
    format!("line {line_number} of standard input")
}

/// Writes a value as one line.
pub(crate) fn write_line(output: &mut impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *output, line)?;
    output.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_lone_surrogates_only() {
        for (json, expected) in [
            (r#""cut \ud83d""#, "cut \u{fffd}"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}\u{1f600}"),
            (r#""\uDE00\uD83D\u0041""#, "\u{fffd}\u{fffd}A"),
            (r#""\ud83d\n\uD83d\ude00""#, "\u{fffd}\n\u{1f600}"),
            (r#""\\ud83d \\\ud83d""#, "\\ud83d \\\u{fffd}"),
            (r#""\u00e9\ud7ff\ue000""#, "\u{e9}\u{d7ff}\u{e000}"),
        ] {
            let mut bytes = json.as_bytes().to_vec();
            replace_lone_surrogates(&mut bytes);
            assert_eq!(serde_json::from_slice::<String>(&bytes).unwrap(), expected, "{json}");
        }
        // Text that is not JSON is not changed.
        for json in ["", "\\", r"\u", r"\ud8", r"\ud83", r"\u+83d", r"\ud83g", "\\u\u{e9}\u{e9}"] {
            let mut bytes = json.as_bytes().to_vec();
            replace_lone_surrogates(&mut bytes);
            assert_eq!(bytes, json.as_bytes());
        }
    }
}
