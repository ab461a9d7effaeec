use std::path::{Path, PathBuf};

use qwen3_embed_model::{Checkpoint, Folder};

use crate::Result;

/// The place of a model on this machine.
#[derive(Debug)]
pub(crate) enum Place {
    /// A folder or a GGUF file, which exists.
    OnDisk(PathBuf),
    /// Files in memory.
    InMemory(Folder),
}

impl Place {
    /// The path, or the name of the files in memory.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::OnDisk(path) => path,
            Self::InMemory(folder) => folder.path(),
        }
    }

    /// Opens the model.
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint> {
        Ok(match self {
            Self::OnDisk(path) => Checkpoint::open(path)?,
            Self::InMemory(folder) => Checkpoint::open_folder(folder.clone())?,
        })
    }
}
