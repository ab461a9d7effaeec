//! One file on its way from the hub into the cache.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::cache::{RepoCache, create_parent};
use super::client::{Client, Metadata};
use super::error::{Failure, HubProblem, broken};
use super::hub::Hub;

type Result<T> = std::result::Result<T, HubProblem>;

/// Bytes that are read and written together.
const CHUNK: usize = 256 << 10;

/// The longest wait between two attempts.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// A commit of a repository that is being downloaded.
pub(super) struct Transfer<'a> {
    pub(super) hub: &'a Hub,
    pub(super) client: &'a Client<'a>,
    pub(super) cache: &'a RepoCache,
    pub(super) repo: &'a str,
    pub(super) commit: &'a str,
    /// Set when another file has failed.
    pub(super) stop: &'a AtomicBool,
}

/// What is there of a file, under a name that nothing else reads.
struct Incomplete {
    path: PathBuf,
    file: File,
    /// Bytes from the start that are there.
    done: u64,
    /// Bytes that the whole file has.
    total: u64,
}

impl Transfer<'_> {
    /// Downloads a file, unless it is there. `progress` is told how many bytes of how many are there.
    pub(super) fn fetch(&self, file: &str, progress: &dyn Fn(u64, u64)) -> Result<()> {
        let metadata = self.metadata(file)?;
        // Somebody else may have downloaded it until the lock is ours.
        let lock = self.cache.lock(&metadata.etag)?;
        let blob = self.cache.blob(&metadata.etag);
        if !fs::metadata(&blob).is_ok_and(|found| found.len() == metadata.size) {
            self.download(file, &metadata, &blob, progress)?;
        }
        drop(lock);
        self.cache.link(self.commit, file, &metadata.etag)?;
        progress(metadata.size, metadata.size);
        Ok(())
    }

    fn metadata(&self, file: &str) -> Result<Metadata> {
        retried(self.hub, self.hub.attempts, || self.client.metadata(self.repo, self.commit, file))
    }

    /// Downloads a blob. It gets its name when all of it is there and is what was announced.
    fn download(
        &self,
        file: &str,
        metadata: &Metadata,
        blob: &Path,
        progress: &dyn Fn(u64, u64),
    ) -> Result<()> {
        let mut incomplete = Incomplete::open(blob, metadata.size)?;
        let resumed = incomplete.done > 0;
        let bring = |incomplete: &mut Incomplete| {
            self.complete(incomplete, file, progress)?;
            incomplete.verify(metadata)
        };
        let is_wrong = |result: &Result<()>| {
            matches!(result, Err(HubProblem::Size { .. } | HubProblem::Checksum { .. }))
        };
        let mut result = bring(&mut incomplete);
        if resumed && is_wrong(&result) {
            // What an earlier download left may have been the fault.
            incomplete.done = 0;
            result = bring(&mut incomplete);
        }
        if is_wrong(&result) {
            let _ = fs::remove_file(&incomplete.path);
        }
        result?;
        match fs::rename(&incomplete.path, blob) {
            // Where locks do not work, another process may have finished the same file first.
            Err(error) if error.kind() == io::ErrorKind::NotFound && blob.is_file() => Ok(()),
            renamed => renamed.map_err(|source| HubProblem::Io { path: blob.into(), source }),
        }
    }

    /// Downloads what is not there yet. An attempt that brought bytes is no failed one.
    fn complete(
        &self,
        incomplete: &mut Incomplete,
        file: &str,
        progress: &dyn Fn(u64, u64),
    ) -> Result<()> {
        let mut attempt = 1;
        loop {
            let before = incomplete.done;
            let Err(failure) = self.attempt(incomplete, file, progress) else { return Ok(()) };
            attempt = if incomplete.done > before { 1 } else { attempt + 1 };
            match failure {
                Failure::Passing(_, wait) if attempt <= self.hub.attempts => {
                    thread::sleep(wait.unwrap_or_else(|| wait_before(self.hub, attempt)));
                }
                Failure::Passing(HubProblem::Unreachable { source, .. }, _) => {
                    let Incomplete { done, total, .. } = *incomplete;
                    return Err(HubProblem::Cut { done, total, source });
                }
                failure => return Err(failure.into_problem()),
            }
        }
    }

    /// Downloads from where the file ends until the connection does.
    fn attempt(
        &self,
        incomplete: &mut Incomplete,
        file: &str,
        progress: &dyn Fn(u64, u64),
    ) -> std::result::Result<(), Failure> {
        let total = incomplete.total;
        if incomplete.done == total {
            return Ok(());
        }
        let (first, mut body) =
            self.client.contents(self.repo, self.commit, file, incomplete.done)?;
        incomplete.done = first;
        let mut chunk = vec![0; CHUNK];
        while !self.stop.load(Relaxed) {
            let n = body.read(&mut chunk).map_err(broken)?;
            match incomplete.done + n as u64 {
                got if got > total => {
                    return Err(Failure::Final(HubProblem::Size { expected: total, got }));
                }
                done if n == 0 && done == total => return Ok(()),
                // An answer that ends in time and yet is too short.
                got if n == 0 => {
                    return Err(Failure::Passing(HubProblem::Size { expected: total, got }, None));
                }
                _ => incomplete.write(&chunk[..n]).map_err(Failure::Final)?,
            }
            if incomplete.done < total {
                progress(incomplete.done, total);
            }
        }
        Err(Failure::Final(HubProblem::Stopped))
    }
}

