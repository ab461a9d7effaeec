//! Files that have a temporary name until they are complete.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Stdout, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Where a writer writes to.
pub(in crate::embed) enum Sink {
    StandardOutput(Stdout),
    File(PartialFile),
}

impl Sink {
    /// Creates a file that gets the name `path` when it is complete. `None` is standard output.
    pub(super) fn create(path: Option<&Path>) -> Result<Self> {
        Ok(match path {
            Some(path) => Self::File(PartialFile::create(path)?),
            None => Self::StandardOutput(io::stdout()),
        })
    }

    /// The name for errors.
    pub(super) fn name(&self) -> String {
        match self {
            Self::StandardOutput(_) => "standard output".to_owned(),
            Self::File(file) => file.path.display().to_string(),
        }
    }

    /// The file, for formats that need random access.
    pub(super) fn into_file(self) -> Result<PartialFile> {
        match self {
            Self::File(file) => Ok(file),
            Self::StandardOutput(_) => {
                bail!("expected a file for this format, got standard output")
            }
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::StandardOutput(output) => output.write(bytes),
            Self::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::StandardOutput(output) => output.flush(),
            Self::File(file) => file.flush(),
        }
    }
}

/// A file with the ending `.partial`, which gets its name when it is complete. Dropping it before that deletes it.
pub(in crate::embed) struct PartialFile {
    file: File,
    path: PathBuf,
    /// Whether the file with the ending `.partial` is deleted.
    is_temporary: bool,
}

impl PartialFile {
    /// Creates a file that gets the name `path`.
    pub(in crate::embed) fn create(path: &Path) -> Result<Self> {
        let partial = partial(path);
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(&partial);
        let file = file.with_context(|| format!("cannot create {}", partial.display()))?;
        Ok(Self { file, path: path.to_owned(), is_temporary: true })
    }

    /// The name that the file gets.
    pub(in crate::embed) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the file to the disk and gives it its name.
    pub(in crate::embed) fn commit(mut self) -> Result<()> {
        let about = || format!("cannot write {}", self.path.display());
        self.file.sync_all().with_context(about)?;
        fs::rename(partial(&self.path), &self.path).with_context(about)?;
        sync_folder(&self.path).with_context(about)?;
        self.is_temporary = false;
        Ok(())
    }

    /// Keeps the file with the ending `.partial`, and returns its name.
    pub(in crate::embed) fn keep(mut self) -> Result<PathBuf> {
        let partial = partial(&self.path);
        self.file.sync_all().with_context(|| format!("cannot write {}", partial.display()))?;
        self.is_temporary = false;
        Ok(partial)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if self.is_temporary {
            // There is nothing to do if the file cannot be deleted: its name says that it is not complete.
            let _ = fs::remove_file(partial(&self.path));
        }
    }
}

impl Write for PartialFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for PartialFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// The temporary name of a file.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Writes the entries of a file's folder to the disk, where the system can do this.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match cfg!(unix) {
        true => File::open(folder.unwrap_or(Path::new(".")))?.sync_all(),
        false => Ok(()),
    }
}
