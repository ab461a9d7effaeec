//! Downloads files in Xet storage through the official hf-hub crate.
//!
//! Xet stores a file as chunks that several files may share. hf-hub asks the hub where the chunks are, downloads the
//! chunks in parallel, and assembles the file. hf-hub is asynchronous, so each download creates a runtime. The runtime
//! runs on a thread that this crate has started, because the caller's thread may already run another runtime.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::{HFClient, HFError, split_id};
use tokio::runtime;
use tokio::time::timeout;

use crate::error::{Failure, HubProblem, broken, unusable};
use crate::hub::Hub;
use crate::refusal::Refusal;

/// How often a download reports progress and checks whether it should stop.
const TICK: Duration = Duration::from_millis(100);

/// A file of a commit.
#[derive(Clone, Copy)]
pub(crate) struct RemoteFile<'a> {
    pub(crate) repo: &'a str,
    pub(crate) commit: &'a str,
    pub(crate) path: &'a str,
}

/// Downloads a file to a new file below the folder `staging`, and returns the new file's path.
///
/// `progress` is called with the number of downloaded bytes. The download ends early if `stop` is true.
pub(crate) fn download(
    hub: &Hub,
    file: RemoteFile<'_>,
    staging: &Path,
    stop: &AtomicBool,
    progress: &dyn Fn(u64),
) -> Result<PathBuf, Failure> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(broken)?;
    let (owner, name) = split_id(file.repo);
    let repository = client(hub, staging)?.model(owner, name);
    let events = Arc::new(Events::default());
    let request = repository
        .download_file()
        .filename(file.path)
        .revision(file.commit)
        .progress(events.clone())
        .send();
    let path = runtime.block_on(async {
        let mut request = pin!(request);
        let (mut n_events, mut since) = (0, Instant::now());
        loop {
            if let Ok(result) = timeout(TICK, request.as_mut()).await {
                return result.map_err(|error| failure(hub, file, error));
            }
            progress(events.done.load(Relaxed));
            if stop.load(Relaxed) {
                return Err(Failure::Permanent(HubProblem::Stopped));
            }
            // hf-hub's requests to the hub have no timeout, so a timeout is implemented here: while such a request
            // waits, there are no progress events. During the transfer of chunks, there are always events, and hf-hub's
            // own timeouts apply.
            let n = events.count.load(Relaxed);
            if n > n_events {
                (n_events, since) = (n, Instant::now());
            } else if since.elapsed() > hub.timeout {
                return Err(broken(io::ErrorKind::TimedOut.into()));
            }
        }
    })?;
    // hf-hub returns a symbolic link to the blob in its own cache.
    fs::canonicalize(&path).map_err(|source| Failure::Permanent(HubProblem::Io { path, source }))
}

/// Creates a client of hf-hub that uses the folder `cache` for its files.
fn client(hub: &Hub, cache: &Path) -> Result<HFClient, Failure> {
    // If no token is given, hf-hub reads a token from the environment. To prevent this, it is given a token that is not
    // a valid header value, and therefore is not sent.
    let token = hub.token.as_deref().unwrap_or("\n");
    let client = HFClient::builder()
        .endpoint(hub.endpoint.as_str())
        .token(token)
        .cache_dir(cache)
        .user_agent(concat!("qwen3-embed/", env!("CARGO_PKG_VERSION")))
        .retry_max_attempts(hub.attempts as usize - 1)
        // hf-hub waits at most twice this long before the second attempt.
        .retry_base_delay(hub.retry_wait / 2);
    client.build().map_err(|error| unusable(error.to_string()))
}

/// The progress that hf-hub reports.
#[derive(Default)]
struct Events {
    count: AtomicU64,
    /// Bytes that have been downloaded.
    done: AtomicU64,
}

impl ProgressHandler for Events {
    fn on_progress(&self, event: &ProgressEvent) {
        self.count.fetch_add(1, Relaxed);
        if let ProgressEvent::Download(DownloadEvent::Progress { files }) = event {
            let done = files.iter().map(|file| file.bytes_completed).max();
            self.done.fetch_max(done.unwrap_or(0), Relaxed);
        }
    }
}

/// The failure of a download. It is permanent, because hf-hub has already retried the request that failed.
fn failure(hub: &Hub, file: RemoteFile<'_>, error: HFError) -> Failure {
    let context = match error {
        HFError::Http { context }
        | HFError::AuthRequired { context }
        | HFError::Forbidden { context }
        | HFError::RateLimited { context, .. }
        | HFError::RepoNotFound { context: Some(context), .. } => context,
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
