use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

use crate::Error;

/// A model of the hub could not be had: which one, what of it, and why.
#[derive(Debug)]
#[non_exhaustive]
pub struct HubError {
    /// The model, as it was asked for.
    pub model: String,
    /// The file of its repository, if it is about one.
    pub file: Option<String>,
    /// Where it was asked for, if anywhere. Never has a token in it.
    pub url: Option<String>,
    /// What is wrong, and what can be done.
    pub problem: HubProblem,
}

/// What was wrong with a model of the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubProblem {
    /// No network is to be used, and something is not in the cache.
    #[error(
        "not in the cache at {}, and HF_HUB_OFFLINE forbids to download it: download it once without",
        cache.display()
    )]
    Offline {
        /// The cache.
        cache: PathBuf,
    },
    /// The hub cannot be reached.
    #[error(
        "cannot reach the hub{}: check the network, HF_ENDPOINT and the proxy's settings",
        proxy.as_ref().map_or_else(String::new, |proxy| format!(" through the proxy of `{proxy}`"))
    )]
    Unreachable {
        /// The variable that names the proxy and its value, if there is one.
        proxy: Option<String>,
        /// What the connection failed of.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A variable of the environment names a proxy that cannot be used.
    #[error(
        "`{variable}` is `{value}`, which is no proxy: expected http://, https://, socks4://, socks4a://, \
         socks5:// or socks5h://, and a host"
    )]
    Proxy {
        /// The variable.
        variable: String,
        /// Its value, without a user's name and password.
        value: String,
    },
    /// The hub does not know the model, or hides that it does. (Status 401 or 404.)
    #[error(
        "neither is there such a folder on this machine, nor does the hub show a model of this name \
         (status {status}: {message}): check the spelling, and if it is a private one, set HF_TOKEN to a \
         token that may read it"
    )]
    NoSuchModel {
        /// The status.
        status: u16,
        /// What the hub said.
        message: String,
    },
    /// The token is not valid. (Status 401.)
    #[error(
        "the hub does not accept the token (status {status}: {message}): check HF_TOKEN, or make a new one \
         in your account"
    )]
    BadToken {
        /// The status.
        status: u16,
        /// What the hub said.
        message: String,
    },
    /// The model is given only to those who have accepted its terms. (Status 401 or 403.)
    #[error(
        "access to this model is restricted (status {status}: {message}): accept its terms on {page} and \
         set HF_TOKEN to a token of that account"
    )]
    Gated {
        /// The model's page.
        page: String,
        /// The status.
        status: u16,
        /// What the hub said.
        message: String,
    },
    /// The token does not permit it. (Status 403.)
    #[error(
        "access is forbidden (status {status}: {message}): check what the token in HF_TOKEN may read"
    )]
    Forbidden {
        /// The status.
        status: u16,
        /// What the hub said.
        message: String,
    },
    /// The repository has no such branch, tag or commit. (Status 404.)
    #[error("the model has no revision `{revision}` (status {status}: {message})")]
    NoSuchRevision {
        /// The revision that was asked for.
        revision: String,
        /// The status.
        status: u16,
        /// What the hub said.
        message: String,
    },
    /// The repository has no such file. (Status 404, or it is not in the listing.)
    #[error("the model's repository has no such file")]
    NoSuchFile,
    /// The hub refused with another status, at the last attempt too.
    #[error("the hub answered with status {status} ({message}): try again later")]
    Status {
        /// The status.
        status: u16,
        /// What the hub said.
        message: String,
    },
    /// The connection broke, at every attempt to go on.
    #[error("the connection broke after {done} of {total} bytes: run it again to go on from there")]
    Cut {
        /// Bytes that are there, and stay.
        done: u64,
        /// Bytes of the file.
        total: u64,
        /// What the connection broke of.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no room for the file.
    #[error("no room in {} for {total} bytes, {done} of them are there", dir.display())]
    DiskFull {
        /// The folder of the file.
        dir: PathBuf,
        /// Bytes that are there, and stay.
        done: u64,
        /// Bytes of the file.
        total: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file of the cache cannot be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// What was downloaded is longer or shorter than the hub said. It was thrown away.
    #[error("{got} bytes came where the hub announced {expected}: they were thrown away")]
    Size {
        /// Bytes that the hub announced.
        expected: u64,
        /// Bytes that came.
        got: u64,
    },
    /// What was downloaded is not what the hub has. It was thrown away.
    #[error("what came has the SHA-256 {got}, not {expected}: it was thrown away")]
    Checksum {
        /// The hash that the hub announced.
        expected: String,
        /// The hash of what came.
        got: String,
    },
    /// The answer is not one of the hub.
    #[error("not an answer of the hub ({what}): check HF_ENDPOINT and the proxy's settings")]
    Unusable {
        /// What is wrong with it.
        what: String,
    },
    /// The repository has no weights that are read.
    #[error(
        "there are no weights: expected model.safetensors, model.safetensors.index.json, \
         adapter_model.safetensors or a GGUF file"
    )]
    NoWeights,
    /// The repository has several GGUF files, or none of the kind that was asked for.
    #[error("name one of its GGUF files: {}", choices.join(", "))]
    WhichGguf {
        /// The ids of all.
        choices: Vec<String>,
    },
    /// Several files are downloaded at once, and another one failed.
    #[error("stopped, because another file failed")]
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

impl Error {
    /// Whether an id means several files of its repository.
    pub(super) fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Hub(error) if matches!(error.problem, HubProblem::WhichGguf { .. }))
    }
}

/// Why one request gave nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may work the next time, after this long if the hub said so.
    Passing(HubProblem, Option<Duration>),
    /// It will not.
    Final(HubProblem),
}

impl Failure {
    pub(super) fn into_problem(self) -> HubProblem {
        match self {
            Self::Passing(problem, _) | Self::Final(problem) => problem,
        }
    }
}

/// A connection that broke in the middle of a response: it need not the next time.
pub(super) fn broken(error: io::Error) -> Failure {
    let source = Box::new(error);
    Failure::Passing(HubProblem::Unreachable { proxy: None, source }, None)
}

/// The answer is not one of the hub.
pub(super) fn unusable(what: impl Into<String>) -> Failure {
    Failure::Final(HubProblem::Unusable { what: what.into() })
}
