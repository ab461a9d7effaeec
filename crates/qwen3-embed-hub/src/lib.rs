//! Downloads files of model repositories from the Hugging Face Hub (the *hub*) into the cache that programs for the hub
//! share.
//!
//! [`Hub`] holds the settings: the cache, the endpoint, the token, timeouts, retries, and whether the network may be
//! used. [`Repository`] is one repository at one revision, which a [`RepoId`] identifies. The caller implements
//! [`Selection`] to choose the files. This crate does not read the contents of the files.
//!
//! [`Repository::newest`] decides between the cache and the network:
//!
//! 1. If the revision is a commit hash and the cache is complete, no request is sent.
//! 2. If [`Hub::offline`] is set, the cache is used. [`HubProblem::Offline`] is returned if a file is missing.
//! 3. Otherwise one request asks for the newest commit and its files, and missing files are downloaded.
//! 4. If step 3 fails and the cache contains a usable earlier commit, the cached commit is used and a warning is
//!    logged.
//!
//! # Transports
//!
//! Requests are sent by a small blocking HTTP client without an async runtime. With the feature `hf-hub`, the method
//! `Hub::transport` can choose the official hf-hub crate for files in Xet storage, the hub's storage for large files.
//! The cache, offline mode, and the verification of sizes and SHA-256 hashes are the same with either transport.
//!
//! # Features
//!
//! - `client`, on by default: everything that uses the network or the cache. Without this feature, the crate contains
//!   only [`RepoId`] and [`is_relative_path`].
//! - `hf-hub`: the transport through the hf-hub crate.
#![forbid(unsafe_code)]

#[cfg(feature = "client")]
mod cache;
#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
mod environment;
#[cfg(feature = "client")]
mod error;
#[cfg(feature = "client")]
mod hub;
mod id;
#[cfg(feature = "client")]
mod metadata;
#[cfg(feature = "client")]
mod partial;
#[cfg(feature = "client")]
mod proxy;
#[cfg(feature = "client")]
mod redirect;
#[cfg(feature = "client")]
mod refusal;
#[cfg(feature = "client")]
mod repository;
#[cfg(feature = "client")]
mod retry;
#[cfg(feature = "client")]
mod transfer;
#[cfg(feature = "hf-hub")]
mod xet;

#[cfg(feature = "client")]
pub use cache::Snapshot;
#[cfg(feature = "client")]
pub use error::{HubError, HubProblem};
#[cfg(feature = "hf-hub")]
pub use hub::Transport;
#[cfg(feature = "client")]
pub use hub::{Hub, Progress};
pub use id::{RepoId, is_relative_path};
#[cfg(feature = "client")]
pub use repository::{Cached, Commit, Newest, Repository, Selection};
