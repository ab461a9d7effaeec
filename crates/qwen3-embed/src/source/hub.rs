use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::Source;
use super::cache::RepoCache;
use super::client::{Client, Listing};
use super::error::{HubError, HubProblem};
use super::id::ModelId;
use super::proxy::Proxies;
use super::selection::{self, Refused};
use super::transfer::{Transfer, retried};
use crate::{Error, Result, warnings};

/// The hub that models are downloaded from, the cache that they are downloaded to, and how.
///
/// The cache is the one of the hub's other programs, in the same layout: what one has downloaded is there
/// for all. Only the files that a model needs are downloaded, several at once. A file becomes visible
/// when it is whole and has the size and, where the hub tells one, the SHA-256 that the hub announced. A
/// download that broke goes on where it ended. When all of a model is in the cache and the id names a
/// commit, there is no request at all; otherwise there is one, for the newest commit. If the newest commit cannot
/// be had, because the network is down, the token is not valid, the model is gone or the cache cannot be written, a
/// model that is in the cache is used, and a warning (an event of `tracing`) says why.
///
/// # Examples
///
/// ```no_run
/// use qwen3_embed::{Embedder, Hub};
///
/// let hub = Hub::from_env().on_download(|file| eprintln!("{}: {}/{}", file.name, file.done, file.total));
/// let folder = hub.download("Qwen/Qwen3-Embedding-0.6B")?;
/// let embedder = Embedder::builder(folder).build()?;
/// // Or at once:
/// let embedder = Embedder::builder("Qwen/Qwen3-Embedding-0.6B").hub(hub).build()?;
/// # Ok::<(), qwen3_embed::Error>(())
/// ```
#[derive(Clone)]
pub struct Hub {
    pub(super) cache: PathBuf,
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    pub(super) offline: bool,
    pub(super) attempts: u32,
    pub(super) retry_wait: Duration,
    pub(super) timeout: Duration,
    pub(super) proxies: Proxies,
    pub(super) certificates: Option<PathBuf>,
    on_download: Option<Arc<Callback>>,
}

type Callback = dyn Fn(&Progress<'_>) + Send + Sync;

/// How far a file's download is. When `done` is `total`, the file is in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The file's path in its repository.
    pub name: &'a str,
    /// Bytes that are there.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// Files that are downloaded at once.
const N_PARALLEL: usize = 4;

impl Hub {
    /// The public hub with this cache, without a token or a proxy, whatever the environment says.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            endpoint: "https://huggingface.co".to_owned(),
            token: None,
            offline: false,
            attempts: 5,
            retry_wait: Duration::from_millis(500),
            timeout: Duration::from_secs(30),
            proxies: Proxies::default(),
            certificates: None,
            on_download: None,
        }
    }

    /// Another address of the hub: that of a mirror.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = url.into().trim_end_matches('/').to_owned();
        self
    }

    /// The token that is sent to the hub, and to no other host.
    pub fn token(mut self, token: impl AsRef<str>) -> Self {
        self.token = Some(token.as_ref().trim().to_owned()).filter(|token| !token.is_empty());
        self
    }

    /// Whether only the cache is used, and never the network. Default: no.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// How often in a row a request may fail, at least once. Default: 5.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// How long to wait before the second attempt, unless the hub says it; doubled before each further
    /// one. Default: half a second.
    pub fn retry_wait(mut self, wait: Duration) -> Self {
        self.retry_wait = wait;
        self
    }

    /// How long the hub may be silent. Default: 30 seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Called while files are downloaded, from several threads: for each file now and then, and once when it
    /// is in the cache. Not called for files that were there before.
    pub fn on_download(mut self, callback: impl Fn(&Progress<'_>) + Send + Sync + 'static) -> Self {
        self.on_download = Some(Arc::new(callback));
        self
    }

    /// Downloads what is needed of a model and is not there yet. Returns the model's folder, or its GGUF
    /// file; those of a model that is on this machine already are returned as they are.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchModel`] if the source is neither there nor an id; [`Error::Hub`] says what was
    /// wrong with a download; [`Error::PickleWeights`] if there are no other weights.
    pub fn download(&self, source: impl Into<Source>) -> Result<PathBuf> {
        source.into().open_alone(Some(self))
    }

    /// The model on this machine, after it was downloaded if need be.
    pub(super) fn fetch(&self, id: &ModelId) -> Result<PathBuf> {
        Fetch { hub: self, id, cache: RepoCache::new(&self.cache, &id.repo) }.model()
    }
}

