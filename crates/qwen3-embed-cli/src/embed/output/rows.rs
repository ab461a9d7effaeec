//! Rows of the output, and what every format does with them.

use std::ops::Range;

use anyhow::Result;

use super::file::Sink;
use super::vectors::Vectors;
use crate::embed::args::{OutputFormat, VectorFormat};
use crate::embed::input::Carried;

/// Embedded records.
pub(in crate::embed) struct Rows {
    /// The index of each record in the whole input.
    pub(in crate::embed) indices: Vec<u64>,
    pub(in crate::embed) n_tokens: Vec<u32>,
    pub(in crate::embed) vectors: Vectors,
    pub(in crate::embed) carried: Carried,
}

impl Rows {
    /// No rows.
    pub(in crate::embed) fn empty(layout: Layout) -> Result<Self> {
        let vectors = Vectors::new(Vec::new(), layout.dimensions, layout.vectors)?;
        let carried = Carried::Json(Vec::new());
        Ok(Self { indices: Vec::new(), n_tokens: Vec::new(), vectors, carried })
    }
}

/// A writer of one file or of standard output.
pub(in crate::embed) trait Writer {
    /// Writes some of the rows.
    fn write(&mut self, rows: &Rows, range: Range<usize>) -> Result<()>;

    /// Writes the end of the format. The result has the files that are complete now, in the order in which they should
    /// get their names.
    fn finish(self: Box<Self>) -> Result<Vec<Sink>>;
}

/// What a new file has.
#[derive(Clone, Copy)]
pub(in crate::embed) struct Layout {
    pub(in crate::embed) format: OutputFormat,
    pub(in crate::embed) vectors: VectorFormat,
    pub(in crate::embed) dimensions: usize,
}

impl Layout {
    /// The number of values of a vector in the output. Packed bits are bytes.
    pub(in crate::embed) fn width(self) -> usize {
        match self.vectors {
            VectorFormat::Binary => self.dimensions.div_ceil(8),
            _ => self.dimensions,
        }
    }
}
