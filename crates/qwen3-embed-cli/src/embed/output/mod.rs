//! Writing the output: one writer for each format.

mod columnar;
mod file;
mod jsonl;
mod npy;
mod rows;
mod safetensors;
mod vectors;

pub(super) use file::{PartialFile, Sink};
pub(super) use rows::{Layout, Rows, Writer};
pub(super) use vectors::Vectors;

use std::path::Path;

use anyhow::{Context, Result};

use self::columnar::ColumnarWriter;
use self::jsonl::JsonlWriter;
use self::npy::NpyWriter;
use self::safetensors::SafetensorsWriter;
use crate::embed::args::OutputFormat;

/// Creates a file that gets the name `path` when it is complete. `None` is standard output.
pub(super) fn create(layout: Layout, path: Option<&Path>) -> Result<Box<dyn Writer>> {
    let sink = Sink::create(path)?;
    let name = sink.name();
    let writer: Result<Box<dyn Writer>> = match layout.format {
        OutputFormat::Jsonl => Ok(Box::new(JsonlWriter::new(sink))),
        OutputFormat::Npy => NpyWriter::new(layout, sink).map(|writer| Box::new(writer) as _),
        OutputFormat::Safetensors => {
            SafetensorsWriter::new(layout, sink).map(|writer| Box::new(writer) as _)
        }
        format @ (OutputFormat::Arrow | OutputFormat::Parquet) => {
            Ok(Box::new(ColumnarWriter::new(format, sink)))
        }
    };
    writer.with_context(|| format!("cannot write {name}"))
}
