use std::path::Path;

use serde::Deserialize;

use super::{Source, read_json};
use crate::Result;

/// What `adapter_config.json` says of the model that an adapter belongs to.
#[derive(Deserialize)]
struct AdapterConfig {
    base_model_name_or_path: String,
    revision: Option<String>,
}

/// The model that the adapter in `dir` belongs to; nothing if there is no adapter in it, or if the model
/// itself is there too.
pub(super) fn base(dir: &Path) -> Result<Option<Source>> {
    let path = dir.join("adapter_config.json");
    if !path.is_file() || dir.join("config.json").is_file() {
        return Ok(None);
    }
    let AdapterConfig { base_model_name_or_path: base, revision } = read_json(&path)?;
    // Beside the adapter, if that is where it is; else where it would be without the adapter.
    let beside = dir.join(&base);
    if beside.exists() {
        return Ok(Some(beside.into()));
    }
    Ok(Some(match revision {
        Some(revision) if !Path::new(&base).exists() => format!("{base}@{revision}").into(),
        _ => base.into(),
    }))
}
