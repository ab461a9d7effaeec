//! The files of the input.

use std::fs::{self, File, Metadata};
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};

use crate::embed::args::InputFormat;
use crate::lines::BYTE_ORDER_MARK;
use crate::usage::usage_error;

/// A file of the input, or standard input.
pub(in crate::embed) struct InputFile {
    /// `None` for standard input.
    pub(in crate::embed) path: Option<PathBuf>,
    /// The path, or `standard input`.
    pub(in crate::embed) name: Arc<str>,
    pub(in crate::embed) format: InputFormat,
    /// `None` for standard input.
    pub(in crate::embed) metadata: Option<Metadata>,
}

/// The files that the arguments name. Without arguments, that is standard input.
pub(in crate::embed) fn input_files(
    arguments: &[String],
    format: Option<InputFormat>,
) -> Result<Vec<InputFile>> {
    if arguments.is_empty() {
        return Ok(vec![InputFile::standard_input(format)]);
    }
    let mut files = Vec::new();
    for argument in arguments {
        if argument == "-" {
            files.push(InputFile::standard_input(format));
        } else if Path::new(argument).exists() || !argument.contains(['*', '?', '[']) {
            files.push(InputFile::of_path(argument.into(), format)?);
        } else {
            let paths = glob::glob(argument).map_err(|error| {
                usage_error(format!("`{argument}` is not a pattern of file names: {error}"))
            })?;
            let before = files.len();
            for path in paths {
                files.push(InputFile::of_path(path?, format)?);
            }
            ensure!(files.len() > before, "no file matches `{argument}`");
        }
    }
    Ok(files)
}

impl InputFile {
    fn standard_input(format: Option<InputFormat>) -> Self {
        let format = format.unwrap_or(InputFormat::Jsonl);
        Self { path: None, name: "standard input".into(), format, metadata: None }
    }

    fn of_path(path: PathBuf, format: Option<InputFormat>) -> Result<Self> {
        let name = path.display().to_string();
        let format = format.or_else(|| InputFormat::of_name(&path)).ok_or_else(|| {
            usage_error(format!("the name of {name} does not tell its format: use --format"))
        })?;
        let metadata = fs::metadata(&path).with_context(|| format!("cannot open {name}"))?;
        ensure!(!metadata.is_dir(), "{name} is a folder, expected a file or a pattern");
        Ok(Self { path: Some(path), name: name.into(), format, metadata: Some(metadata) })
    }

    /// Opens a file of a format that is read from its beginning to its end. It is decompressed if necessary.
    pub(super) fn open(&self) -> Result<(Box<dyn Read>, BytesRead)> {
        let bytes_read = BytesRead::default();
        let reader: Box<dyn Read> = match &self.path {
            Some(path) => Box::new(self.open_file(path)?),
            None => Box::new(io::stdin()),
        };
        let counted = Counted { reader, bytes_read: bytes_read.clone() };
        let reader = decompressed(counted).with_context(|| self.name.to_string())?;
        Ok((reader, bytes_read))
    }

    /// Opens a file of a format that needs random access. Standard input is copied to a temporary file.
    pub(super) fn open_seekable(&self) -> Result<File> {
        match &self.path {
            Some(path) => self.open_file(path),
            None => {
                let mut file = tempfile::tempfile().context("cannot create a temporary file")?;
                io::copy(&mut io::stdin(), &mut file)
                    .context("cannot copy standard input to a temporary file")?;
                Ok(file)
            }
        }
    }

    fn open_file(&self, path: &Path) -> Result<File> {
        File::open(path).with_context(|| format!("cannot open {}", self.name))
    }
}

/// The number of bytes that have been read from a file.
#[derive(Clone, Default)]
pub(super) struct BytesRead(Arc<AtomicU64>);

impl BytesRead {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A reader that counts the bytes.
struct Counted<R> {
    reader: R,
    bytes_read: BytesRead,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_read = self.reader.read(buffer)?;
        self.bytes_read.0.fetch_add(n_read as u64, Ordering::Relaxed);
        Ok(n_read)
    }
}

/// The contents of a file without a byte order mark, which some programs write at the beginning of a file.
pub(super) fn without_byte_order_mark(mut reader: Box<dyn Read>) -> io::Result<Box<dyn Read>> {
    let mut head = Vec::new();
    reader.by_ref().take(BYTE_ORDER_MARK.len() as u64).read_to_end(&mut head)?;
    if head == BYTE_ORDER_MARK {
        head.clear();
    }
    Ok(Box::new(Cursor::new(head).chain(reader)))
}

/// The first bytes of a file in the format of gzip, and in that of zstd.
const MAGICS: [&[u8]; 2] = [&[0x1f, 0x8b], &[0x28, 0xb5, 0x2f, 0xfd]];

/// The contents of a file, decompressed if its first bytes are those of gzip or zstd. No other bytes are waited for, so
/// that a program can write one line and wait.
fn decompressed(mut reader: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let mut head = Vec::new();
    let magic = loop {
        if let Some(magic) = MAGICS.iter().position(|magic| *magic == head) {
            break Some(magic);
        }
        let n_before = head.len();
        if MAGICS.iter().any(|magic| magic.starts_with(&head)) {
            reader.by_ref().take(1).read_to_end(&mut head)?;
        }
        if head.len() == n_before {
            break None;
        }
    };
    let whole = Cursor::new(head).chain(reader);
    Ok(match magic {
        Some(0) => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        Some(_) => Box::new(zstd::stream::read::Decoder::new(whole)?),
        None => Box::new(whole),
    })
}
