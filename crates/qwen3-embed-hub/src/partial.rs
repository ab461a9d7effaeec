use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::cache::create_parent;
use crate::error::HubProblem;
use crate::metadata::Metadata;

type Result<T> = std::result::Result<T, HubProblem>;

/// Number of bytes that are read or written at a time.
pub(crate) const CHUNK: usize = 256 << 10;

/// The file of a blob during its download. Its name ends with `.incomplete`, so that programs do not read it as a blob.
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
    /// Number of bytes, from the start of the file, that have been written.
    done: u64,
    /// Bytes of the whole file.
    total: u64,
}

impl Partial {
    /// Opens the file that an earlier, interrupted download has left, or creates an empty file.
    pub(crate) fn open(blob: &Path, total: u64) -> Result<Self> {
        let mut path = blob.as_os_str().to_owned();
        path.push(".incomplete");
        let path = PathBuf::from(path);
        create_parent(&path)?;
        let open = || {
            let file =
                File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) =
            open().map_err(|source| HubProblem::Io { path: path.clone(), source })?;
        let done = if length > total { 0 } else { length };
        Ok(Self { path, file, done, total })
    }

    /// Number of bytes, from the start of the file, that have been written.
    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    /// Continues at byte `done`. Later bytes are overwritten.
    pub(crate) fn rewind(&mut self, done: u64) {
        self.done = done;
    }

    /// Appends bytes. If another process writes the same file because the file system has no locks, both write the same
    /// bytes at the same offsets.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut write = || {
            self.file.seek(SeekFrom::Start(self.done))?;
            self.file.write_all(bytes)
        };
        write().map_err(|source| self.failed(source))?;
        self.done += bytes.len() as u64;
        Ok(())
    }

    /// The path of the file.
    #[cfg(feature = "hf-hub")]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the file by the complete file at `path`, which must be on the same file system.
    #[cfg(feature = "hf-hub")]
    pub(crate) fn replace(&mut self, path: &Path) -> Result<()> {
        let mut replace = || {
            fs::rename(path, &self.path)?;
            self.file = File::options().read(true).write(true).open(&self.path)?;
            self.done = self.file.metadata()?.len();
            Ok(())
        };
        replace().map_err(|source| self.failed(source))
    }

    /// Checks the size and, if the hub announced one, the SHA-256 of the file on disk.
    pub(crate) fn verify(&mut self, metadata: &Metadata) -> Result<()> {
        let hash = self.read_back(metadata.is_sha256).map_err(|source| self.failed(source))?;
        if self.done != metadata.size {
            return Err(HubProblem::Size { expected: metadata.size, got: self.done });
        }
        match hash {
            Some(hash) if !hash.eq_ignore_ascii_case(&metadata.etag) => {
                Err(HubProblem::Checksum { expected: metadata.etag.clone(), got: hash })
            }
            _ => Ok(()),
        }
    }

    /// Renames the file to the name of its blob.
    pub(crate) fn finish(self, blob: &Path) -> Result<()> {
        match fs::rename(&self.path, blob) {
            // Without locks, another process may have finished the same file first.
            Err(error) if error.kind() == io::ErrorKind::NotFound && blob.is_file() => Ok(()),
            renamed => renamed.map_err(|source| HubProblem::Io { path: blob.into(), source }),
        }
    }

    /// Deletes the file.
    pub(crate) fn delete(self) {
        let _ = fs::remove_file(&self.path);
    }

    /// Flushes the file to disk, and removes bytes that an earlier download has left after the end of the file. Returns
    /// the SHA-256 of the file if `hashes` is true.
    fn read_back(&mut self, hashes: bool) -> io::Result<Option<String>> {
        self.file.set_len(self.done)?;
        self.file.sync_all()?;
        if !hashes {
            return Ok(None);
        }
        self.file.seek(SeekFrom::Start(0))?;
        let mut hasher = Sha256::new();
        let mut chunk = vec![0; CHUNK];
        loop {
            match self.file.read(&mut chunk)? {
                0 => break,
                n => hasher.update(&chunk[..n]),
            }
        }
        Ok(Some(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The error of reading or writing the file.
    fn failed(&self, source: io::Error) -> HubProblem {
        let (done, total, path) = (self.done, self.total, self.path.clone());
        let dir = path.parent().unwrap_or(&path).to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                HubProblem::DiskFull { dir, done, total, source }
            }
            _ => HubProblem::Io { path, source },
        }
    }
}
