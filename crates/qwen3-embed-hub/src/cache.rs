//! The cache of downloaded files. It has the same layout as in other programs for the hub, so all these programs can
//! share the cache:
//!
//! ```text
//! models--owner--name/
//!   refs/main                       the commit of the branch at the last lookup
//!   blobs/ETAG                      the contents of a file
//!   blobs/ETAG.incomplete           the part of a file that has been downloaded so far
//!   snapshots/COMMIT/config.json    a symbolic link to a blob, ../../blobs/ETAG
//!   .no_exist/COMMIT/modules.json   an empty file: the commit does not have modules.json
//! .locks/models--owner--name/ETAG.lock    locked during the download of the blob
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::error::HubProblem;
use crate::id::is_commit;

type Result<T> = std::result::Result<T, HubProblem>;

/// The folders of one repository in the cache.
#[derive(Debug)]
pub(crate) struct RepoCache {
    dir: PathBuf,
    locks: PathBuf,
}

/// The files of one commit that are in the cache.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    cache: &'a RepoCache,
    commit: &'a str,
}

impl Snapshot<'_> {
    /// The folder of the commit. Its files have the same relative paths as in the repository.
    pub fn dir(&self) -> PathBuf {
        self.cache.dir.join("snapshots").join(self.commit)
    }

    /// The paths of the files that are in the cache, relative to [`Snapshot::dir`].
    pub fn files(&self) -> Vec<String> {
        files_below(&self.dir())
    }

    /// Whether the file is in the cache, or the cache records that the commit does not have the file.
    pub fn knows(&self, file: &str) -> bool {
        self.dir().join(file).is_file() || self.absence(file).is_file()
    }

    /// Records that the commit does not have the file.
    pub(crate) fn record_absence(&self, file: &str) -> Result<()> {
        let path = self.absence(file);
        if path.is_file() {
            return Ok(());
        }
        create_parent(&path)?;
        File::create(&path).map(drop).map_err(|source| HubProblem::Io { path, source })
    }

    /// Adds `file` to the folder of the commit, as a link to the blob `etag`.
    pub(crate) fn link(&self, file: &str, etag: &str) -> Result<()> {
        let path = self.dir().join(file);
        create_parent(&path)?;
        // The relative path from the folder of the file to the folder of the repository.
        let up = "../".repeat(file.matches('/').count() + 2);
        let new = temporary_name(&path);
        let place = || {
            symlink(&format!("{up}blobs/{etag}"), &self.cache.blob(etag), &new)?;
            fs::rename(&new, &path)
        };
        place().map_err(|source| HubProblem::Io { path: path.clone(), source })
    }

    /// The empty file that records that the commit does not have `file`.
    fn absence(&self, file: &str) -> PathBuf {
        self.cache.dir.join(".no_exist").join(self.commit).join(file)
    }
}

impl RepoCache {
    pub(crate) fn new(cache: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self { dir: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    pub(crate) fn snapshot<'a>(&'a self, commit: &'a str) -> Snapshot<'a> {
        Snapshot { cache: self, commit }
    }

    /// The commit of a branch or tag at the last lookup.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        let commit = fs::read_to_string(self.dir.join("refs").join(revision)).ok()?;
        let commit = commit.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Records the commit of a branch or tag.
    pub(crate) fn record_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.dir.join("refs").join(revision);
        create_parent(&path)?;
        let new = temporary_name(&path);
        let write = || {
            fs::write(&new, commit)?;
            fs::rename(&new, &path)
        };
        write().map_err(|source| HubProblem::Io { path: path.clone(), source })
    }

    /// The path of a blob, whether it exists or not.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(etag)
    }

    /// Waits until no other thread or process downloads the blob. Dropping the file releases the lock.
    pub(crate) fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let lock = || {
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            match file.lock() {
                // On a file system that does not support locks, two processes may download the same file at the same
                // time. This is harmless, because both write the same bytes.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
                locked => locked.map(|()| file),
            }
        };
        lock().map_err(|source| HubProblem::Io { path: path.clone(), source })
    }
}

/// Creates the folders above a path.
pub(crate) fn create_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent)
        .map_err(|source| HubProblem::Io { path: parent.to_path_buf(), source })
}

/// A path in the same folder as `path` that no other thread or process uses. If a file is written to this path and then
/// renamed to `path`, other programs never see a part of the file at `path`.
fn temporary_name(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (process, n) = (std::process::id(), NEXT.fetch_add(1, Relaxed));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{process}.{n}.new"))
}

/// Creates a symbolic link to a blob. If this is not possible, creates a hard link or a copy.
fn symlink(target: &str, blob: &Path, path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    if std::os::unix::fs::symlink(target, path).is_ok() {
        return Ok(());
    }
    let _ = target;
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(drop))
}

/// The paths of the files in a folder and in the folders below it.
fn files_below(dir: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in dir.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            files.extend(files_below(&entry.path()).iter().map(|file| format!("{name}/{file}")));
        } else {
            files.push(name);
        }
    }
    files
}
