//! The router as clients meet it, called without a socket: what each route answers, and what it says of
//! requests that are wrong.
// A table of requests and answers has as many lines as it has rows.
#![allow(clippy::too_many_lines, clippy::unwrap_used)]

mod access;
mod common;
mod cors;
mod documents;
mod embeddings;
mod limits;
mod malformed;
mod metrics;
mod paths;
mod probes;
mod rerank;
mod tei;
