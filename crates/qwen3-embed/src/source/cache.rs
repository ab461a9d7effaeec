//! The cache of models on this machine, as the hub's own programs lay it out, so that all share it:
//!
//! ```text
//! models--owner--name/
//!   refs/main                       the commit that the branch was at when it was last looked up
//!   blobs/ETAG                      a file's contents
//!   blobs/ETAG.incomplete           what is there of it while it is downloaded
//!   snapshots/COMMIT/config.json    a symbolic link to its blob, ../../blobs/ETAG
//!   .no_exist/COMMIT/modules.json   an empty file: the commit has no such file
//! .locks/models--owner--name/ETAG.lock    held by whoever downloads the blob
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::error::HubProblem;
use super::id::ModelId;

type Result<T> = std::result::Result<T, HubProblem>;

/// Where a repository's newest commit is.
const DEFAULT_REVISION: &str = "main";

impl ModelId {
    /// The branch, tag or commit that is meant.
    pub(super) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(DEFAULT_REVISION)
    }

    /// The commit, if the id names one: then what is meant never changes.
    pub(super) fn commit(&self) -> Option<&str> {
        self.revision.as_deref().filter(|revision| is_commit(revision))
    }
}

/// Whether a revision is a commit's full hash.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A repository's part of the cache.
#[derive(Debug)]
pub(super) struct RepoCache {
    dir: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self { dir: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The commit that a branch or tag was at when it was last looked up.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        let commit = fs::read_to_string(self.dir.join("refs").join(revision)).ok()?;
        let commit = commit.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Notes the commit that a branch or tag is at now.
    pub(super) fn note_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.dir.join("refs").join(revision);
        create_parent(&path)?;
        let new = beside(&path);
        let write = || {
            fs::write(&new, commit)?;
            fs::rename(&new, &path)
        };
        write().map_err(|source| HubProblem::Io { path: path.clone(), source })
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    /// Whether a commit is known not to have a file.
    pub(super) fn lacks(&self, commit: &str, file: &str) -> bool {
        self.dir.join(".no_exist").join(commit).join(file).is_file()
    }

    /// Notes that a commit does not have a file.
    pub(super) fn note_lack(&self, commit: &str, file: &str) -> Result<()> {
        let path = self.dir.join(".no_exist").join(commit).join(file);
        if path.is_file() {
            return Ok(());
        }
        create_parent(&path)?;
        File::create(&path).map(drop).map_err(|source| HubProblem::Io { path, source })
    }

    /// Where a blob is, or will be.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.dir.join("blobs").join(etag)
    }

    /// Waits until nobody else downloads the blob. The lock is held until the file is dropped.
    pub(super) fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let lock = || {
            let file = File::options().create(true).truncate(false).write(true).open(&path)?;
            match file.lock() {
                // Some file systems know no locks. Then a file may be downloaded twice at the same
                // time, to the same end.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(file),
                locked => locked.map(|()| file),
            }
        };
        lock().map_err(|source| HubProblem::Io { path: path.clone(), source })
    }

    /// Makes a blob a file of a commit.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        create_parent(&path)?;
        // Out of the file's folders, of the commit's and of `snapshots`.
        let up = "../".repeat(file.matches('/').count() + 2);
        let new = beside(&path);
        let place = || {
            symlink(&format!("{up}blobs/{etag}"), &self.blob(etag), &new)?;
            fs::rename(&new, &path)
        };
        place().map_err(|source| HubProblem::Io { path: path.clone(), source })
    }
}

/// Makes the folders above a path.
pub(super) fn create_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent)
        .map_err(|source| HubProblem::Io { path: parent.to_path_buf(), source })
}

/// A name in the same folder that nobody else uses: what is made there becomes visible under its own
/// name at once, when it is renamed.
fn beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (process, n) = (std::process::id(), NEXT.fetch_add(1, Relaxed));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{process}.{n}.new"))
}

/// Makes a symbolic link to the blob, or where there are none, a copy.
fn symlink(target: &str, blob: &Path, path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    if std::os::unix::fs::symlink(target, path).is_ok() {
        return Ok(());
    }
    let _ = target;
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_a_full_hash() {
        let commit = "97b0c614be4d77ee51c0cef4e5f07c00f9eb65b3";
        assert_eq!(ModelId::parse(&format!("a/b@{commit}")).unwrap().commit(), Some(commit));
        for revision in ["main", "97b0c61", &commit.to_uppercase()] {
            let id = ModelId::parse(&format!("a/b@{revision}")).unwrap();
            assert_eq!((id.commit(), id.revision()), (None, revision));
        }
        assert_eq!(ModelId::parse("a/b").unwrap().revision(), "main");
    }
}
