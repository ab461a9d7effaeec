//! Files: nothing else in this crate reads any.

use std::fs::{self, File};
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

/// A file in memory.
#[derive(Debug)]
pub(crate) struct MappedFile {
    pub(crate) path: PathBuf,
    map: Mmap,
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
        Ok(Self { path: path.to_path_buf(), map })
    }

    /// What is in the file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Lets the system have back the memory that some pages take.
    pub(crate) fn release(&self, range: &Range<usize>) {
        #[cfg(unix)]
        // SAFETY: the map is read-only and backed by its file: what is read again comes from there.
        // Advice that the system does not take costs memory and nothing else.
        let _ = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
        #[cfg(not(unix))]
        let _ = range;
    }
}
