//! The router as clients meet it, called without a socket: what each route answers, and what it says of
//! requests that are wrong.
#![allow(clippy::unwrap_used)]

mod access;
mod coding;
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
