//! Reading and mapping files. No other file of this crate touches the file system.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

use crate::{Error, Result};

/// Reads a whole file.
///
/// # Errors
///
/// [`Error::Io`] if the path is not a regular file. To open a FIFO would wait for a writer, and a device such as
/// `/dev/zero` has no end.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    fs::read(path).map_err(io)
}

/// The contents of a file, or of a part of a file. They may begin at any address.
#[derive(Debug)]
pub(crate) struct MappedFile {
    pub(crate) path: PathBuf,
    contents: Contents,
}

#[derive(Debug)]
enum Contents {
    /// A memory map. The system may drop its pages and read them from the file again.
    Mapped(Mmap),
    /// A copy in memory.
    Copied(Vec<u8>),
    /// Bytes that are in memory for as long as the program runs.
    Static(&'static [u8]),
}

impl MappedFile {
    /// Maps a whole file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only. Callers must not truncate or rewrite the file in place while it is mapped, as
        // the documentation of `Checkpoint::open` requires.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self { path: path.to_path_buf(), contents: Contents::Mapped(map) })
    }

    /// A file that is in memory already.
    pub(crate) fn in_memory(path: &Path, contents: &'static [u8]) -> Self {
        Self { path: path.to_path_buf(), contents: Contents::Static(contents) }
    }

    /// Copies a part of the file into memory.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if there is not enough memory.
    pub(crate) fn copy_of(&self, range: &Range<usize>) -> Result<Self> {
        let mut copy = Vec::new();
        let no_memory = |_| Error::Io {
            path: self.path.clone(),
            source: io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("no memory for a copy of {} bytes", range.len()),
            ),
        };
        copy.try_reserve_exact(range.len()).map_err(no_memory)?;
        copy.extend_from_slice(&self.bytes()[range.clone()]);
        Ok(Self { path: self.path.clone(), contents: Contents::Copied(copy) })
    }

    /// The contents.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.contents {
            Contents::Mapped(map) => map,
            Contents::Copied(copy) => copy,
            Contents::Static(bytes) => bytes,
        }
    }

    /// Tells the system that the pages of `range` are not needed soon, so that it can reuse their memory.
    pub(crate) fn release(&self, range: &Range<usize>) {
        #[cfg(unix)]
        if let Contents::Mapped(map) = &self.contents {
            // SAFETY: the map is read-only and backed by its file, so a later access reads the same bytes from the
            // file again. If the system ignores the advice, its memory stays in use.
            let _ = unsafe {
                map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn rejects_devices_and_folders() {
        for path in ["/dev/zero", "/"] {
            let Error::Io { source, .. } = read_file(Path::new(path)).unwrap_err() else {
                panic!("{path}: expected an error about the file");
            };
            assert_eq!(source.to_string(), "it is not a regular file", "{path}");
        }
    }
}
