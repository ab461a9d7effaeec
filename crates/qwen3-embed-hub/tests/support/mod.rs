//! A hub on loopback with one repository, an empty cache, and the transports to test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qwen3_embed_hub::{
    Cached, Commit, Hub, HubError, HubProblem, Newest, RepoId, Repository, Selection, Snapshot,
};

use crate::hub_server::{COMMIT, Request, Server, sha256};

pub(crate) const ID: &str = "owner/model";

/// The environment of one test: a hub with the repository `owner/model`, an empty cache, and one transport.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) cache: tempfile::TempDir,
    is_xet: bool,
}

impl World {
    /// One environment for each transport: the built-in client, and hf-hub with large files in Xet storage. The
    /// repository has all required files of [`SELECTION`] and no optional files.
    pub(crate) fn each() -> impl Iterator<Item = Self> {
        Self::each_with(|| files(&[]))
    }

    /// One environment for each transport. The repository has these files.
    pub(crate) fn each_with(
        files: impl Fn() -> BTreeMap<String, Vec<u8>>,
    ) -> impl Iterator<Item = Self> {
        let transports = [false, true].into_iter().take(1 + usize::from(cfg!(feature = "hf-hub")));
        transports.map(move |is_xet| Self::start(is_xet, files()))
    }

    /// An environment for the built-in client, with the files of [`World::each`].
    pub(crate) fn http() -> Self {
        Self::start(false, files(&[]))
    }

    /// An environment for hf-hub, with the files of [`World::each`].
    pub(crate) fn xet() -> Self {
        Self::start(true, files(&[]))
    }

    fn start(is_xet: bool, files: BTreeMap<String, Vec<u8>>) -> Self {
        let start = if is_xet { Server::start_with_xet } else { Server::start };
        Self { server: start(&[(ID, files)]), cache: tempfile::tempdir().unwrap(), is_xet }
    }

    pub(crate) fn hub(&self) -> Hub {
        let hub = Hub::new(self.cache.path())
            .endpoint(self.server.url())
            .retry_wait(Duration::from_millis(5))
            .timeout(Duration::from_secs(20));
        #[cfg(feature = "hf-hub")]
        if self.is_xet {
            return hub.transport(qwen3_embed_hub::Transport::HfHub);
        }
        hub
    }

    /// The repository's folder in the cache.
    pub(crate) fn repo(&self) -> PathBuf {
        self.cache.path().join("models--owner--model")
    }

    /// The folder of the commit in the cache.
    pub(crate) fn snapshot(&self) -> PathBuf {
        self.repo().join("snapshots").join(COMMIT)
    }

    pub(crate) fn weights(&self) -> Vec<u8> {
        self.server.repos()[ID]["model.safetensors"].clone()
    }

    /// The path of the partly downloaded weights.
    pub(crate) fn partial(&self) -> PathBuf {
        self.repo().join("blobs").join(sha256(&self.weights()) + ".incomplete")
    }
}

/// The files of a repository: `config.json`, `model.safetensors` and others.
pub(crate) fn files(others: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    // More bytes than the buffer of a transfer has. No two blocks are equal.
    let weights = (0u32..100_000).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes());
    let mut files: BTreeMap<_, _> = [
        ("config.json".to_owned(), br#"{"model_type": "qwen3"}"#.to_vec()),
        ("model.safetensors".to_owned(), weights.collect()),
    ]
    .into();
    let others = others.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()));
    files.extend(others);
    files
}

/// Required files and optional files.
pub(crate) struct Files(&'static [&'static str], &'static [&'static str]);

/// The files that most tests download.
pub(crate) const SELECTION: Files =
    Files(&["config.json", "model.safetensors"], &["modules.json", "1_Pooling/config.json"]);

impl Selection for Files {
    type Fetched = PathBuf;
    type Error = Box<HubError>;

    fn find(&self, snapshot: &Snapshot<'_>) -> Result<Cached, Box<HubError>> {
        let Self(required, optional) = self;
        let dir = snapshot.dir();
        if let Some(file) = required.iter().find(|file| !dir.join(file).is_file()) {
            return Ok(Cached::Missing((*file).to_owned()));
        }
        let is_complete = optional.iter().all(|file| snapshot.knows(file));
        Ok(if is_complete { Cached::Complete(dir) } else { Cached::Usable(dir) })
    }

    fn fetch(&self, commit: &Commit<'_>) -> Result<PathBuf, Box<HubError>> {
        let Self(required, optional) = self;
        commit
            .download([*required, *optional].concat().into_iter().map(str::to_owned).collect())?;
        if let Cached::Missing(file) = self.find(&commit.snapshot())? {
            return Err(commit.no_such_file(file));
        }
        commit.make_current();
        Ok(commit.snapshot().dir())
    }
}

/// Downloads [`SELECTION`] at the newest commit of `main`.
pub(crate) fn download(hub: &Hub) -> Result<PathBuf, Box<HubError>> {
    download_at(hub, None)
}

/// Downloads [`SELECTION`] at the newest commit of a revision.
pub(crate) fn download_at(hub: &Hub, revision: Option<&str>) -> Result<PathBuf, Box<HubError>> {
    let id = RepoId::new(ID, revision).unwrap();
    let newest = Repository::new(hub, &id, id.to_string()).newest(&SELECTION)?;
    let (Newest::Cached(path) | Newest::Fetched(path)) = newest;
    Ok(path)
}

/// The reason why a download of `main` fails.
pub(crate) fn problem(hub: &Hub) -> HubProblem {
    download(hub).unwrap_err().problem
}

/// All files and links below a folder. Links are followed by ` -> ` and their target.
pub(crate) fn tree(dir: &Path) -> Vec<String> {
    let mut entries = Vec::new();
    for entry in dir.read_dir().into_iter().flatten() {
        let (path, kind) = (entry.as_ref().unwrap().path(), entry.unwrap().file_type().unwrap());
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if kind.is_dir() {
            entries.extend(tree(&path).into_iter().map(|entry| format!("{name}/{entry}")));
        } else if kind.is_symlink() {
            entries.push(format!("{name} -> {}", fs::read_link(path).unwrap().display()));
        } else {
            entries.push(name);
        }
    }
    entries.sort();
    entries
}

/// Whether a request is for the contents of the weights.
pub(crate) fn is_weights(request: &Request) -> bool {
    request.to_cdn && request.method == "GET" && !request.path.contains("/reconstructions/")
}
