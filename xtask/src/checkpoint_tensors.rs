//! The tensors of a checkpoint folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};

/// Reads all safetensors files of a folder. The keys are the names of the tensors, without the prefix `model.`.
pub(crate) fn read(folder: &Path) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let loaded = candle_core::safetensors::load(&path, &Device::Cpu)
                .with_context(|| path.display().to_string())?;
            tensors.extend(loaded.into_iter().map(|(name, tensor)| {
                (name.strip_prefix("model.").unwrap_or(&name).to_owned(), tensor)
            }));
        }
    }
    ensure!(!tensors.is_empty(), "{} has no safetensors files", folder.display());
    Ok(tensors)
}
