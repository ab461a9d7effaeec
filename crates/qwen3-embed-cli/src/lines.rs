//! Texts on the lines of standard input or of a file, and JSON objects on the lines of standard output.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::marker::PhantomData;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use qwen3_embed::Error;
use serde::de::{DeserializeOwned, DeserializeSeed};
use serde::{Deserialize, Serialize};

/// The size of the buffer for the input, in bytes.
const READ_BYTES: usize = 1 << 20;

/// What some programs write at the beginning of a file.
pub(crate) const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The format of the input.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    /// A JSON object or a JSON string on each line
    Jsonl,
    /// A text on each line
    Text,
}

/// How the input is read.
#[derive(Clone, Copy, clap::Args)]
pub(crate) struct InputArgs {
    /// Replace invalid characters with U+FFFD instead of failing: single halves of surrogate pairs, such as \ud83d, and
    /// bytes that are not UTF-8
    #[arg(long)]
    replace_invalid: bool,
}

impl InputArgs {
    /// Whether bytes that are not UTF-8 are replaced instead of being an error.
    pub(crate) fn replaces_invalid(self) -> bool {
        self.replace_invalid
    }
}

/// The lines of an input.
pub(crate) struct Lines<R> {
    reader: BufReader<R>,
    format: Format,
    args: InputArgs,
    /// The file name, or `None` for standard input.
    name: Option<String>,
    number: usize,
    line: Vec<u8>,
}

/// A line of the input.
struct Line<T> {
    /// The number of the line, starting at 1.
    number: usize,
    /// What the line says, or `None` if it is empty.
    value: Option<T>,
}

impl Lines<io::StdinLock<'static>> {
    /// The lines of standard input. If it is a terminal, the user is told what to do.
    fn of_standard_input(format: Format, args: InputArgs) -> Self {
        say_what_to_write(format);
        Self::new(io::stdin().lock(), format, args, None)
    }
}

/// Says what to write on each line, if standard input is a terminal.
pub(crate) fn say_what_to_write(format: Format) {
    if io::stdin().is_terminal() {
        let what = match format {
            Format::Jsonl => "one JSON object or string",
            Format::Text => "one text",
        };
        eprintln!("Write {what} on each line, and end with Ctrl-D on an empty line.");
    }
}

impl Lines<File> {
    fn of_file(path: &Path, format: Format, args: InputArgs) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
        Ok(Self::new(file, format, args, Some(name)))
    }
}

impl<R: Read> Lines<R> {
    /// The lines of a reader. `name` is a file name, or `None` for standard input.
    pub(crate) fn new(reader: R, format: Format, args: InputArgs, name: Option<String>) -> Self {
        let reader = BufReader::with_capacity(READ_BYTES, reader);
        Self { reader, format, args, name, number: 0, line: Vec::new() }
    }

    /// Reads a line and parses it. The result is `None` at the end of the input.
    fn next<T: DeserializeOwned + From<String>>(&mut self) -> Result<Option<Line<T>>> {
        let Some(number) = self.read()? else { return Ok(None) };
        let format = self.format;
        let value = self.text().and_then(|text| match (text, format) {
            (None, _) => Ok(None),
            (Some(text), Format::Text) => Ok(Some(T::from(text.into_owned()))),
            (Some(text), Format::Jsonl) => parse(text.trim()).map(Some),
        });
        let value = value.with_context(|| self.name_of(number))?;
        Ok(Some(Line { number, value }))
    }

    /// Reads a line, which [`text`](Self::text) returns. The result is the number of the line, starting at 1, or `None`
    /// at the end of the input.
    pub(crate) fn read(&mut self) -> Result<Option<usize>> {
        self.number += 1;
        self.line.clear();
        let n_read = self.reader.read_until(b'\n', &mut self.line);
        let n_read = n_read.with_context(|| self.name_of(self.number))?;
        // Some programs write a byte order mark at the beginning of a file.
        if self.number == 1 && self.line.starts_with(BYTE_ORDER_MARK) {
            self.line.drain(..BYTE_ORDER_MARK.len());
        }
        Ok((n_read > 0).then_some(self.number))
    }

