//! A checkpoint: its files, its configuration, its tensors.

pub(crate) mod adapter;
pub(crate) mod class;
pub(crate) mod config;
pub(crate) mod fields;
pub(crate) mod file;
pub(crate) mod gguf;
pub(crate) mod matrix;
pub(crate) mod modules;
pub(crate) mod naming;
pub(crate) mod stored_type;
pub(crate) mod summary;
pub(crate) mod tensors;
pub(crate) mod vocabulary;
pub(crate) mod weights;
