//! Safetensors files with a tensor `embeddings`, and for 8-bit integers a tensor `scales`.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::ops::Range;

use anyhow::{Context, Result};
use serde_json::json;

use super::file::{PartialFile, Sink};
use super::rows::{Layout, Rows, Writer};
use crate::embed::args::VectorFormat;

/// The length of the header, including the bytes of its length. Spaces after the header are allowed.
const HEADER_BYTES: usize = 512;

pub(super) struct SafetensorsWriter {
    output: BufWriter<PartialFile>,
    /// The scales follow the vectors in the file, so they wait in a temporary file.
    scales: BufWriter<File>,
    name: String,
    layout: Layout,
    n_rows: usize,
    n_vector_bytes: usize,
    n_scale_bytes: usize,
}

impl SafetensorsWriter {
    pub(super) fn new(layout: Layout, sink: Sink) -> Result<Self> {
        let file = sink.into_file()?;
        let name = file.path().display().to_string();
        let mut output = BufWriter::new(file);
        output.write_all(&[b' '; HEADER_BYTES])?;
        let scales = tempfile::tempfile().context("cannot create a temporary file")?;
        let scales = BufWriter::new(scales);
        let (n_rows, n_vector_bytes, n_scale_bytes) = (0, 0, 0);
        Ok(Self { output, scales, name, layout, n_rows, n_vector_bytes, n_scale_bytes })
    }

    fn end(mut self) -> Result<PartialFile> {
        let data_type = match self.layout.vectors {
            VectorFormat::F32 => "F32",
            VectorFormat::F16 => "F16",
            VectorFormat::Int8 => "I8",
            VectorFormat::Binary => "U8",
        };
        let (middle, end) = (self.n_vector_bytes, self.n_vector_bytes + self.n_scale_bytes);
        let mut header = json!({
            "embeddings": {
                "dtype": data_type,
                "shape": [self.n_rows, self.layout.width()],
                "data_offsets": [0, middle],
            }
        });
        if self.layout.vectors == VectorFormat::Int8 {
            header["scales"] =
                json!({"dtype": "F32", "shape": [self.n_rows], "data_offsets": [middle, end]});
        }
        let mut scales = self.scales.into_inner().map_err(io::IntoInnerError::into_error)?;
        scales.rewind()?;
        io::copy(&mut scales, &mut self.output)?;
        self.output.rewind()?;
        self.output.write_all(&(HEADER_BYTES as u64 - 8).to_le_bytes())?;
        self.output.write_all(&serde_json::to_vec(&header)?)?;
        Ok(self.output.into_inner().map_err(io::IntoInnerError::into_error)?)
    }
}

impl Writer for SafetensorsWriter {
    fn write(&mut self, rows: &Rows, range: Range<usize>) -> Result<()> {
        let about = || format!("cannot write {}", self.name);
        let vectors = rows.vectors.bytes(range.clone());
        self.output.write_all(&vectors).with_context(about)?;
        if let Some(scales) = rows.vectors.scale_bytes(range.clone()) {
            self.scales.write_all(&scales).context("cannot write a temporary file")?;
            self.n_scale_bytes += scales.len();
        }
        self.n_rows += range.len();
        self.n_vector_bytes += vectors.len();
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Vec<Sink>> {
        let name = self.name.clone();
        let file = self.end().with_context(|| format!("cannot write {name}"))?;
        Ok(vec![Sink::File(file)])
    }
}
