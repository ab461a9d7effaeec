//! What a model of the hub is, without downloading its weights.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::cache::RepoCache;
use super::client::{Client, Listing};
use super::error::HubProblem;
use super::hub::{Cached, Fetch, Hub};
use super::transfer::retried;
use super::{Info, Parsed, Source, adapter, is_gguf, selection};
use crate::{Error, Result};

/// Bytes that a header of a safetensors file has at most, unless it says itself that it has more.
const SAFETENSORS_HEADER: u64 = 256 << 10;

/// Bytes that a header of a GGUF file with its vocabulary has at most.
const GGUF_HEADER: u64 = 16 << 20;

impl Hub {
    /// Looks at a model without loading it. Of a model that is not in the cache, only the
    /// configuration and the headers of the weights are downloaded. Of an adapter, the model that it
    /// belongs to is looked at.
    ///
    /// # Errors
    ///
    /// As [`EmbedderBuilder::build`](crate::EmbedderBuilder::build).
    pub fn info(&self, source: impl Into<Source>) -> Result<Info> {
        match self.look_at(&source.into())? {
            Looked::Model(info) => Ok(*info),
            Looked::Adapter { base, dir } => {
                let looked = self.look_at(&base.source);
                match base.named(looked)? {
                    Looked::Model(info) => Ok(*info),
                    Looked::Adapter { dir: first, .. } => {
                        Err(Error::TwoAdapters { first, second: dir })
                    }
                }
            }
        }
    }

    fn look_at(&self, source: &Source) -> Result<Looked> {
        let id = match source.parse()? {
            Parsed::Local(path) => return Looked::at(path),
            Parsed::Id(id) => id,
        };
        let fetch = Fetch { hub: self, id: &id, cache: RepoCache::new(&self.cache, &id.repo) };
        let newest = fetch.newest(
            |path| Ok(Newest::There(path)),
            |client, listing| match fetch.cached(&listing.commit)? {
                Cached::Whole(path) | Cached::Enough(path) => Ok(Newest::There(path)),
                Cached::Lacks(_) => fetch.headers(client, listing).map(Newest::Looked),
            },
        );
        match newest? {
            Newest::There(path) => Looked::at(path),
            Newest::Looked(looked) => Ok(looked),
        }
    }
}

/// The newest commit.
enum Newest {
    /// It is in the cache, and is still to be looked at.
    There(PathBuf),
    Looked(Looked),
}

/// What was looked at.
enum Looked {
    Model(Box<Info>),
    Adapter { base: adapter::Base, dir: PathBuf },
}

impl Looked {
    /// Looks at what is in a folder or a GGUF file.
    fn at(path: PathBuf) -> Result<Self> {
        match adapter::base(&path)? {
            Some(base) => Ok(Self::Adapter { base, dir: path }),
            None => Ok(Self::Model(Box::new(Info::read(&path)?))),
        }
    }
}

impl Fetch<'_> {
    /// Looks at the headers of the weights: files of the same length that have nothing behind them.
    fn headers(&self, client: &Client<'_>, listing: &Listing) -> Result<Looked> {
        let snapshot = self.cache.snapshot(&listing.commit);
        let dir = tempfile::tempdir().map_err(|source| {
            self.error(None, None, HubProblem::Io { path: std::env::temp_dir(), source })
        })?;
        if let Some(which) = &self.id.gguf {
            let file = self.gguf(which, listing)?;
            let path = dir.path().join("model.gguf");
            self.header(client, &listing.commit, &file, &path)?;
            return Looked::at(path);
        }
        let first = selection::first().into_iter().filter(|file| file != "tokenizer.json");
        let first: Vec<_> = first.collect();
        self.get(client, listing, first.clone())?;
        let (weights, configs): (Vec<_>, Vec<_>) = selection::rest(&snapshot)?
            .into_iter()
            .partition(|file| file.ends_with(".safetensors"));
        self.get(client, listing, configs.clone())?;
        for file in first.iter().chain(&configs).filter(|file| snapshot.join(file).is_file()) {
            let path = dir.path().join(file);
            let copy = || {
                fs::create_dir_all(path.parent().unwrap_or(&path))?;
                fs::copy(snapshot.join(file), &path)
            };
            copy().map_err(|source| Error::Io { path: path.clone(), source })?;
        }
        // Those of the decoder: other modules have folders of their own.
        let weights = weights.iter().filter(|file| !file.contains('/'));
        for file in weights.filter(|file| listing.files.contains(file)) {
            self.header(client, &listing.commit, file, &dir.path().join(file))?;
        }
        Looked::at(dir.path().to_path_buf())
    }

    /// Makes `path` a file that is as long as the hub's `file` and begins with its header. The rest takes
    /// no room.
    fn header(&self, client: &Client<'_>, commit: &str, file: &str, path: &Path) -> Result<()> {
        let (repo, hub) = (&self.id.repo, self.hub);
        let failed = |problem| {
            let url = client.file_url(repo, commit, file);
            self.error(Some(file.to_owned()), Some(url), problem)
        };
        let beginning = |n| {
            retried(hub, hub.attempts, || client.beginning(repo, commit, file, n)).map_err(failed)
        };
        let metadata =
            retried(hub, hub.attempts, || client.metadata(repo, commit, file)).map_err(failed)?;
        let gguf = is_gguf(Path::new(file));
        let n = if gguf { GGUF_HEADER } else { SAFETENSORS_HEADER };
        let mut bytes = beginning(n.min(metadata.size))?;
        if let (false, Some(length)) = (gguf, bytes.first_chunk()) {
            let end = u64::from_le_bytes(*length).saturating_add(8);
            if (n..=metadata.size).contains(&end) {
                bytes = beginning(end)?;
            }
        }
        let write = || {
            let mut new = File::create(path)?;
            new.write_all(&bytes)?;
            new.set_len(metadata.size)
        };
        write().map_err(|source| Error::Io { path: path.to_path_buf(), source })
    }
}
