//! Parquet files.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;
use arrow_select::take::take;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::batch::{BATCH_RECORDS, Batch, Carried, Cursor, Record, no_columns};
use super::columns::{Names, decoded};
use super::file::InputFile;
use super::options::ReadOptions;

pub(super) struct ParquetSource {
    builder: Option<ParquetRecordBatchReaderBuilder<std::fs::File>>,
    reader: Option<ParquetRecordBatchReader>,
    name: Arc<str>,
    names: Names,
    /// The columns that are copied.
    schema: SchemaRef,
    has_instruction: bool,
    replaces_invalid: bool,
    /// The number of rows that have been read or skipped.
    n_read: u64,
    n_rows: u64,
    n_bytes: u64,
}

impl ParquetSource {
    pub(super) fn open(file: &InputFile, options: &ReadOptions) -> Result<Self> {
        let opened = file.open_seekable()?;
        let n_bytes = opened.metadata().map_or(0, |metadata| metadata.len());
        let builder = caught(|| Ok(ParquetRecordBatchReaderBuilder::try_new(opened)?));
        let builder = builder.with_context(|| format!("cannot read {}", file.name))?;
        let fields = builder.schema().fields().clone();
        let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
        let positions = options.columns.find(&names, &file.name)?;
        let texts = [Some(positions.text), positions.instruction].into_iter().flatten();
        for at in texts.clone() {
            let (column, data_type) = (names[at], fields[at].data_type());
            if !is_text(data_type) {
                bail!(
                    "column `{column}` of {} has the type {data_type}, expected strings",
                    file.name
                );
            }
        }
        let used: Vec<usize> = texts.chain(positions.copied.iter().copied()).collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), used);
        let n_rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
        // Columns of different files have the same type if they differ in metadata only.
        let copied = positions
            .copied
            .iter()
            .map(|&at| Field::new(fields[at].name(), fields[at].data_type().clone(), true));
        Ok(Self {
            builder: Some(builder.with_projection(mask).with_batch_size(BATCH_RECORDS)),
            reader: None,
            name: file.name.clone(),
            names: options.columns.clone(),
            schema: Schema::new(copied.collect::<Vec<_>>()).into(),
            has_instruction: positions.instruction.is_some(),
            replaces_invalid: options.invalid.replaces_invalid(),
            n_read: 0,
            n_rows,
            n_bytes,
        })
    }

    pub(super) fn next(&mut self, cursor: &mut Cursor) -> Result<Option<Batch>> {
        if let Some(builder) = self.builder.take() {
            self.n_read = cursor.skip(self.n_rows);
            let builder = builder.with_offset(usize::try_from(self.n_read)?);
            let reader = caught(|| Ok(builder.build()?));
            self.reader = Some(reader.with_context(|| self.name.to_string())?);
        }
        let Some(reader) = &mut self.reader else { return Ok(None) };
        let rows = caught(|| Ok(reader.next().transpose()?)).with_context(|| {
            let (first, last) = (self.n_read + 1, self.n_read + BATCH_RECORDS as u64);
            format!("rows {first} to {} of {}", last.min(self.n_rows), self.name)
        })?;
        let Some(rows) = rows else { return Ok(None) };
        let mut batch = Batch::new(self.name.clone(), "row");
        let column = |name: &str| rows.column_by_name(name).context("a column is missing");
        let texts = &without_dictionary(column(&self.names.text)?)?;
        let instructions = match self.has_instruction {
            true => Some(without_dictionary(column(&self.names.instruction)?)?),
            false => None,
        };
        let mut keep = Vec::with_capacity(rows.num_rows());
        for row in 0..rows.num_rows() {
            let (index, is_embedded) = cursor.advance();
            self.n_read += 1;
            keep.push(is_embedded);
            if is_embedded {
                batch.push(self.n_read, index, self.record(texts, instructions.as_ref(), row));
            }
        }
        let columns = self.copied(&rows)?;
        batch.carried = Carried::Columns(match keep.iter().all(|keep| *keep) {
            true => columns,
            false => filter_record_batch(&columns, &keep.into())?,
        });
        let fraction = self.n_read as f64 / self.n_rows.max(1) as f64;
        batch.bytes_read = (self.n_bytes as f64 * fraction) as u64;
        Ok(Some(batch))
    }

    fn record(
        &self,
        texts: &ArrayRef,
        instructions: Option<&ArrayRef>,
        row: usize,
    ) -> Result<Record> {
        let name = &self.names.text;
        let text = self.value(texts, row, name)?;
        let text = text.with_context(|| format!("column `{name}` is null, expected a text"))?;
        let instruction = match instructions {
            Some(column) => self.value(column, row, &self.names.instruction)?,
            None => None,
        };
        Ok(Record { text: text.into(), instruction })
    }

    fn value(&self, column: &ArrayRef, row: usize, name: &str) -> Result<Option<String>> {
        if column.is_null(row) {
            return Ok(None);
        }
        let bytes = match column.data_type() {
            DataType::Utf8 => column.as_string::<i32>().value(row).as_bytes(),
            DataType::LargeUtf8 => column.as_string::<i64>().value(row).as_bytes(),
            DataType::Utf8View => column.as_string_view().value(row).as_bytes(),
            DataType::Binary => column.as_binary::<i32>().value(row),
            DataType::LargeBinary => column.as_binary::<i64>().value(row),
            data_type => bail!("column `{name}` has the type {data_type}, expected strings"),
        };
        Ok(Some(decoded(bytes, name, self.replaces_invalid)?.into_owned()))
    }

    /// The columns that are copied.
    fn copied(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let fields = self.schema.fields();
        if fields.is_empty() {
            return Ok(no_columns(rows.num_rows())?);
        }
        let columns = fields.iter().map(|field| rows.column_by_name(field.name()).cloned());
        let columns: Option<Vec<ArrayRef>> = columns.collect();
        let columns = columns.context("a column is missing")?;
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

/// Calls the parquet crate, which panics for some damaged files. After an error, its reader is not used again.
fn caught<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    let damaged = |_| Err(anyhow!("the file is damaged: the Parquet reader panicked"));
    panic::catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(damaged)
}

/// The column with its values instead of a dictionary of them, which is the type of categories in Python.
fn without_dictionary(column: &ArrayRef) -> Result<ArrayRef> {
    Ok(match column.as_any_dictionary_opt() {
        Some(dictionary) => take(dictionary.values(), dictionary.keys(), None)?,
        None => column.clone(),
    })
}

/// Whether a column of this type can have texts. Some programs write strings without saying that they are strings.
fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}
