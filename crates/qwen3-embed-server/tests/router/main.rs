//! Tests of the router without a socket: the response of each route, and the error for each invalid request.
#![allow(clippy::unwrap_used)]

mod access;
mod common;
mod compatibility;
mod content_encoding;
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
