//! Fuzz targets. A target is a function that takes any bytes, calls the code of one crate with them, and panics if a
//! property does not hold.
//!
//! Two programs call the targets. `cargo fuzz run fuzz-NAME` looks for inputs that reach new code, for as long as one
//! wants. The test `smoke` runs every target for a short time with changed copies of the [seeds](Target::seeds), and with
//! the files in `fuzz/regressions`, which are inputs that have once violated a property.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a target panics if a property is violated"
)]

pub mod config;
mod files;
pub mod gguf;
pub mod index;
pub mod ragged;
pub mod rerank;
pub mod safetensors;
pub mod server;
pub mod sharing;
pub mod text;
mod tokenizer;

/// A fuzz target.
pub struct Target {
    /// The name, which is that of its module.
    pub name: &'static str,
    /// Checks the properties for one input.
    pub check: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 9] = [
    Target { name: "config", check: config::check, seeds: config::seeds },
    Target { name: "safetensors", check: safetensors::check, seeds: safetensors::seeds },
    Target { name: "index", check: index::check, seeds: index::seeds },
    Target { name: "gguf", check: gguf::check, seeds: gguf::seeds },
    Target { name: "text", check: text::check, seeds: text::seeds },
    Target { name: "rerank", check: rerank::check, seeds: rerank::seeds },
    Target { name: "ragged", check: ragged::check, seeds: ragged::seeds },
    Target { name: "sharing", check: sharing::check, seeds: sharing::seeds },
    Target { name: "server", check: server::check, seeds: server::seeds },
];
