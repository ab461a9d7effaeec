//! Files: nothing else in this crate reads any.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

use crate::{Error, Result};

/// A whole file.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })
}

/// A file, or a part of one, in memory.
#[derive(Debug)]
pub(crate) struct MappedFile {
    pub(crate) path: PathBuf,
    contents: Contents,
}

#[derive(Debug)]
enum Contents {
    /// Pages of the file, which the system may drop and read again.
    Mapped(Mmap),
    /// A copy, which the system keeps.
    Copied(Vec<u8>),
}

impl MappedFile {
    /// Maps a whole file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_path_buf(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only. As with every memory-mapped file,
        // soundness asks that nobody truncates or rewrites it in place while the model lives; the
        // crate's documentation of `Model::load` says so.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self { path: path.to_path_buf(), contents: Contents::Mapped(map) })
    }

    /// A copy of a part of the file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if there is no memory for it.
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

    /// What is in the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.contents {
            Contents::Mapped(map) => map,
            Contents::Copied(copy) => copy,
        }
    }

    /// Lets the system have back the memory that some pages take.
    pub(crate) fn release(&self, range: &Range<usize>) {
        #[cfg(unix)]
        if let Contents::Mapped(map) = &self.contents {
            // SAFETY: the map is read-only and backed by its file: what is read again comes from there.
            // Advice that the system does not take costs memory and nothing else.
            let _ = unsafe {
                map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
