use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Source, has_weights, read_json};
use crate::{Error, Result};

pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// What `adapter_config.json` says of the model that an adapter belongs to.
#[derive(Deserialize)]
struct AdapterConfig {
    base_model_name_or_path: String,
    revision: Option<String>,
}

/// The model that an adapter belongs to.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) source: Source,
    /// The name as `adapter_config.json` has it.
    name: String,
    /// The file that names it.
    path: PathBuf,
}

/// The model that the adapter in `dir` belongs to; nothing if there is no adapter in it, or if the model
/// itself, with its weights, is there too.
pub(super) fn base(dir: &Path) -> Result<Option<Base>> {
    let path = dir.join(ADAPTER_CONFIG);
    if !path.is_file() || (dir.join("config.json").is_file() && has_weights(dir)) {
        return Ok(None);
    }
    let AdapterConfig { base_model_name_or_path: name, revision } = read_json(&path)?;
    // Beside the adapter, if that is where it is; else where it would be without the adapter.
    let beside = dir.join(&name);
    let source = match revision {
        _ if beside.exists() => beside.into(),
        Some(revision) if !Path::new(&name).exists() => format!("{name}@{revision}").into(),
        _ => name.clone().into(),
    };
    Ok(Some(Base { source, name, path }))
}

impl Base {
    /// An error of opening the base, with where its name comes from.
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
