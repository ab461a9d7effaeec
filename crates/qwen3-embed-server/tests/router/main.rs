//! The router, called without a socket: the responses of each route, and the errors of invalid requests.
#![allow(clippy::unwrap_used)]

mod access;
mod coding;
mod cohere;
mod common;
mod compatibility;
mod cors;
mod documents;
mod embeddings;
mod limits;
mod logs;
mod malformed;
mod metrics;
mod names;
mod paths;
mod probes;
mod rerank;
mod tei;
