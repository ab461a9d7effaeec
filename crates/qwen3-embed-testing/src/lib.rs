//! Test support for the crates of this workspace. It is not published.
//!
//! | module | contents |
//! |---|---|
//! | [`fixtures`] | paths of the fixtures; copies of fixtures that a test may change |
//! | [`golden`] | golden files: vectors and scores that another implementation has computed |
//! | [`vectors`] | unit vectors, cosines and differences, computed in f64 |
//! | [`checkpoint`] | checkpoints of any shape with random weights |
//! | [`texts`] | random texts, as token ids |
//! | [`mutate`] | random changes of inputs |
//! | [`oracle`] | a simple Qwen3 forward pass that consists of candle-nn's layers; tests compare models with it |
//!
//! The crate depends on no other crate of the workspace. All crates can therefore use it in their unit tests, and the
//! oracle has no code in common with the model that it checks.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod fixtures;
pub mod golden;
pub mod mutate;
pub mod oracle;
pub mod texts;
pub mod vectors;
