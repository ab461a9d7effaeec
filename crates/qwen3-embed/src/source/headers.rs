//! Describes a model on the hub without downloading its weights.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use qwen3_embed_hub::{Cached, Commit, Hub, Newest, Repository, Selection, Snapshot};

use super::files::is_gguf;
use super::id::ModelId;
use super::open::Parsed;
use super::place::Place;
use super::selection::{self, WholeModel};
use super::{Info, Source, adapter};
use crate::{Error, Result};

/// The number of bytes in the first request for the header of a safetensors file. If the header is longer, which its
/// first 8 bytes show, a second request fetches the whole header.
const SAFETENSORS_HEADER: u64 = 256 << 10;

/// The number of bytes in the request for the header of a GGUF file. The header contains the vocabulary, and is
/// shorter.
const GGUF_HEADER: u64 = 16 << 20;

impl Source {
    /// Describes the model without loading it, as [`Source::info`] does, with the settings of `hub` for downloads.
    ///
    /// # Errors
    ///
    /// As [`EmbedderBuilder::build`](crate::EmbedderBuilder::build).
    pub fn info_from(&self, hub: &Hub) -> Result<Info> {
        match self.describe(hub)? {
            Described::Model(info) => Ok(*info),
            Described::Adapter { base, dir } => {
                let described = base.source.describe(hub);
                match base.named(described)? {
                    Described::Model(info) => Ok(*info),
                    Described::Adapter { dir: first, .. } => {
                        Err(Error::TwoAdapters { first, second: dir })
                    }
                }
            }
        }
    }

    fn describe(&self, hub: &Hub) -> Result<Described> {
        let id = match self.parse()? {
            Parsed::Local(place) => return Described::at(place),
            Parsed::Id(id) => id,
        };
        let repository = Repository::new(hub, &id.repo, id.to_string());
        match repository.newest(&Headers(&id))? {
            Newest::Cached(path) => Described::at(Place::OnDisk(path)),
            Newest::Fetched(described) => Ok(described),
        }
    }
}

/// The description of a model, or an adapter whose base model has to be described.
enum Described {
    Model(Box<Info>),
    Adapter { base: adapter::Base, dir: PathBuf },
}

impl Described {
    /// Describes the model at a place on this machine.
    fn at(place: Place) -> Result<Self> {
        match adapter::base(&place)? {
            Some(base) => Ok(Self::Adapter { base, dir: place.path().to_path_buf() }),
            None => Ok(Self::Model(Box::new(Info::of(&place.checkpoint()?)?))),
        }
    }
}

/// The configuration of a model and the headers of its weights.
///
/// Each header is written to a temporary file that is as long as the whole file on the hub and sparse after the header.
/// So the code that reads whole files can read these files, too.
struct Headers<'a>(&'a ModelId);

impl Selection for Headers<'_> {
    type Fetched = Described;
    type Error = Error;

    fn find(&self, snapshot: &Snapshot<'_>) -> Result<Cached> {
        WholeModel(self.0).find(snapshot)
    }

    fn fetch(&self, commit: &Commit<'_>) -> Result<Described> {
        let gguf = selection::gguf_of(self.0, commit.files())?;
        if let Cached::Complete(path) | Cached::Usable(path) = self.find(&commit.snapshot())? {
            return Described::at(Place::OnDisk(path));
        }
        let dir = tempfile::tempdir()
            .map_err(|source| Error::Io { path: std::env::temp_dir(), source })?;
        match gguf {
            Some(file) => {
                let path = dir.path().join("model.gguf");
                fetch_header(commit, &file, &path)?;
                Described::at(Place::OnDisk(path))
            }
            None => {
                fetch_files(commit, dir.path())?;
                Described::at(Place::OnDisk(dir.path().to_path_buf()))
            }
        }
    }

    fn overrides_cache(&self, error: &Error) -> bool {
        selection::is_ambiguous(error)
    }
}

/// Fetches the configuration files and the headers of the decoder's weights into `dir`.
fn fetch_files(commit: &Commit<'_>, dir: &Path) -> Result<()> {
    let snapshot = commit.snapshot().dir();
    let first: Vec<_> =
        selection::first().into_iter().filter(|file| file != "tokenizer.json").collect();
    commit.download(first.clone())?;
    let (weights, configs): (Vec<_>, Vec<_>) =
        selection::rest(&snapshot)?.into_iter().partition(|file| file.ends_with(".safetensors"));
    commit.download(configs.clone())?;
    for file in first.iter().chain(&configs).filter(|file| snapshot.join(file).is_file()) {
        let path = dir.join(file);
        let copy = || {
            fs::create_dir_all(path.parent().unwrap_or(&path))?;
            fs::copy(snapshot.join(file), &path)
        };
        copy().map_err(|source| Error::Io { path: path.clone(), source })?;
    }
    // The weights of other modules, such as dense layers, are in folders of their own. Their headers are not needed.
    let weights = weights.iter().filter(|file| !file.contains('/'));
    for file in weights.filter(|file| commit.files().contains(file)) {
        fetch_header(commit, file, &dir.join(file))?;
    }
    Ok(())
}

/// Writes the header of a file of the commit to `path`, and extends it to the size of the file.
fn fetch_header(commit: &Commit<'_>, file: &str, path: &Path) -> Result<()> {
    let size = commit.size(file)?;
    let gguf = is_gguf(Path::new(file));
    let n = if gguf { GGUF_HEADER } else { SAFETENSORS_HEADER };
    let mut bytes = commit.beginning(file, n.min(size))?;
    if let (false, Some(length)) = (gguf, bytes.first_chunk()) {
        let end = u64::from_le_bytes(*length).saturating_add(8);
        if (n..=size).contains(&end) {
            bytes = commit.beginning(file, end)?;
        }
    }
    let write = || {
        let mut new = File::create(path)?;
        new.write_all(&bytes)?;
        new.set_len(size)
    };
    write().map_err(|source| Error::Io { path: path.to_path_buf(), source })
}