impl fmt::Debug for Hub {
    /// Without the token and the proxy's password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("has_token", &self.token.is_some())
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// A model that is looked for.
pub(super) struct Fetch<'a> {
    pub(super) hub: &'a Hub,
    pub(super) id: &'a ModelId,
    pub(super) cache: RepoCache,
}

/// What the cache has of a commit.
pub(super) enum Cached {
    /// All that there is.
    Whole(PathBuf),
    /// What is needed. Whether the repository has more is not known.
    Enough(PathBuf),
    /// Not enough: this file is missing.
    Lacks(String),
}

impl Fetch<'_> {
    /// The model's folder or GGUF file.
    pub(super) fn model(&self) -> Result<PathBuf> {
        self.newest(Ok, |client, listing| self.download(client, listing))
    }

    /// What `get` makes of the newest commit; or what `read` makes of the commit in the cache, if no request is
    /// needed or allowed, or the newest commit cannot be had.
    pub(super) fn newest<T>(
        &self,
        read: impl FnOnce(PathBuf) -> Result<T>,
        get: impl FnOnce(&Client<'_>, &Listing) -> Result<T>,
    ) -> Result<T> {
        let revision = self.id.revision();
        let pinned = self.id.commit();
        let known = pinned.map(str::to_owned).or_else(|| self.cache.commit_of(revision));
        let cached = known.as_ref().map(|commit| self.cached(commit)).transpose()?;
        let usable = match cached {
            Some(Cached::Whole(path)) if pinned.is_some() => return read(path),
            Some(Cached::Whole(path) | Cached::Enough(path)) => Ok(path),
            Some(Cached::Lacks(file)) => Err(Some(file)),
            None => Err(None),
        };
        if self.hub.offline {
            let cache = self.hub.cache.clone();
            let offline = |file| self.error(file, None, HubProblem::Offline { cache });
            return usable.map_err(offline).and_then(read);
        }
        // With something to fall back on, nobody waits for a network that is not there.
        let attempts = if usable.is_ok() { 1 } else { self.hub.attempts };
        let mut listed = None;
        let ask = || {
            let client = self.client()?;
            let listing = self.listing(&client, attempts)?;
            listed = Some(listing.commit.clone());
            get(&client, &listing)
        };
        match (ask(), usable) {
            // If the newest commit is the one in the cache, the error is about a file that the cache lacks. An id that
            // means several files is no less ambiguous for one of them that is in the cache.
            (Err(error), Ok(path)) if listed != known && !error.is_ambiguous() => {
                warnings::of_cached_model(&path, &error);
                read(path)
            }
            (asked, _) => asked,
        }
    }

    fn client(&self) -> Result<Client<'_>> {
        Client::new(self.hub).map_err(|problem| self.error(None, None, problem))
    }

    /// The commit that the model's revision is now, and its files, some of which make a model.
    fn listing(&self, client: &Client<'_>, attempts: u32) -> Result<Listing> {
        let (repo, revision) = (&self.id.repo, self.id.revision());
        let listing = retried(self.hub, attempts, || client.listing(repo, revision));
        let url = || Some(client.listing_url(repo, revision));
        let listing = listing.map_err(|problem| self.error(None, url(), problem))?;
        if self.id.gguf.is_none() {
            selection::check(self.id, &listing.files).map_err(|refused| match refused {
                Refused::Pickle(file) => Error::PickleWeights { model: self.id.to_string(), file },
                Refused::NoWeights => self.error(None, None, HubProblem::NoWeights),
                Refused::Gguf(choices) => self.error(None, None, HubProblem::WhichGguf { choices }),
            })?;
        }
        Ok(listing)
    }

    /// What the cache has of a commit.
    pub(super) fn cached(&self, commit: &str) -> Result<Cached> {
        let dir = self.cache.snapshot(commit);
        if let Some(which) = &self.id.gguf {
            let files = files_of(&dir);
            let Ok(file) = selection::gguf(self.id, which, &files) else {
                return Ok(Cached::Lacks(which.clone()));
            };
            let path = dir.join(&file);
            let is_known = self.is_known(commit, &selection::beside(&file));
            return Ok(if is_known { Cached::Whole(path) } else { Cached::Enough(path) });
        }
        if let Some(file) = selection::missing(&dir)? {
            return Ok(Cached::Lacks(file));
        }
        let mut files = selection::first();
        files.extend(selection::rest(&dir)?);
        let is_whole = files.iter().all(|file| self.is_known(commit, file));
        Ok(if is_whole { Cached::Whole(dir) } else { Cached::Enough(dir) })
    }

    /// Whether a file is in the cache, or known not to be in the repository.
    fn is_known(&self, commit: &str, file: &str) -> bool {
        self.cache.snapshot(commit).join(file).is_file() || self.cache.lacks(commit, file)
    }

    /// Downloads what is not there yet of a commit.
    fn download(&self, client: &Client<'_>, listing: &Listing) -> Result<PathBuf> {
        let commit = &listing.commit;
        let dir = self.cache.snapshot(commit);
        let path = match &self.id.gguf {
            Some(which) => {
                let file = self.gguf(which, listing)?;
                let beside = selection::beside(&file);
                let path = dir.join(&file);
                self.get(client, listing, vec![file, beside])?;
                path
            }
            None => {
                self.get(client, listing, selection::first())?;
                self.get(client, listing, selection::rest(&dir)?)?;
                if let Some(file) = selection::missing(&dir)? {
                    return Err(self.error(Some(file), None, HubProblem::NoSuchFile));
                }
                dir
            }
        };
        // Only now, so that what was there before is still found if this download breaks. A cache that
        // cannot be written is good enough to read from.
        let _ = self.cache.note_commit(self.id.revision(), commit);
        Ok(path)
    }

    /// The GGUF file that is meant.
    pub(super) fn gguf(&self, which: &str, listing: &Listing) -> Result<String> {
        selection::gguf(self.id, which, &listing.files)
            .map_err(|choices| self.error(None, None, HubProblem::WhichGguf { choices }))
    }

    /// Downloads those of the files that the commit has and the cache has not, several at once, and notes
    /// which the commit has not.
    pub(super) fn get(
        &self,
        client: &Client<'_>,
        listing: &Listing,
        files: Vec<String>,
    ) -> Result<()> {
        let commit = &listing.commit;
        let there: BTreeSet<&String> = listing.files.iter().collect();
        let (files, lacking): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|file| there.contains(file));
        for file in lacking {
            let _ = self.cache.note_lack(commit, &file);
        }
        let dir = self.cache.snapshot(commit);
        let files: Vec<_> = files.into_iter().filter(|file| !dir.join(file).is_file()).collect();
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let failure = Mutex::new(None);
        let (hub, cache, repo) = (self.hub, &self.cache, self.id.repo.as_str());
        let transfer = Transfer { hub, client, cache, repo, commit, stop: &stop };
        let work = || {
            while let Some(file) = files.get(next.fetch_add(1, Relaxed)) {
                if stop.load(Relaxed) {
                    return;
                }
                let progress = |done, total| hub.report(&Progress { name: file, done, total });
                if let Err(problem) = transfer.fetch(file, &progress) {
                    // The first is the one that stopped the others.
                    let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                    failure.get_or_insert((file, problem));
                    stop.store(true, Relaxed);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..N_PARALLEL.min(files.len()) {
                scope.spawn(work);
            }
            work();
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some((file, problem)) => {
                let url = client.file_url(repo, commit, file);
                Err(self.error(Some(file.clone()), Some(url), problem))
            }
        }
    }

    pub(super) fn error(
        &self,
        file: Option<String>,
        url: Option<String>,
        problem: HubProblem,
    ) -> Error {
        let model = self.id.to_string();
        Error::Hub(Box::new(HubError { model, file, url, problem }))
    }
}

impl Hub {
    fn report(&self, progress: &Progress<'_>) {
        if let Some(callback) = &self.on_download {
            callback(progress);
        }
    }
}

/// The paths of the files in a folder and those below it.
fn files_of(dir: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in dir.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            files.extend(files_of(&entry.path()).iter().map(|file| format!("{name}/{file}")));
        } else {
            files.push(name);
        }
    }
    files
}