impl Incomplete {
    /// Opens what an earlier download has left, or begins a new one.
    fn open(blob: &Path, total: u64) -> Result<Self> {
        let mut path = blob.as_os_str().to_owned();
        path.push(".incomplete");
        let path = PathBuf::from(path);
        create_parent(&path)?;
        let open = || {
            let file =
                File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) =
            open().map_err(|source| HubProblem::Io { path: path.clone(), source })?;
        let done = if length > total { 0 } else { length };
        Ok(Self { path, file, done, total })
    }

    /// Writes where the file ends. Should another process write the same file at the same time, because
    /// locks do not work, it writes the same bytes to the same places.
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut write = || {
            self.file.seek(SeekFrom::Start(self.done))?;
            self.file.write_all(bytes)
        };
        write().map_err(|source| self.failed(source))?;
        self.done += bytes.len() as u64;
        Ok(())
    }

    /// The file cannot be read or written.
    fn failed(&self, source: io::Error) -> HubProblem {
        let (done, total, path) = (self.done, self.total, self.path.clone());
        let dir = path.parent().unwrap_or(&path).to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                HubProblem::DiskFull { dir, done, total, source }
            }
            _ => HubProblem::Io { path, source },
        }
    }

    /// Checks that the file is the one that was announced, as it is on disk.
    fn verify(&mut self, metadata: &Metadata) -> Result<()> {
        let read_back = self.read_back(metadata.is_sha256);
        let (got, hash) = read_back.map_err(|source| self.failed(source))?;
        if got != metadata.size {
            return Err(HubProblem::Size { expected: metadata.size, got });
        }
        match hash {
            Some(hash) if !hash.eq_ignore_ascii_case(&metadata.etag) => {
                Err(HubProblem::Checksum { expected: metadata.etag.clone(), got: hash })
            }
            _ => Ok(()),
        }
    }

    /// The file's length, and its SHA-256 if that is of interest. What another download has left behind
    /// its end is cut off.
    fn read_back(&mut self, hashes: bool) -> io::Result<(u64, Option<String>)> {
        self.file.set_len(self.done)?;
        self.file.sync_all()?;
        if !hashes {
            return Ok((self.done, None));
        }
        self.file.seek(SeekFrom::Start(0))?;
        let mut hasher = Sha256::new();
        let mut chunk = vec![0; CHUNK];
        loop {
            match self.file.read(&mut chunk)? {
                0 => break,
                n => hasher.update(&chunk[..n]),
            }
        }
        let hash = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((self.done, Some(hash)))
    }
}

/// Asks until there is an answer, `attempts` times at most.
pub(super) fn retried<T>(
    hub: &Hub,
    attempts: u32,
    ask: impl Fn() -> std::result::Result<T, Failure>,
) -> Result<T> {
    let mut attempt = 1;
    loop {
        attempt += 1;
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(Failure::Passing(_, wait)) if attempt <= attempts => {
                thread::sleep(wait.unwrap_or_else(|| wait_before(hub, attempt)));
            }
            Err(failure) => return Err(failure.into_problem()),
        }
    }
}

/// How long to wait before an attempt, the second being the first that waits.
fn wait_before(hub: &Hub, attempt: u32) -> Duration {
    let doubled = 2u32.saturating_pow(attempt.saturating_sub(2));
    hub.retry_wait.saturating_mul(doubled).min(MAX_WAIT)
}
