use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Source, has_weights, read_json};
use crate::{Error, Result};

pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// The fields of `adapter_config.json` that name the base model.
#[derive(Deserialize)]
struct AdapterConfig {
    base_model_name_or_path: String,
    revision: Option<String>,
}

/// The base model of an adapter.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) source: Source,
    /// The name in `adapter_config.json`.
    name: String,
    /// The path of `adapter_config.json`.
    path: PathBuf,
}

/// The base model of the adapter in `dir`. `None` if `dir` has no adapter, or also has the weights of a whole model.
pub(super) fn base(dir: &Path) -> Result<Option<Base>> {
    let path = dir.join(ADAPTER_CONFIG);
    if !path.is_file() || (dir.join("config.json").is_file() && has_weights(dir)) {
        return Ok(None);
    }
    let AdapterConfig { base_model_name_or_path: name, revision } = read_json(&path)?;
    // A path is relative to the adapter's folder, or else to the current folder.
    let beside = dir.join(&name);
    let source = match revision {
        _ if beside.exists() => beside.into(),
        Some(revision) if !Path::new(&name).exists() => format!("{name}@{revision}").into(),
        _ => name.clone().into(),
    };
    Ok(Some(Base { source, name, path }))
}

impl Base {
    /// Adds to an error of opening the base model which file names it.
    pub(super) fn named<T>(self, opened: Result<T>) -> Result<T> {
        opened.map_err(|source| match source {
            error @ Error::TwoAdapters { .. } => error,
            source => {
                let Self { name: base, path, .. } = self;
                Error::AdapterBase { path, base, source: Box::new(source) }
            }
        })
    }
}
