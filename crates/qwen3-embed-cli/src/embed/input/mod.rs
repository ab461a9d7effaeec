//! Reading the input: files or standard input, one after another, in batches of records.

mod batch;
mod columns;
mod csv;
#[cfg(test)]
mod damaged;
mod file;
mod json;
mod line_numbers;
mod options;
mod parquet;

pub(super) use batch::{Batch, Carried, Record};
pub(super) use columns::Names;
pub(super) use file::{InputFile, input_files};
pub(super) use options::ReadOptions;

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{Result, bail};
use arrow_schema::{Schema, SchemaRef};

use self::batch::Cursor;
use self::csv::CsvSource;
use self::json::JsonSource;
use self::parquet::ParquetSource;
use crate::embed::args::InputFormat;
use crate::lines::{Format, say_what_to_write};

/// An input that yields batches.
enum Source {
    Json(JsonSource),
    Csv(CsvSource),
    Parquet(ParquetSource),
}

/// The whole input.
pub(super) struct Reader {
    files: VecDeque<InputFile>,
    options: ReadOptions,
    cursor: Cursor,
    source: Option<Source>,
    /// The types of JSON fields, which are those of the first JSON file.
    json_schema: Option<SchemaRef>,
    /// The columns of the first batch, and the name of its file.
    columns: Option<(SchemaRef, Arc<str>)>,
}

impl Reader {
    pub(super) fn new(files: Vec<InputFile>, options: ReadOptions) -> Self {
        let cursor = Cursor::new(options.first_record, options.part);
        let files = files.into();
        Self { files, options, cursor, source: None, json_schema: None, columns: None }
    }

    /// Reads the next batch. A batch may have no records.
    pub(super) fn next(&mut self) -> Result<Option<Batch>> {
        loop {
            if self.source.is_none() {
                let Some(file) = self.files.pop_front() else { return Ok(None) };
                self.source = Some(self.open(file)?);
            }
            let batch = match &mut self.source {
                Some(Source::Json(source)) => {
                    let batch = source.next(&mut self.cursor)?;
                    self.json_schema = source.schema().or(self.json_schema.take());
                    batch
                }
                Some(Source::Csv(source)) => source.next(&mut self.cursor)?,
                Some(Source::Parquet(source)) => source.next(&mut self.cursor)?,
                None => None,
            };
            match batch {
                Some(batch) => {
                    self.check_columns(&batch)?;
                    return Ok(Some(batch));
                }
                None => self.source = None,
            }
        }
    }

    fn open(&self, file: InputFile) -> Result<Source> {
        let options = &self.options;
        Ok(match file.format {
            format @ (InputFormat::Jsonl | InputFormat::Text) => {
                let format = match format {
                    InputFormat::Text => Format::Text,
                    _ => Format::Jsonl,
                };
                if file.path.is_none() {
                    say_what_to_write(format);
                }
                Source::Json(JsonSource::open(&file, format, options, self.json_schema.clone())?)
            }
            InputFormat::Csv => Source::Csv(CsvSource::open(&file, b',', options)?),
            InputFormat::Tsv => Source::Csv(CsvSource::open(&file, b'\t', options)?),
            InputFormat::Parquet => Source::Parquet(ParquetSource::open(&file, options)?),
        })
    }

    /// Checks that all files have the same columns, if the output has columns.
    fn check_columns(&mut self, batch: &Batch) -> Result<()> {
        let Carried::Columns(columns) = &batch.carried else { return Ok(()) };
        if !self.options.typed {
            return Ok(());
        }
        let (got, file) = (columns.schema(), &batch.file);
        let Some((expected, first)) = &self.columns else {
            self.columns = Some((got, file.clone()));
            return Ok(());
        };
        if *expected != got {
            bail!(
                "the columns of {file} are {}, expected those of {first}: {}. --columns chooses columns",
                described(&got),
                described(expected)
            );
        }
        Ok(())
    }
}

/// The names and types of columns.
fn described(schema: &Schema) -> String {
    let columns = schema.fields().iter().map(|f| format!("{} ({})", f.name(), f.data_type()));
    let columns: Vec<String> = columns.collect();
    if columns.is_empty() { "none".to_owned() } else { columns.join(", ") }
}
