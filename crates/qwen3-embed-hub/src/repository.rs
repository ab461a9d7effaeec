use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::cache::{RepoCache, Snapshot};
use crate::client::{Client, Listing};
use crate::error::{HubError, HubProblem};
use crate::hub::{Hub, Progress};
use crate::id::RepoId;
use crate::retry::retry;
use crate::transfer::Transfer;

/// Number of files that are downloaded at the same time.
const N_PARALLEL: usize = 4;

/// Chooses the files of a repository that a caller needs.
///
/// # Examples
///
/// Downloads one file:
///
/// ```no_run
/// use std::path::PathBuf;
///
/// use qwen3_embed_hub::{Cached, Commit, Hub, HubError, Newest, RepoId, Repository, Selection, Snapshot};
///
/// struct OneFile(&'static str);
///
/// impl Selection for OneFile {
///     type Fetched = PathBuf;
///     type Error = Box<HubError>;
///
///     fn find(&self, snapshot: &Snapshot<'_>) -> Result<Cached, Box<HubError>> {
///         let path = snapshot.dir().join(self.0);
///         Ok(if path.is_file() { Cached::Complete(path) } else { Cached::Missing(self.0.into()) })
///     }
///
///     fn fetch(&self, commit: &Commit<'_>) -> Result<PathBuf, Box<HubError>> {
///         commit.download(vec![self.0.into()])?;
///         commit.make_current();
///         Ok(commit.snapshot().dir().join(self.0))
///     }
/// }
///
/// let hub = Hub::from_env();
/// let id = RepoId::new("Qwen/Qwen3-Embedding-0.6B", None).unwrap();
/// let repository = Repository::new(&hub, &id, id.to_string());
/// let (Newest::Cached(path) | Newest::Fetched(path)) = repository.newest(&OneFile("config.json"))?;
/// # Ok::<(), Box<HubError>>(())
/// ```
pub trait Selection {
    /// The result of a download.
    type Fetched;
    /// The caller's error.
    type Error: From<Box<HubError>> + std::error::Error;

    /// Looks for the needed files in the cache.
    ///
    /// # Errors
    ///
    /// If the files in the cache cannot be read.
    fn find(&self, snapshot: &Snapshot<'_>) -> Result<Cached, Self::Error>;

    /// Downloads the needed files of the newest commit.
    ///
    /// # Errors
    ///
    /// If a download fails, or the commit does not have the needed files.
    fn fetch(&self, commit: &Commit<'_>) -> Result<Self::Fetched, Self::Error>;

    /// Whether an error of [`Selection::fetch`] is returned even if the cache contains a usable commit. Default:
    /// `false`.
    fn overrides_cache(&self, _error: &Self::Error) -> bool {
        false
    }
}

/// The result of [`Selection::find`]: which of the needed files of a commit are in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cached {
    /// All needed files are in the cache. The caller chooses the path, which is a file or a folder.
    Complete(PathBuf),
    /// All required files are in the cache. The commit may have optional files that are not in the cache.
    Usable(PathBuf),
    /// This required file is not in the cache.
    Missing(String),
}

/// The result of [`Repository::newest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Newest<T> {
    /// The path in the cache that [`Selection::find`] found.
    Cached(PathBuf),
    /// The result of [`Selection::fetch`].
    Fetched(T),
}

/// A repository on the hub, at a revision.
pub struct Repository<'a> {
    hub: &'a Hub,
    id: &'a RepoId,
    /// The name of the repository in errors.
    label: String,
    cache: RepoCache,
}

/// The newest commit of a repository's revision.
pub struct Commit<'a> {
    repository: &'a Repository<'a>,
    client: &'a Client<'a>,
    listing: Listing,
}

impl<'a> Repository<'a> {
    /// Creates a repository without sending a request. `label` names the repository in errors.
    pub fn new(hub: &'a Hub, id: &'a RepoId, label: String) -> Self {
        Self { hub, id, label, cache: RepoCache::new(&hub.cache, id.name()) }
    }

    /// Finds or downloads the selected files at the newest commit of the revision.
    ///
    /// If the newest commit cannot be fetched, and the cache contains the selected files of an earlier commit, the
    /// files of the earlier commit are returned and a warning is logged.
    ///
    /// # Errors
    ///
    /// An error of the selection, or a [`HubError`].
    pub fn newest<S: Selection>(&self, selection: &S) -> Result<Newest<S::Fetched>, S::Error> {
        let pinned = self.id.commit();
        let known = pinned.map(str::to_owned).or_else(|| self.cache.commit_of(self.id.revision()));
        let find = |commit: &String| selection.find(&self.cache.snapshot(commit));
        let usable = match known.as_ref().map(find).transpose()? {
            Some(Cached::Complete(path)) if pinned.is_some() => return Ok(Newest::Cached(path)),
            Some(Cached::Complete(path) | Cached::Usable(path)) => Ok(path),
            Some(Cached::Missing(file)) => Err(Some(file)),
            None => Err(None),
        };
        if self.hub.offline {
            let problem = HubProblem::Offline { cache: self.hub.cache.clone() };
            let offline = |file| self.error(file, None, problem).into();
            return usable.map(Newest::Cached).map_err(offline);
        }
        // If the cached files can be used, there is only one attempt, so that a missing network does not cause long
        // waits.
        let attempts = if usable.is_ok() { 1 } else { self.hub.attempts };
        let mut listed = None;
        let mut fetch = || {
            let client =
                Client::new(self.hub).map_err(|problem| self.error(None, None, problem))?;
            let listing = self.listing(&client, attempts)?;
            listed = Some(listing.commit.clone());
            selection.fetch(&Commit { repository: self, client: &client, listing })
        };
        match (fetch(), usable) {
            // If the newest commit is the cached commit, the error is about a file of this commit that is not in the
            // cache. The cached files are then incomplete, and the error is returned.
            (Err(error), Ok(path)) if listed != known && !selection.overrides_cache(&error) => {
                warn_of_cached(&path, &error);
                Ok(Newest::Cached(path))
            }
            (fetched, _) => fetched.map(Newest::Fetched),
        }
    }

