use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

/// Error of a request to the hub or of an access to the cache. It names the model, the file and the reason.
#[derive(Debug)]
#[non_exhaustive]
pub struct HubError {
    /// The model's id, as the caller gave it.
    pub model: String,
    /// The file in the model's repository, if the error is about one file.
    pub file: Option<String>,
    /// The URL that was requested, if a request was sent. Never contains the token.
    pub url: Option<String>,
    /// The reason.
    pub problem: HubProblem,
}

/// The reason why a request to the hub or an access to the cache failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubProblem {
    /// Requests are turned off ([`Hub::offline`](crate::Hub::offline)), and a needed file is not in the cache.
    #[error(
        "not in the cache at {}, and `HF_HUB_OFFLINE` forbids downloads: unset it and download the model once",
        cache.display()
    )]
    Offline {
        /// The folder of the cache.
        cache: PathBuf,
    },
    /// No connection to the hub could be made, or no data arrived within the timeout.
    #[error(
        "cannot reach the hub{}: check the network, `HF_ENDPOINT` and the proxy settings",
        proxy.as_ref().map_or_else(String::new, |proxy| format!(" through the proxy of `{proxy}`"))
    )]
    Unreachable {
        /// The environment variable that sets the proxy, and its value, if a proxy was used.
        proxy: Option<String>,
        /// The error of the connection.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An environment variable names a proxy that cannot be used.
    #[error(
        "`{variable}` is `{value}`, which is not a proxy URL: expected http://, https://, socks4://, \
         socks4a://, socks5:// or socks5h://, followed by a host"
    )]
    Proxy {
        /// The environment variable.
        variable: String,
        /// The variable's value, without user name and password.
        value: String,
    },
    /// The hub has no such model, or the model is private and the token gives no access to it. (Status 401 or 404.)
    #[error(
        "there is no such folder on this machine, and the hub has no model of this name to which the token gives access \
         (status {status}: {message}): check the spelling; for a private model, set `HF_TOKEN` to a token that gives \
         access to the model"
    )]
    NoSuchModel {
        /// The HTTP status.
        status: u16,
        /// The hub's message.
        message: String,
    },
    /// The token is not valid. (Status 401.)
    #[error(
        "the hub rejects the token (status {status}: {message}): check `HF_TOKEN`, or create a new token in \
         your account"
    )]
    BadToken {
        /// The HTTP status.
        status: u16,
        /// The hub's message.
        message: String,
    },
    /// The terms of the model must be accepted before the model can be downloaded. (Status 401 or 403.)
    #[error(
        "access to this model is restricted (status {status}: {message}): accept its terms at {page} and \
         set `HF_TOKEN` to a token of the same account"
    )]
    Gated {
        /// The URL of the model's page.
        page: String,
        /// The HTTP status.
        status: u16,
        /// The hub's message.
        message: String,
    },
    /// The token lacks a permission. (Status 403.)
    #[error(
        "access is forbidden (status {status}: {message}): check the permissions of the token in `HF_TOKEN`"
    )]
    Forbidden {
        /// The HTTP status.
        status: u16,
        /// The hub's message.
        message: String,
    },
    /// The repository has no such branch, tag or commit. (Status 404.)
    #[error("the model has no revision `{revision}` (status {status}: {message})")]
    NoSuchRevision {
        /// The revision that was requested.
        revision: String,
        /// The HTTP status.
        status: u16,
        /// The hub's message.
        message: String,
    },
    /// The repository has no such file. (Status 404, or the commit does not list the file.)
    #[error("the model's repository has no such file")]
    NoSuchFile,
    /// The hub responded with another status that is an error, also in the last attempt.
    #[error("the hub responded with status {status} ({message}): try again later")]
    Status {
        /// The HTTP status.
        status: u16,
        /// The hub's message.
        message: String,
    },
    /// The connection broke during a download, and every attempt to resume failed.
    #[error(
        "the connection broke after {done} of {total} bytes: run the download again to resume it"
    )]
    Cut {
        /// Bytes that are on disk. The next download resumes from there.
        done: u64,
        /// Bytes of the whole file.
        total: u64,
        /// The error of the connection.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The disk is full.
    #[error("no space left in {}: the file has {total} bytes, {done} of them are written", dir.display())]
    DiskFull {
        /// The folder of the file.
        dir: PathBuf,
        /// Bytes that are on disk. The next download resumes from there.
        done: u64,
        /// Bytes of the whole file.
        total: u64,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file or folder of the cache cannot be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The downloaded file has another size than the hub announced. The file was deleted.
    #[error("expected {expected} bytes, got {got}: the file was deleted, download it again")]
    Size {
        /// The announced size in bytes.
        expected: u64,
        /// The size of the downloaded file in bytes.
        got: u64,
    },
    /// The downloaded file has another SHA-256 than the hub announced. The file was deleted.
    #[error("expected the SHA-256 {expected}, got {got}: the file was deleted, download it again")]
    Checksum {
        /// The announced hash, in hexadecimal.
        expected: String,
        /// The hash of the downloaded file, in hexadecimal.
        got: String,
    },
    /// The response does not follow the hub's protocol: another server may have sent it.
    #[error("not a response of the hub ({what}): check `HF_ENDPOINT` and the proxy settings")]
    Unusable {
        /// Which part of the response is wrong.
        what: String,
    },
    /// The download was stopped because another file of the same call failed.
    #[error("stopped because another file failed")]
    Stopped,
}

impl fmt::Display for HubError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, file, url, problem } = self;
        write!(f, "{model}")?;
        if let Some(file) = file {
            write!(f, ", {file}")?;
        }
        if let Some(url) = url {
            write!(f, " (from {url})")?;
        }
        write!(f, ": {problem}")
    }
}

impl std::error::Error for HubError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.problem)
    }
}

/// The reason why an attempt of a request failed, and whether another attempt can help.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Another attempt can help. The duration is the wait from the header `Retry-After`, if the response had this
    /// header.
    Transient(HubProblem, Option<Duration>),
    /// Another attempt would fail too.
    Permanent(HubProblem),
}

impl Failure {
    pub(crate) fn into_problem(self) -> HubProblem {
        match self {
            Self::Transient(problem, _) | Self::Permanent(problem) => problem,
        }
    }
}

/// The failure of a connection that broke during a response.
pub(crate) fn broken(error: io::Error) -> Failure {
    let source = Box::new(error);
    Failure::Transient(HubProblem::Unreachable { proxy: None, source }, None)
}

/// The failure of a response that does not follow the hub's protocol.
pub(crate) fn unusable(what: impl Into<String>) -> Failure {
    Failure::Permanent(HubProblem::Unusable { what: what.into() })
}
