use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::checkpoint::file::{MappedFile, read_file};
use crate::{Error, Result};

/// The folder with the files of a model: a folder on disk, or files in memory.
///
/// Files are named by their paths relative to the folder, with `/` between names.
#[derive(Clone, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
    contents: Contents,
}

#[derive(Clone, PartialEq, Eq)]
enum Contents {
    OnDisk,
    InMemory {
        files: &'static [(&'static str, &'static [u8])],
        /// The beginning of the names in `files` that belong to this folder: empty, or the path of the folder with a
        /// slash at its end.
        prefix: String,
    },
}

impl Folder {
    /// A folder on disk, which need not exist.
    pub fn on_disk(path: &Path) -> Self {
        Self { path: path.to_path_buf(), contents: Contents::OnDisk }
    }

    /// Files in memory: the name of each file and its contents. Errors contain `name` as the path of the folder.
    ///
    /// The contents may begin at any address. They are not copied.
    pub fn in_memory(name: &str, files: &'static [(&'static str, &'static [u8])]) -> Self {
        Self { path: name.into(), contents: Contents::InMemory { files, prefix: String::new() } }
    }

    /// The path of the folder, or the name of the files in memory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a file with this name.
    pub fn contains(&self, file: &str) -> bool {
        match self.contents {
            Contents::OnDisk => self.path_of(file).is_file(),
            Contents::InMemory { .. } => self.bytes_of(file).is_ok(),
        }
    }

    /// The contents of a file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file does not exist or cannot be read.
    pub fn read(&self, file: &str) -> Result<Cow<'static, [u8]>> {
        match self.contents {
            Contents::OnDisk => read_file(&self.path_of(file)).map(Cow::Owned),
            Contents::InMemory { .. } => self.bytes_of(file).map(Cow::Borrowed),
        }
    }

    /// The path of a file, for errors.
    pub fn path_of(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }

    /// Maps a file.
    pub(crate) fn map(&self, file: &str) -> Result<MappedFile> {
        match self.contents {
            Contents::OnDisk => MappedFile::open(&self.path_of(file)),
            Contents::InMemory { .. } => {
                Ok(MappedFile::in_memory(&self.path_of(file), self.bytes_of(file)?))
            }
        }
    }

    /// The folder `name` in this folder.
    pub(crate) fn folder(&self, name: &str) -> Self {
        let contents = match &self.contents {
            Contents::OnDisk => Contents::OnDisk,
            Contents::InMemory { files, prefix } => {
                Contents::InMemory { files, prefix: format!("{prefix}{name}/") }
            }
        };
        Self { path: self.path.join(name), contents }
    }

    /// The contents of a file in memory.
    fn bytes_of(&self, file: &str) -> Result<&'static [u8]> {
        let found = match &self.contents {
            Contents::OnDisk => None,
            Contents::InMemory { files, prefix } => files
                .iter()
                .find(|(name, _)| name.strip_prefix(prefix.as_str()) == Some(file))
                .map(|(_, bytes)| *bytes),
        };
        found.ok_or_else(|| Error::Io {
            path: self.path_of(file),
            source: io::ErrorKind::NotFound.into(),
        })
    }
}

/// Shows the path, but not the contents of files in memory.
impl fmt::Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.contents {
            Contents::OnDisk => "OnDisk",
            Contents::InMemory { .. } => "InMemory",
        };
        f.debug_tuple(kind).field(&self.path).finish()
    }
}
