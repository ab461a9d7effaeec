//! Arrow IPC files and Parquet files.

use std::io::BufWriter;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow_array::{ArrayRef, Float32Array, Int64Array, RecordBatch, UInt32Array};
use arrow_ipc::writer::FileWriter;
use arrow_schema::{Field, Schema};
use arrow_select::coalesce::BatchCoalescer;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::file::Sink;
use super::rows::{Rows, Writer};
use crate::embed::args::OutputFormat;
use crate::embed::input::Carried;

/// The number of rows that are written together. Rows are collected, so that the bytes of a file do not depend on how
/// the input was divided into batches.
const ROWS: usize = 1024;

/// A row group of a Parquet file is complete when it has this many bytes. It is in memory until then.
const ROW_GROUP_BYTES: usize = 64 << 20;

pub(super) struct ColumnarWriter {
    format: OutputFormat,
    /// The file, until the first rows tell its columns.
    sink: Option<Sink>,
    name: String,
    open: Option<(FormatWriter, BatchCoalescer)>,
}

enum FormatWriter {
    Arrow(Box<FileWriter<BufWriter<Sink>>>),
    Parquet(Box<ArrowWriter<BufWriter<Sink>>>),
}

impl ColumnarWriter {
    /// `format` is [`OutputFormat::Arrow`] or [`OutputFormat::Parquet`].
    pub(super) fn new(format: OutputFormat, sink: Sink) -> Self {
        let name = sink.name();
        Self { format, sink: Some(sink), name, open: None }
    }

    fn write_rows(&mut self, rows: RecordBatch) -> Result<()> {
        if let Some(sink) = self.sink.take() {
            let schema = rows.schema();
            let coalescer = BatchCoalescer::new(schema.clone(), ROWS);
            self.open = Some((FormatWriter::new(self.format, sink, schema)?, coalescer));
        }
        let Some((writer, coalescer)) = &mut self.open else { return Ok(()) };
        coalescer.push_batch(rows)?;
        writer.write_completed(coalescer)
    }

    fn end(mut self) -> Result<Sink> {
        let (mut writer, mut coalescer) = self.open.take().context("there are no rows")?;
        coalescer.finish_buffered_batch()?;
        writer.write_completed(&mut coalescer)?;
        writer.end()
    }
}

impl Writer for ColumnarWriter {
    fn write(&mut self, rows: &Rows, range: Range<usize>) -> Result<()> {
        let columns = columns(rows, range)?;
        self.write_rows(columns).with_context(|| format!("cannot write {}", self.name))
    }

    fn finish(self: Box<Self>) -> Result<Vec<Sink>> {
        let name = self.name.clone();
        Ok(vec![self.end().with_context(|| format!("cannot write {name}"))?])
    }
}

impl FormatWriter {
    fn new(format: OutputFormat, sink: Sink, schema: Arc<Schema>) -> Result<Self> {
        let output = BufWriter::new(sink);
        Ok(if format == OutputFormat::Parquet {
            // Vectors cannot be compressed well. A dictionary of values that are all different only takes memory.
            let vectors =
                ColumnPath::from(["embedding", "list", "item"].map(str::to_owned).to_vec());
            let properties = WriterProperties::builder()
                .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
                .set_column_compression(vectors.clone(), Compression::UNCOMPRESSED)
                .set_column_dictionary_enabled(vectors.clone(), false)
                .set_column_statistics_enabled(vectors, EnabledStatistics::None)
                .set_column_dictionary_enabled(ColumnPath::from("index"), false)
                .set_column_dictionary_enabled(ColumnPath::from("scale"), false)
                .build();
            Self::Parquet(Box::new(ArrowWriter::try_new(output, schema, Some(properties))?))
        } else {
            Self::Arrow(Box::new(FileWriter::try_new(output, &schema)?))
        })
    }

    fn write_completed(&mut self, coalescer: &mut BatchCoalescer) -> Result<()> {
        while let Some(rows) = coalescer.next_completed_batch() {
            match self {
                Self::Arrow(writer) => writer.write(&rows)?,
                Self::Parquet(writer) => {
                    writer.write(&rows)?;
                    if writer.in_progress_size() >= ROW_GROUP_BYTES {
                        writer.flush()?;
                    }
                }
            }
        }
        Ok(())
    }

    fn end(self) -> Result<Sink> {
        let output = match self {
            Self::Arrow(mut writer) => {
                writer.finish()?;
                writer.into_inner()?
            }
            Self::Parquet(writer) => writer.into_inner()?,
        };
        Ok(output.into_inner().map_err(std::io::IntoInnerError::into_error)?)
    }
}

/// Some of the rows with all columns of the output.
fn columns(rows: &Rows, range: Range<usize>) -> Result<RecordBatch> {
    let indices: Int64Array =
        rows.indices[range.clone()].iter().map(|&index| i64::try_from(index).ok()).collect();
    let vectors = rows.vectors.column(range.clone())?;
    let n_tokens = UInt32Array::from_iter_values(rows.n_tokens[range.clone()].iter().copied());
    let mut columns: Vec<(&str, ArrayRef)> =
        vec![("index", Arc::new(indices)), ("embedding", vectors)];
    if let Some(scales) = rows.vectors.scales(range.clone()) {
        columns.push(("scale", Arc::new(Float32Array::from(scales.to_vec()))));
    }
    columns.push(("n_tokens", Arc::new(n_tokens)));
    let mut fields: Vec<Arc<Field>> = columns
        .iter()
        .map(|(name, column)| Field::new(*name, column.data_type().clone(), false).into())
        .collect();
    let mut arrays: Vec<ArrayRef> = columns.into_iter().map(|(_, column)| column).collect();
    if let Carried::Columns(carried) = &rows.carried {
        fields.extend(carried.schema().fields().iter().cloned());
        arrays.extend(carried.slice(range.start, range.len()).columns().iter().cloned());
    }
    Ok(RecordBatch::try_new(Schema::new(fields).into(), arrays)?)
}
