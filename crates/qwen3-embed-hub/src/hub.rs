use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::proxy::Proxies;

/// Settings for downloads from the hub: its address, the cache, the token, retries and timeouts.
///
/// The cache is the one that the hub's other programs use, in the same layout, so that a file which one program has
/// downloaded is found by all of them. A file appears in the cache after its size, and where the hub announces one its
/// SHA-256, have been checked. An interrupted download is resumed by the next one. Several files are downloaded at a
/// time.
///
/// If all needed files are in the cache and the revision is a commit hash, no request is sent. Otherwise one request
/// asks for the newest commit. If that fails, because the network is down, the token is not valid, the model was
/// removed or the cache cannot be written, the files in the cache are used and a warning is logged through `tracing`.
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

/// How much of a file is downloaded. The file is in the cache when `done` equals `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The file's path in its repository.
    pub name: &'a str,
    /// Bytes that are downloaded.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// What downloads the contents of files.
#[cfg(feature = "hf-hub")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transport {
    /// The built-in HTTP client.
    #[default]
    Http,
    /// The official hf-hub crate for files in Xet storage, and the built-in client for all other files.
    ///
    /// Listings, sizes and hashes come from the built-in client, and the downloaded file is verified as any other. The
    /// differences are:
    ///
    /// - An interrupted download starts again from the beginning.
    /// - hf-hub takes proxies and certificates from the environment, even if the [`Hub`] was made by [`Hub::new`].
    /// - hf-hub retries transfers of chunks by rules of its own, and waits for silent connections for minutes.
    /// - hf-hub reports the speed of transfers to the storage server, without names of files or users. The environment
    ///   variable `HF_HUB_DISABLE_TELEMETRY=1` disables these reports.
    HfHub,
}

impl Hub {
    /// The public hub with this cache, without a token and without a proxy. The environment is not read.
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

    /// Sets whether only the cache is used and the network never. Default: false.
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Sets how many attempts in a row may fail before a request is an error, at least 1. Default: 5.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Sets the wait before the second attempt. The wait doubles with each further attempt. A wait that the hub asks for
    /// takes precedence. Default: 500 ms.
    pub fn retry_wait(mut self, wait: Duration) -> Self {
        self.retry_wait = wait;
        self
    }

    /// Sets how long a connection may be silent before the attempt fails. Default: 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets what downloads the contents of files. Default: [`Transport::Http`].
    #[cfg(feature = "hf-hub")]
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// Sets a callback for the progress of downloads.
    ///
    /// The callback runs on several threads: repeatedly for each file, and once when the file is in the cache. It is not
    /// called for files that were in the cache before.
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
