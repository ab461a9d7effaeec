use std::path::Path;

use qwen3_embed_model::{Adapter, Folder};

use super::Source;
use super::files::{ADAPTER_CONFIG, has_weights};
use super::place::Place;
use crate::{Error, Result};

/// An adapter, and the base model that the adapter names.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) adapter: Box<Adapter>,
    pub(super) source: Source,
    /// The name of the base model in `adapter_config.json`.
    name: String,
}

/// The adapter at `place`, with its base model. `None` if `place` is not a folder on disk or contains no adapter, or if
/// it contains a whole model beside the adapter.
pub(super) fn base(place: &Place) -> Result<Option<Base>> {
    let Place::OnDisk(dir) = place else { return Ok(None) };
    let has = |file: &str| dir.join(file).is_file();
    if !dir.is_dir() || !has(ADAPTER_CONFIG) || (has("config.json") && has_weights(dir)) {
        return Ok(None);
    }
    let adapter = Adapter::open(Folder::on_disk(dir))?;
    let fields = adapter.fields();
    let field = "base_model_name_or_path";
    let name = fields.string(field)?.ok_or_else(|| fields.error(field, "a string"))?.to_owned();
    // A relative path is looked for in the adapter's folder first.
    let in_folder = dir.join(&name);
    let source = match fields.string("revision")? {
        _ if in_folder.exists() => in_folder.into(),
        Some(revision) if !Path::new(&name).exists() => format!("{name}@{revision}").into(),
        _ => name.clone().into(),
    };
    Ok(Some(Base { adapter: Box::new(adapter), source, name }))
}

impl Base {
    /// Adds the adapter's path to an error that occurred while the base model was opened.
    pub(super) fn named<T>(&self, opened: Result<T>) -> Result<T> {
        opened.map_err(|source| match source {
            error @ Error::TwoAdapters { .. } => error,
            source => {
                let path = self.adapter.fields().path().to_path_buf();
                Error::AdapterBase { path, base: self.name.clone(), source: Box::new(source) }
            }
        })
    }
}
