//! A JSON object on each line.

use std::io::{BufWriter, Write};
use std::ops::Range;

use anyhow::{Context, Result};
use arrow_array::RecordBatch;
use arrow_json::LineDelimitedWriter;

use super::file::Sink;
use super::rows::{Rows, Writer};
use crate::embed::input::Carried;

pub(super) struct JsonlWriter {
    output: BufWriter<Sink>,
    name: String,
}

impl JsonlWriter {
    pub(super) fn new(sink: Sink) -> Self {
        let name = sink.name();
        Self { output: BufWriter::new(sink), name }
    }

    fn write_lines(&mut self, rows: &Rows, range: Range<usize>) -> Result<()> {
        let converted;
        let carried = match &rows.carried {
            Carried::Json(fields) => &fields[range.clone()],
            Carried::Columns(columns) => {
                converted = to_json(&columns.slice(range.start, range.len()))?;
                &converted[..]
            }
        };
        for (row, fields) in range.zip(carried) {
            let output = &mut self.output;
            let (index, n_tokens) = (rows.indices[row], rows.n_tokens[row]);
            write!(output, "{{\"index\":{index},\"embedding\":{}", rows.vectors.json(row)?)?;
            if let Some(scales) = rows.vectors.scales(row..row + 1) {
                write!(output, ",\"scale\":{}", serde_json::to_string(&scales[0])?)?;
            }
            let comma = if fields.is_empty() { "" } else { "," };
            writeln!(output, ",\"n_tokens\":{n_tokens}{comma}{fields}}}")?;
        }
        // A program that wrote one line may wait for its vector.
        Ok(self.output.flush()?)
    }
}

impl Writer for JsonlWriter {
    fn write(&mut self, rows: &Rows, range: Range<usize>) -> Result<()> {
        self.write_lines(rows, range).with_context(|| format!("cannot write {}", self.name))
    }

    fn finish(self: Box<Self>) -> Result<Vec<Sink>> {
        let sink = self.output.into_inner().map_err(std::io::IntoInnerError::into_error);
        Ok(vec![sink.with_context(|| format!("cannot write {}", self.name))?])
    }
}

/// The fields of each row, as a JSON object without its braces.
fn to_json(columns: &RecordBatch) -> Result<Vec<String>> {
    if columns.num_columns() == 0 {
        return Ok(vec![String::new(); columns.num_rows()]);
    }
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write(columns)?;
    writer.finish()?;
    let text = String::from_utf8(writer.into_inner())?;
    let object = |line: &str| line.trim_start_matches('{').to_owned();
    Ok(text.lines().map(|line| object(line.strip_suffix('}').unwrap_or(line))).collect())
}
