//! Transfers the contents of files through the official hf-hub crate.
//!
//! Only contents are transferred this way. Listings, sizes and hashes come from the built-in client, because hf-hub 1.0
//! follows the redirect of a large file and so loses the SHA-256 that the Hub announced. The cache, resuming and
//! verification are this crate's own, because hf-hub resumes nothing and verifies nothing.
//!
//! hf-hub is asynchronous. Each transfer has its own runtime on the thread that runs the transfer, and that thread
//! belongs to this crate, so a caller may be inside another runtime.

use std::fs;
use std::future::Future;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::{AsyncRead, AsyncReadExt, TryStreamExt};
use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::{HFClient, HFError, split_id};
use tokio::runtime::{self, Runtime};
use tokio::time::timeout;

use crate::error::{Failure, HubProblem, broken, unusable};
use crate::hub::Hub;
use crate::refusal::Refusal;

/// How often a Xet transfer reports progress and checks whether it should stop.
const TICK: Duration = Duration::from_millis(100);

/// A file of a commit.
#[derive(Clone, Copy)]
pub(crate) struct RemoteFile<'a> {
    pub(crate) repo: &'a str,
    pub(crate) commit: &'a str,
    pub(crate) path: &'a str,
    /// The size in bytes.
    pub(crate) size: u64,
}

/// Requests the contents of a file from byte `start` on.
///
/// Returns the offset of the first byte that the server sends, and a reader. The offset is 0 if the server does not
/// support ranges.
pub(crate) fn contents(
    hub: &Hub,
    file: RemoteFile<'_>,
    start: u64,
) -> Result<(u64, Box<dyn Read>), Failure> {
    let session = Session::new(hub, &hub.cache)?;
    let (owner, name) = split_id(file.repo);
    let repository = session.client.model(owner, name);
    let request = repository
        .download_file_stream()
        .filename(file.path)
        .revision(file.commit)
        .maybe_range((start > 0).then_some(start..file.size))
        .send();
    let (length, stream) = match session.wait(request).map_err(broken)? {
        Ok(response) => response,
        Err(HFError::Http { context }) if context.status.as_u16() == 416 && start > 0 => {
            return contents(hub, file, 0);
        }
        Err(error) => return Err(failure(hub, file, error)),
    };
    // hf-hub does not tell whether the server has sent the requested range. The length of a whole file means that it has
    // not.
    let first = if length == Some(file.size) { 0 } else { start };
    let body = Box::pin(stream.map_err(io::Error::other).into_async_read());
    Ok((first, Box::new(Body { session, body })))
}

/// Downloads a file in Xet storage to a new file below the folder `staging`, and returns its path.
///
/// `progress` is called with the bytes that are downloaded. The transfer stops if `stop` is set, or if no bytes arrive
/// within the timeout.
pub(crate) fn download_xet(
    hub: &Hub,
    file: RemoteFile<'_>,
    staging: &Path,
    stop: &AtomicBool,
    progress: &dyn Fn(u64),
) -> Result<PathBuf, Failure> {
    let session = Session::new(hub, staging)?;
    let (owner, name) = split_id(file.repo);
    let repository = session.client.model(owner, name);
    let counter = Arc::new(Counter::default());
    let request = repository
        .download_file()
        .filename(file.path)
        .revision(file.commit)
        .progress(counter.clone())
        .send();
    let path = session.runtime.block_on(async {
        let mut request = pin!(request);
        let (mut done, mut since) = (0, Instant::now());
        loop {
            if let Ok(result) = timeout(TICK, request.as_mut()).await {
                return result.map_err(|error| failure(hub, file, error));
            }
            let now = counter.0.load(Relaxed);
            if now > done {
                (done, since) = (now, Instant::now());
                progress(done);
            }
            if stop.load(Relaxed) {
                return Err(Failure::Permanent(HubProblem::Stopped));
            }
            if since.elapsed() > hub.timeout {
                return Err(broken(io::ErrorKind::TimedOut.into()));
            }
        }
    })?;
    // hf-hub returns a symbolic link to the blob in its own cache.
    fs::canonicalize(&path).map_err(|source| Failure::Permanent(HubProblem::Io { path, source }))
}

/// A client of hf-hub, and the runtime that it runs on.
struct Session {
    runtime: Runtime,
    client: HFClient,
    timeout: Duration,
}

impl Session {
    /// A session that writes to the folder `cache`, if it writes files.
    fn new(hub: &Hub, cache: &Path) -> Result<Self, Failure> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(broken)?;
        // Without a token, hf-hub would read one from the environment. A token that cannot be a header is not sent.
        let token = hub.token.as_deref().unwrap_or("\n");
        let client = HFClient::builder()
            .endpoint(hub.endpoint.as_str())
            .token(token)
            .cache_dir(cache)
            .user_agent(concat!("qwen3-embed/", env!("CARGO_PKG_VERSION")))
            .retry_max_attempts(hub.attempts as usize - 1)
            // hf-hub waits twice this long before the second attempt, at most.
            .retry_base_delay(hub.retry_wait / 2)
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self { runtime, client, timeout: hub.timeout })
    }

    /// Runs a future on the runtime. hf-hub itself has no timeouts.
    fn wait<T>(&self, future: impl Future<Output = T>) -> io::Result<T> {
        let result = self.runtime.block_on(async { timeout(self.timeout, future).await });
        result.map_err(|_| io::ErrorKind::TimedOut.into())
    }
}

/// The body of a response as a blocking reader.
struct Body {
    session: Session,
    body: Pin<Box<dyn AsyncRead>>,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.session.wait(self.body.read(buffer))?
    }
}

/// The bytes that hf-hub has reported as downloaded.
#[derive(Default)]
struct Counter(AtomicU64);

impl ProgressHandler for Counter {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Download(DownloadEvent::Progress { files }) = event {
            let done = files.iter().map(|file| file.bytes_completed).max();
            self.0.fetch_max(done.unwrap_or(0), Relaxed);
        }
    }
}

/// The failure of a request. It is permanent, because hf-hub has already retried the request.
fn failure(hub: &Hub, file: RemoteFile<'_>, error: HFError) -> Failure {
    let context = match error {
        HFError::Http { context }
        | HFError::AuthRequired { context }
        | HFError::Forbidden { context }
        | HFError::Conflict { context }
        | HFError::RateLimited { context, .. }
        | HFError::RepoNotFound { context: Some(context), .. }
        | HFError::RevisionNotFound { context: Some(context), .. }
        | HFError::EntryNotFound { context: Some(context), .. } => context,
        HFError::EntryNotFound { .. } => return Failure::Permanent(HubProblem::NoSuchFile),
        HFError::Io(source) => {
            return Failure::Permanent(HubProblem::Io { path: hub.cache.clone(), source });
        }
        HFError::MalformedResponse { what, .. } => return unusable(what),
        error => {
            let source = Box::new(error);
            return Failure::Permanent(HubProblem::Unreachable { proxy: None, source });
        }
    };
    let reason = context.status.canonical_reason().unwrap_or("no reason given");
    let refusal = Refusal {
        status: context.status.as_u16(),
        code: context.error_code.as_deref(),
        message: context.server_message.clone().unwrap_or_else(|| reason.to_owned()),
        retry_after: None,
    };
    Failure::Permanent(refusal.failure(hub, file.repo, file.commit).into_problem())
}
