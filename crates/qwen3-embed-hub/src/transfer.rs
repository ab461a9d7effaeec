//! Downloads one file of a commit into the cache.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::cache::RepoCache;
use crate::client::Client;
use crate::error::{Failure, HubProblem, broken};
use crate::hub::Hub;
#[cfg(feature = "hf-hub")]
use crate::hub::Transport;
use crate::metadata::Metadata;
use crate::partial::{CHUNK, Partial};
use crate::retry::{pause, retry};
#[cfg(feature = "hf-hub")]
use crate::xet;

type Result<T> = std::result::Result<T, HubProblem>;

/// The parameters that all files of a download have in common.
pub(crate) struct Transfer<'a> {
    pub(crate) hub: &'a Hub,
    pub(crate) client: &'a Client<'a>,
    pub(crate) cache: &'a RepoCache,
    pub(crate) repo: &'a str,
    pub(crate) commit: &'a str,
    /// Whether all transfers must stop, because the download of one file has failed.
    pub(crate) stop: &'a AtomicBool,
}

impl Transfer<'_> {
    /// Downloads a file, unless its blob is in the cache. `progress` is called with the number of downloaded bytes and
    /// the size of the file.
    pub(crate) fn fetch(&self, file: &str, progress: &dyn Fn(u64, u64)) -> Result<()> {
        let metadata = self.metadata(file)?;
        let lock = self.cache.lock(&metadata.etag)?;
        // Another process may have downloaded the blob before this one got the lock.
        let blob = self.cache.blob(&metadata.etag);
        if !fs::metadata(&blob).is_ok_and(|found| found.len() == metadata.size) {
            self.download(file, &metadata, &blob, progress)?;
        }
        drop(lock);
        self.cache.snapshot(self.commit).link(file, &metadata.etag)?;
        progress(metadata.size, metadata.size);
        Ok(())
    }

    fn metadata(&self, file: &str) -> Result<Metadata> {
        retry(self.hub, self.hub.attempts, || self.client.metadata(self.repo, self.commit, file))
    }

    /// Downloads a blob to a partial file, and renames this file to the name of the blob after its size and hash have
    /// been checked.
    fn download(
        &self,
        file: &str,
        metadata: &Metadata,
        blob: &Path,
        progress: &dyn Fn(u64, u64),
    ) -> Result<()> {
        let mut partial = Partial::open(blob, metadata.size)?;
        let is_resumed = partial.done() > 0;
        let complete = |partial: &mut Partial| {
            self.complete(partial, file, metadata, progress)?;
            partial.verify(metadata)
        };
        let is_damaged = |result: &Result<()>| {
            matches!(result, Err(HubProblem::Size { .. } | HubProblem::Checksum { .. }))
        };
        let mut result = complete(&mut partial);
        if is_resumed && is_damaged(&result) {
            // The damaged bytes may come from the earlier download, so the file is downloaded again from the beginning.
            partial.rewind(0);
            result = complete(&mut partial);
        }
        match result {
            Ok(()) => partial.finish(blob),
            damaged if is_damaged(&damaged) => {
                partial.delete();
                damaged
            }
            failed => failed,
        }
    }

    /// Downloads the rest of a file. An attempt that has transferred bytes before it failed does not count as failed.
    fn complete(
        &self,
        partial: &mut Partial,
        file: &str,
        metadata: &Metadata,
        progress: &dyn Fn(u64, u64),
    ) -> Result<()> {
        let mut attempt = 1;
        loop {
            let before = partial.done();
            let Err(failure) = self.attempt(partial, file, metadata, progress) else {
                return Ok(());
            };
            attempt = if partial.done() > before { 1 } else { attempt + 1 };
            match failure {
                Failure::Transient(_, wait) if attempt <= self.hub.attempts => {
                    pause(self.hub, attempt, wait);
                }
                Failure::Transient(HubProblem::Unreachable { source, .. }, _) => {
                    let (done, total) = (partial.done(), metadata.size);
                    return Err(HubProblem::Cut { done, total, source });
                }
                failure => return Err(failure.into_problem()),
            }
        }
    }

    /// Downloads from the end of the partial file until the file is complete or the connection breaks.
    fn attempt(
        &self,
        partial: &mut Partial,
        file: &str,
        metadata: &Metadata,
        progress: &dyn Fn(u64, u64),
    ) -> std::result::Result<(), Failure> {
        let total = metadata.size;
        if partial.done() == total {
            return Ok(());
        }
        #[cfg(feature = "hf-hub")]
        if metadata.is_xet && self.hub.transport == Transport::HfHub {
            return self.attempt_xet(partial, file, total, progress);
        }
        let (first, mut body) =
            self.client.contents(self.repo, self.commit, file, partial.done())?;
        partial.rewind(first);
        let mut chunk = vec![0; CHUNK];
        while !self.stop.load(Relaxed) {
            let n = body.read(&mut chunk).map_err(broken)?;
            match partial.done() + n as u64 {
                got if got > total => {
                    return Err(Failure::Permanent(HubProblem::Size { expected: total, got }));
                }
                done if n == 0 && done == total => return Ok(()),
                // The response ended without an error, but before the end of the file.
                got if n == 0 => {
                    return Err(Failure::Transient(
                        HubProblem::Size { expected: total, got },
                        None,
                    ));
                }
                _ => partial.write(&chunk[..n]).map_err(Failure::Permanent)?,
            }
            if partial.done() < total {
                progress(partial.done(), total);
            }
        }
        Err(Failure::Permanent(HubProblem::Stopped))
    }

    /// Downloads a whole file from Xet storage.
    #[cfg(feature = "hf-hub")]
    fn attempt_xet(
        &self,
        partial: &mut Partial,
        file: &str,
        total: u64,
        progress: &dyn Fn(u64, u64),
    ) -> std::result::Result<(), Failure> {
        let remote = xet::RemoteFile { repo: self.repo, commit: self.commit, path: file };
        let staging = partial.path().with_extension("hf-hub");
        let report = |done| {
            if done < total {
                progress(done, total);
            }
        };
        let result = xet::download(self.hub, remote, &staging, self.stop, &report)
            .and_then(|path| partial.replace(&path).map_err(Failure::Permanent));
        // hf-hub does not resume interrupted downloads, so files that an interrupted download has left are deleted.
        let _ = fs::remove_dir_all(&staging);
        result
    }
}