    /// The newest commit of the revision, and its files.
    fn listing(&self, client: &Client<'_>, attempts: u32) -> Result<Listing, Box<HubError>> {
        let (repo, revision) = (self.id.name(), self.id.revision());
        let listing = retry(self.hub, attempts, || client.listing(repo, revision));
        let url = || Some(client.listing_url(repo, revision));
        listing.map_err(|problem| self.error(None, url(), problem))
    }

    fn error(
        &self,
        file: Option<String>,
        url: Option<String>,
        problem: HubProblem,
    ) -> Box<HubError> {
        Box::new(HubError { model: self.label.clone(), file, url, problem })
    }
}

impl Commit<'_> {
    /// The paths of all files of the commit.
    pub fn files(&self) -> &[String] {
        &self.listing.files
    }

    /// The files of the commit that are in the cache.
    pub fn snapshot(&self) -> Snapshot<'_> {
        self.repository.cache.snapshot(&self.listing.commit)
    }

    /// Records this commit in the cache as the commit of the revision. Call this function after all needed files have
    /// been downloaded, so that the previous commit stays in use if a download is interrupted. Errors are ignored,
    /// because the files of a cache that cannot be written can still be read.
    pub fn make_current(&self) {
        let Repository { id, cache, .. } = self.repository;
        let _ = cache.record_commit(id.revision(), &self.listing.commit);
    }

    /// Downloads the files, several at the same time. Files that are in the cache are not downloaded again. If the
    /// commit does not have a file, the cache records this.
    ///
    /// # Errors
    ///
    /// The first error. The other downloads are then stopped.
    pub fn download(&self, files: Vec<String>) -> Result<(), Box<HubError>> {
        let listed: BTreeSet<&String> = self.files().iter().collect();
        let (files, absent): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|file| listed.contains(file));
        let snapshot = self.snapshot();
        for file in absent {
            let _ = snapshot.record_absence(&file);
        }
        let dir = snapshot.dir();
        let files: Vec<_> = files.into_iter().filter(|file| !dir.join(file).is_file()).collect();
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let failure = Mutex::new(None);
        let Repository { hub, id, ref cache, .. } = *self.repository;
        let (repo, commit) = (id.name(), self.listing.commit.as_str());
        let transfer = Transfer { hub, client: self.client, cache, repo, commit, stop: &stop };
        let work = || {
            while let Some(file) = files.get(next.fetch_add(1, Relaxed)) {
                if stop.load(Relaxed) {
                    return;
                }
                let progress = |done, total| hub.report(&Progress { name: file, done, total });
                if let Err(problem) = transfer.fetch(file, &progress) {
                    // The first failure stops the other downloads. Later failures are not reported, because the stop
                    // may have caused them.
                    let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                    failure.get_or_insert((file, problem));
                    stop.store(true, Relaxed);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..N_PARALLEL.min(files.len()) {
                scope.spawn(work);
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some((file, problem)) => Err(self.error(file, problem)),
        }
    }

    /// The first `n` bytes of a file, or all bytes of a shorter file. The cache is not used.
    ///
    /// # Errors
    ///
    /// If the request fails.
    pub fn beginning(&self, file: &str, n: u64) -> Result<Vec<u8>, Box<HubError>> {
        self.request(file, |repo, commit| self.client.beginning(repo, commit, file, n))
    }

    /// The size of a file in bytes, as the hub announces it.
    ///
    /// # Errors
    ///
    /// If the request fails.
    pub fn size(&self, file: &str) -> Result<u64, Box<HubError>> {
        let metadata =
            self.request(file, |repo, commit| self.client.metadata(repo, commit, file))?;
        Ok(metadata.size)
    }

    /// Creates the error for a needed file that the commit does not have.
    pub fn no_such_file(&self, file: String) -> Box<HubError> {
        self.repository.error(Some(file), None, HubProblem::NoSuchFile)
    }

    fn request<T>(
        &self,
        file: &str,
        request: impl Fn(&str, &str) -> Result<T, crate::error::Failure>,
    ) -> Result<T, Box<HubError>> {
        let Repository { hub, id, .. } = *self.repository;
        let requested = retry(hub, hub.attempts, || request(id.name(), &self.listing.commit));
        requested.map_err(|problem| self.error(file, problem))
    }

    fn error(&self, file: &str, problem: HubProblem) -> Box<HubError> {
        let url = self.client.file_url(self.repository.id.name(), &self.listing.commit, file);
        self.repository.error(Some(file.to_owned()), Some(url), problem)
    }
}

/// Logs a warning that files of the cache are used, with the error and its causes.
fn warn_of_cached(path: &Path, error: &impl std::error::Error) {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        reason += &format!(": {error}");
        source = error.source();
    }
    tracing::warn!(
        "{} is used from the cache, because the newest commit cannot be fetched: {reason}",
        path.display()
    );
}
