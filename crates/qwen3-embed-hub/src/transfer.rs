//! Downloads one file of a commit into the cache.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::cache::RepoCache;
use crate::client::Client;
use crate::error::{Failure, HubProblem, broken};
#[cfg(feature = "hf-hub")]
use crate::hf_transport;
use crate::hub::{Hub, Transport};
use crate::metadata::Metadata;
use crate::partial::{CHUNK, Partial};
use crate::retry::{pause, retry};

type Result<T> = std::result::Result<T, HubProblem>;

/// What all files of a download share.
pub(crate) struct Transfer<'a> {
    pub(crate) hub: &'a Hub,
    pub(crate) client: &'a Client<'a>,
    pub(crate) cache: &'a RepoCache,
    pub(crate) repo: &'a str,
    pub(crate) commit: &'a str,
    /// Set to stop all transfers, when one file has failed.
    pub(crate) stop: &'a AtomicBool,
}

impl Transfer<'_> {
    /// Downloads a file, unless its blob is in the cache. `progress` is called with the bytes that are downloaded and the
    /// bytes of the file.
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

    /// Downloads a blob. The blob gets its name after its size and hash have been checked.
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
            // The damage may be in the part of the earlier download.
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

    /// Downloads the rest of a file. Only attempts that transfer no bytes count as failed.
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
        let start = partial.done();
        let (first, mut body): (u64, Box<dyn Read>) = match self.hub.transport {
            Transport::Http => {
                let (first, body) = self.client.contents(self.repo, self.commit, file, start)?;
                (first, Box::new(body))
            }
            #[cfg(feature = "hf-hub")]
            Transport::HfHub if metadata.is_xet => {
                return self.attempt_xet(partial, file, metadata, progress);
            }
            #[cfg(feature = "hf-hub")]
            Transport::HfHub => hf_transport::contents(self.hub, self.remote(file, total), start)?,
        };
        partial.rewind(first);
        let mut chunk = vec![0; CHUNK];
        while !self.stop.load(Relaxed) {
            let n = body.read(&mut chunk).map_err(broken)?;
            match partial.done() + n as u64 {
                got if got > total => {
                    return Err(Failure::Permanent(HubProblem::Size { expected: total, got }));
                }
                done if n == 0 && done == total => return Ok(()),
                // The response ended without an error, but too early.
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

    /// Downloads a whole file in Xet storage through hf-hub.
    #[cfg(feature = "hf-hub")]
    fn attempt_xet(
        &self,
        partial: &mut Partial,
        file: &str,
        metadata: &Metadata,
        progress: &dyn Fn(u64, u64),
    ) -> std::result::Result<(), Failure> {
        let total = metadata.size;
        let staging = partial.path().with_extension("hf-hub");
        let report = |done| {
            if done < total {
                progress(done, total);
            }
        };
        let remote = self.remote(file, total);
        let downloaded = hf_transport::download_xet(self.hub, remote, &staging, self.stop, &report);
        let replaced =
            downloaded.and_then(|path| partial.replace(&path).map_err(Failure::Permanent));
        // hf-hub cannot resume an interrupted transfer.
        let _ = fs::remove_dir_all(&staging);
        replaced
    }

    #[cfg(feature = "hf-hub")]
    fn remote<'a>(&'a self, path: &'a str, size: u64) -> hf_transport::RemoteFile<'a> {
        hf_transport::RemoteFile { repo: self.repo, commit: self.commit, path, size }
    }
}
