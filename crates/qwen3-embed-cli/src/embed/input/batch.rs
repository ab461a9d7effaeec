//! Records of the input.

use std::sync::Arc;

use anyhow::Result;
use arrow_array::{BooleanArray, RecordBatch, RecordBatchOptions};
use arrow_schema::{ArrowError, Schema};
use arrow_select::filter::filter_record_batch;
use qwen3_embed::Text;

use crate::embed::args::Part;

/// The maximum number of records in a batch.
pub(super) const BATCH_RECORDS: usize = 1024;

/// A batch is complete when its texts have at least this many bytes.
pub(super) const BATCH_BYTES: usize = 1 << 20;

/// A record that can be embedded.
pub(in crate::embed) struct Record {
    pub(in crate::embed) text: Text<'static>,
    pub(in crate::embed) instruction: Option<String>,
}

/// Consecutive records of one file.
pub(in crate::embed) struct Batch {
    /// The name of the file, or `standard input`.
    pub(in crate::embed) file: Arc<str>,
    /// What the records of the file are called, such as `line`.
    pub(in crate::embed) unit: &'static str,
    /// The number of each record in its file, starting at 1.
    pub(in crate::embed) numbers: Vec<u64>,
    /// The index of each record in the whole input, starting at 0.
    pub(in crate::embed) indices: Vec<u64>,
    pub(in crate::embed) records: Vec<Result<Record>>,
    /// The other fields of each record.
    pub(in crate::embed) carried: Carried,
    /// The number of bytes that have been read from the file.
    pub(in crate::embed) bytes_read: u64,
}

impl Batch {
    pub(super) fn new(file: Arc<str>, unit: &'static str) -> Self {
        let (numbers, indices, records) = Default::default();
        let carried = Carried::Json(Vec::new());
        Self { file, unit, numbers, indices, records, carried, bytes_read: 0 }
    }

    pub(super) fn push(&mut self, number: u64, index: u64, record: Result<Record>) {
        self.numbers.push(number);
        self.indices.push(index);
        self.records.push(record);
    }

    /// The place of the record at `idx` in its file, such as `line 7 of texts.csv`.
    pub(in crate::embed) fn place(&self, idx: usize) -> String {
        format!("{} {} of {}", self.unit, self.numbers[idx], self.file)
    }
}

/// The fields of records that are copied to the output.
#[derive(Clone)]
pub(in crate::embed) enum Carried {
    /// For each record, the fields of a JSON object without its braces, such as `"id":1,"title":"…"`.
    Json(Vec<String>),
    Columns(RecordBatch),
}

impl Carried {
    /// The records for which `keep` is true.
    pub(in crate::embed) fn filter(self, keep: &[bool]) -> Result<Self> {
        if keep.iter().all(|keep| *keep) {
            return Ok(self);
        }
        Ok(match self {
            Self::Json(fields) => {
                let kept = fields.into_iter().zip(keep).filter(|(_, keep)| **keep);
                Self::Json(kept.map(|(fields, _)| fields).collect())
            }
            Self::Columns(columns) => {
                Self::Columns(filter_record_batch(&columns, &BooleanArray::from(keep.to_vec()))?)
            }
        })
    }
}

/// Columns without a column, but with rows.
pub(super) fn no_columns(n_rows: usize) -> Result<RecordBatch, ArrowError> {
    let options = RecordBatchOptions::new().with_row_count(Some(n_rows));
    RecordBatch::try_new_with_options(Schema::empty().into(), Vec::new(), &options)
}

/// Counts the records of the whole input, and chooses those that are embedded.
pub(super) struct Cursor {
    next: u64,
    /// The index of the first record that is embedded.
    first: u64,
    part: Part,
}

impl Cursor {
    pub(super) fn new(first: u64, part: Part) -> Self {
        Self { next: 0, first, part }
    }

    /// Goes to the next record. Returns its index, and whether it is embedded.
    pub(super) fn advance(&mut self) -> (u64, bool) {
        let index = self.next;
        self.next += 1;
        (index, index >= self.first && self.part.contains(index))
    }

    /// The number of records to skip until the first record that is embedded, `n_records` at most.
    pub(super) fn skip(&mut self, n_records: u64) -> u64 {
        let n_skipped = self.first.saturating_sub(self.next).min(n_records);
        self.next += n_skipped;
        n_skipped
    }
}
