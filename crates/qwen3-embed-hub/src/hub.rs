use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::proxy::Proxies;

/// Settings for downloads from the hub: its address, the cache, the token, retries and timeouts.
///
/// Other programs for the hub use the same cache in the same layout, so a file has to be downloaded only once for all
/// of them. A file appears in the cache after its size has been checked, and its SHA-256 if the hub announces one. The
/// next download resumes an interrupted download. Several files are downloaded at the same time.
///
/// If all needed files are in the cache and the revision is a commit hash, no request is sent. Otherwise one request
/// asks for the newest commit. If this commit cannot be fetched, for example because the network is down, the token is
/// not valid, the model was removed or the cache cannot be written, the files in the cache are used and a warning is
/// logged through `tracing`.
#[derive(Clone)]
pub struct Hub {
    pub(crate) cache: PathBuf,
    pub(crate) endpoint: String,
    pub(crate) token: Option<String>,
    pub(crate) offline: bool,
    pub(crate) attempts: u32,
    pub(crate) retry_wait: Duration,
    pub(crate) timeout: Duration,
    pub(crate) proxies: Proxies,
    pub(crate) certificates: Option<PathBuf>,
    #[cfg(feature = "hf-hub")]
    pub(crate) transport: Transport,
    on_download: Option<Arc<Callback>>,
}

type Callback = dyn Fn(&Progress<'_>) + Send + Sync;

/// The progress of the download of a file. The file is in the cache when `done` equals `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The file's path in its repository.
    pub name: &'a str,
    /// Bytes that have been downloaded.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// The client that downloads the contents of files.
#[cfg(feature = "hf-hub")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// The built-in HTTP client.
    #[default]
    Http,
    /// The official hf-hub crate for files in Xet storage, and the built-in client for all other files.
    ///
    /// The built-in client still requests listings, sizes and hashes, and a file that hf-hub has downloaded is verified
    /// like any other file. The differences are:
    ///
    /// - An interrupted download starts again from the beginning.
    /// - hf-hub takes proxies and certificates from the environment, even if the [`Hub`] was made by [`Hub::new`].
    /// - hf-hub has its own rules for retrying transfers of chunks, and its own timeouts of several minutes.
    /// - hf-hub sends reports about the speed of transfers to the storage server. They contain no names of files or
    ///   users. The environment variable `HF_HUB_DISABLE_TELEMETRY=1` disables these reports.
    HfHub,
}

impl Hub {
    /// Settings for the public hub with this cache, without a token and without a proxy. The environment is not read.
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
            #[cfg(feature = "hf-hub")]
            transport: Transport::Http,
            on_download: None,
        }
    }

    /// Sets the address of the hub, for a mirror.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = url.into().trim_end_matches('/').to_owned();
        self
    }

    /// Sets the access token. The token is sent to the hub's endpoint and to no other host.
    pub fn token(mut self, token: impl AsRef<str>) -> Self {
        self.token = Some(token.as_ref().trim().to_owned()).filter(|token| !token.is_empty());
        self
    }

    /// Sets whether only the cache is used, without any request. Default: false.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Sets how many attempts in a row may fail before a request is an error, at least 1. Default: 5.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Sets the wait before the second attempt. The wait doubles with each further attempt. If a response has the
    /// header `Retry-After`, its value is used instead. Default: 500 ms.
    pub fn retry_wait(mut self, wait: Duration) -> Self {
        self.retry_wait = wait;
        self
    }

    /// Sets how long an attempt waits for the next data before the attempt fails. Default: 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the client that downloads the contents of files. Default: [`Transport::Http`].
    #[cfg(feature = "hf-hub")]
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// Sets a callback for the progress of downloads.
    ///
    /// The callback is called on several threads. For each file, it is called repeatedly during the download, and once
    /// when the file is in the cache. It is not called for files that were in the cache before.
    pub fn on_download(mut self, callback: impl Fn(&Progress<'_>) + Send + Sync + 'static) -> Self {
        self.on_download = Some(Arc::new(callback));
        self
    }

    /// Calls the callback, if one is set.
    pub(crate) fn report(&self, progress: &Progress<'_>) {
        if let Some(callback) = &self.on_download {
            callback(progress);
        }
    }
}

impl fmt::Debug for Hub {
    /// Omits the token, and the proxies because their URLs may contain passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("has_token", &self.token.is_some())
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}
