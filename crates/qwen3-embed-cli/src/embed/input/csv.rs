//! Values separated by commas or tabs.

use std::borrow::Cow;
use std::io::Read;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use arrow_array::builder::StringBuilder;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use csv::{ByteRecord, ErrorKind, ReaderBuilder};

use super::batch::{BATCH_BYTES, BATCH_RECORDS, Batch, Carried, Cursor, Record, no_columns};
use super::columns::{Positions, decoded};
use super::file::{BytesRead, InputFile, without_byte_order_mark};
use super::line_numbers::{LineCounter, LineNumbers};
use super::options::ReadOptions;

pub(super) struct CsvSource {
    reader: csv::Reader<LineCounter<Box<dyn Read>>>,
    lines: LineNumbers,
    bytes_read: BytesRead,
    name: Arc<str>,
    /// The names of all columns.
    names: Vec<String>,
    positions: Positions,
    /// The columns that are copied, all of them strings.
    schema: SchemaRef,
    replaces_invalid: bool,
}

impl CsvSource {
    pub(super) fn open(file: &InputFile, delimiter: u8, options: &ReadOptions) -> Result<Self> {
        let (reader, bytes_read) = file.open()?;
        let reader = without_byte_order_mark(reader).with_context(|| file.name.to_string())?;
        let (reader, lines) = LineCounter::new(reader);
        let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(reader);
        let header = reader.headers().with_context(|| format!("line 1 of {}", file.name))?;
        let names: Vec<String> = header.iter().map(str::to_owned).collect();
        let shown: Vec<&str> = names.iter().map(String::as_str).collect();
        let positions = options.columns.find(&shown, &file.name)?;
        let copied = positions.copied.iter().map(|&at| Field::new(shown[at], DataType::Utf8, true));
        let schema = Schema::new(copied.collect::<Vec<_>>()).into();
        let (name, replaces_invalid) = (file.name.clone(), options.invalid.replaces_invalid());
        Ok(Self { reader, lines, bytes_read, name, names, positions, schema, replaces_invalid })
    }

    pub(super) fn next(&mut self, cursor: &mut Cursor) -> Result<Option<Batch>> {
        let mut batch = Batch::new(self.name.clone(), "line");
        let mut columns: Vec<StringBuilder> =
            self.positions.copied.iter().map(|_| StringBuilder::new()).collect();
        let (mut row, mut n_bytes, mut is_at_end) = (ByteRecord::new(), 0, false);
        while batch.records.len() < BATCH_RECORDS && n_bytes < BATCH_BYTES {
            let read = self.reader.read_byte_record(&mut row);
            let mut position = row.position().cloned();
            let failure = match read {
                Ok(true) => None,
                Ok(false) => {
                    is_at_end = true;
                    break;
                }
                Err(error) => match error.kind() {
                    ErrorKind::UnequalLengths { pos, expected_len, len } => {
                        position = pos.clone();
                        Some(anyhow!("expected {expected_len} values, got {len}"))
                    }
                    _ => return Err(anyhow!(error).context(self.name.to_string())),
                },
            };
            let number = self.lines.line_after(position.as_ref().map_or(0, csv::Position::byte));
            let (index, is_embedded) = cursor.advance();
            if !is_embedded {
                continue;
            }
            n_bytes += row.as_slice().len();
            let record = match failure {
                Some(error) => Err(error),
                None => self.record(&row, &mut columns),
            };
            if record.is_err() {
                let n_rows = batch.records.len();
                let missing = columns.iter_mut().filter(|column| column_len(column) == n_rows);
                missing.for_each(StringBuilder::append_null);
            }
            batch.push(number, index, record);
        }
        if is_at_end && batch.records.is_empty() {
            return Ok(None);
        }
        batch.bytes_read = self.bytes_read.get();
        let columns: Vec<ArrayRef> =
            columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect();
        batch.carried = Carried::Columns(match columns.is_empty() {
            true => no_columns(batch.records.len())?,
            false => RecordBatch::try_new(self.schema.clone(), columns)?,
        });
        Ok(Some(batch))
    }

    /// The record of a row. Appends its copied values to `columns`.
    fn record(&self, row: &ByteRecord, columns: &mut [StringBuilder]) -> Result<Record> {
        let text = self.value(row, self.positions.text)?.into_owned();
        let instruction = self.positions.instruction.map(|at| self.value(row, at)).transpose()?;
        for (&at, column) in self.positions.copied.iter().zip(columns) {
            column.append_value(self.value(row, at)?);
        }
        // A value that is missing is an empty string.
        let instruction = instruction.filter(|text| !text.is_empty()).map(Cow::into_owned);
        Ok(Record { text: text.into(), instruction })
    }

    fn value<'r>(&self, row: &'r ByteRecord, at: usize) -> Result<Cow<'r, str>> {
        decoded(row.get(at).unwrap_or_default(), &self.names[at], self.replaces_invalid)
    }
}

fn column_len(column: &StringBuilder) -> usize {
    arrow_array::builder::ArrayBuilder::len(column)
}
