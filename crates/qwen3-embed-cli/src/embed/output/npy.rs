//! Arrays of NumPy, version 1.0 of the format.

use std::io::{BufWriter, Seek, Write};
use std::ops::Range;

use anyhow::{Context, Result};

use super::file::{PartialFile, Sink};
use super::rows::{Layout, Rows, Writer};
use crate::embed::args::VectorFormat;

/// The length of the header, including the bytes before it. It is a multiple of 64 that has room for every shape.
const HEADER_BYTES: usize = 128;

pub(super) struct NpyWriter {
    vectors: NpyFile,
    /// The file with the scales of the vectors, if they have scales.
    scales: Option<NpyFile>,
}

impl NpyWriter {
    pub(super) fn new(layout: Layout, sink: Sink) -> Result<Self> {
        let file = sink.into_file()?;
        let scales = match layout.vectors {
            VectorFormat::Int8 => {
                let path = file.path().with_extension("scales.npy");
                Some(NpyFile::new(PartialFile::create(&path)?, "<f4", None)?)
            }
            _ => None,
        };
        let data_type = match layout.vectors {
            VectorFormat::F32 => "<f4",
            VectorFormat::F16 => "<f2",
            VectorFormat::Int8 => "|i1",
            VectorFormat::Binary => "|u1",
        };
        Ok(Self { vectors: NpyFile::new(file, data_type, Some(layout.width()))?, scales })
    }
}

impl Writer for NpyWriter {
    fn write(&mut self, rows: &Rows, range: Range<usize>) -> Result<()> {
        let scales = rows.vectors.scale_bytes(range.clone());
        if let (Some(file), Some(bytes)) = (&mut self.scales, scales) {
            file.write(&bytes, range.len())?;
        }
        self.vectors.write(&rows.vectors.bytes(range.clone()), range.len())
    }

    fn finish(self: Box<Self>) -> Result<Vec<Sink>> {
        // The file with the vectors is the last one that gets its name.
        let files = self.scales.into_iter().chain([self.vectors]);
        files.map(|file| Ok(Sink::File(file.finish()?))).collect()
    }
}

/// A file with one array.
struct NpyFile {
    output: BufWriter<PartialFile>,
    name: String,
    data_type: &'static str,
    /// The number of columns, or `None` for an array with one dimension.
    width: Option<usize>,
    n_rows: usize,
}

impl NpyFile {
    fn new(file: PartialFile, data_type: &'static str, width: Option<usize>) -> Result<Self> {
        let name = file.path().display().to_string();
        let output = BufWriter::new(file);
        let mut file = Self { output, name, data_type, width, n_rows: 0 };
        file.write(&file.header(), 0)?;
        Ok(file)
    }

    fn write(&mut self, bytes: &[u8], n_rows: usize) -> Result<()> {
        self.n_rows += n_rows;
        self.output.write_all(bytes).with_context(|| format!("cannot write {}", self.name))
    }

    /// Writes the header again, now with the number of rows.
    fn finish(mut self) -> Result<PartialFile> {
        let header = self.header();
        let about = || format!("cannot write {}", self.name);
        self.output.rewind().with_context(about)?;
        self.output.write_all(&header).with_context(about)?;
        let file = self.output.into_inner().map_err(std::io::IntoInnerError::into_error);
        file.with_context(about)
    }

    fn header(&self) -> Vec<u8> {
        let columns = self.width.map_or_else(String::new, |width| format!(" {width}"));
        let mut header = b"\x93NUMPY\x01\x00".to_vec();
        header.extend((HEADER_BYTES as u16 - 10).to_le_bytes());
        header.extend(
            format!(
                "{{'descr': '{}', 'fortran_order': False, 'shape': ({},{columns}), }}",
                self.data_type, self.n_rows
            )
            .bytes(),
        );
        header.resize(HEADER_BYTES - 1, b' ');
        header.push(b'\n');
        header
    }
}