    /// The text of the line that was read, without its line break, or `None` if the line is empty.
    ///
    /// # Errors
    ///
    /// If the line is not UTF-8, unless invalid characters are replaced.
    pub(crate) fn text(&mut self) -> Result<Option<Cow<'_, str>>> {
        let end = self.line.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n'));
        self.line.truncate(end.map_or(0, |end| end + 1));
        let text = if self.args.replace_invalid {
            if let Format::Jsonl = self.format {
                replace_lone_surrogates(&mut self.line);
            }
            String::from_utf8_lossy(&self.line)
        } else {
            str::from_utf8(&self.line).context("stream did not contain valid UTF-8")?.into()
        };
        Ok((!text.trim().is_empty()).then_some(text))
    }

    /// Whether another whole line has been read already, so that [`next`](Self::next) does not wait.
    pub(crate) fn has_line(&self) -> bool {
        self.reader.buffer().contains(&b'\n')
    }

    /// The name of a line in error messages.
    pub(crate) fn name_of(&self, number: usize) -> String {
        match &self.name {
            Some(name) => format!("line {number} of {name}"),
            None => format!("line {number} of standard input"),
        }
    }
}

/// A text in an input, for commands that need all texts before they start.
pub(crate) struct Document {
    pub(crate) text: String,
    /// The file name, or `None` for standard input.
    pub(crate) file: Option<String>,
    /// The number of the line, starting at 1.
    pub(crate) line: usize,
}

impl AsRef<str> for Document {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

/// The place of the document, such as `notes.txt:12`.
impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{file}:{}", self.line),
            None => write!(f, "{}", self.line),
        }
    }
}

/// The object on a line of JSON, for commands that need a text only.
#[derive(Deserialize)]
struct TextObject {
    text: String,
}

impl From<String> for TextObject {
    fn from(text: String) -> Self {
        Self { text }
    }
}

/// Reads all texts of standard input.
pub(crate) fn documents_of_standard_input(
    format: Format,
    args: InputArgs,
) -> Result<Vec<Document>> {
    documents(Lines::of_standard_input(format, args))
}

/// Reads all texts of a file.
pub(crate) fn documents_of_file(
    path: &Path,
    format: Format,
    args: InputArgs,
) -> Result<Vec<Document>> {
    documents(Lines::of_file(path, format, args)?)
}

fn documents<R: Read>(mut lines: Lines<R>) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    while let Some(Line { number, value }) = lines.next::<TextObject>()? {
        if let Some(TextObject { text }) = value {
            documents.push(Document { text, file: lines.name.clone(), line: number });
        }
    }
    Ok(documents)
}

/// Adds the place of a document to an error about it.
pub(crate) fn name_place(documents: &[Document], error: Error) -> anyhow::Error {
    let Some(Document { file, line, .. }) = error.text_index().and_then(|idx| documents.get(idx))
    else {
        return error.into();
    };
    let input = file.as_deref().unwrap_or("standard input");
    anyhow::Error::new(error).context(format!("line {line} of {input}"))
}

/// A text with a space in the place of each line break and of other white space, to be shown on a line.
pub(crate) fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Parses the object or the string on a line.
fn parse<T: DeserializeOwned + From<String>>(line: &str) -> Result<T> {
    parse_with(line, PhantomData)
}

/// Parses the string on a line, or with `seed` the object on a line.
pub(crate) fn parse_with<'de, T: From<String>>(
    line: &'de str,
    seed: impl DeserializeSeed<'de, Value = T>,
) -> Result<T> {
    // The parser gets a single line, so the line number in its errors is always 1.
    let one_line =
        |e: serde_json::Error| anyhow!(e.to_string().replace(" at line 1 col", " at col"));
    match line.as_bytes() {
        [b'"', ..] => serde_json::from_str::<String>(line).map(T::from).map_err(one_line),
        [b'{', ..] => {
            let mut parser = serde_json::Deserializer::from_str(line);
            let object = seed.deserialize(&mut parser).and_then(|object| {
                parser.end()?;
                Ok(object)
            });
            object.map_err(one_line)
        }
        // Serde would also accept a list of the fields.
        _ => bail!("expected an object such as {{\"text\": \"…\"}}, or a string"),
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
