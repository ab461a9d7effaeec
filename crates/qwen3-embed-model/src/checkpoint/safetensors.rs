//! Safetensors files: a single file, or the shards that an index lists.

use std::collections::HashMap;
use std::path::{Component, Path};
use std::sync::Arc;

use safetensors::SafeTensors;
use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::checkpoint::folder::Folder;
use crate::checkpoint::naming::Naming;
use crate::checkpoint::stored_type::StoredType;
use crate::checkpoint::weights::{Entry, Weights};
use crate::{Error, Result};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Opens `model.safetensors` in a folder, or the shards that `model.safetensors.index.json` lists.
pub(crate) fn open_folder(folder: &Folder) -> Result<Weights> {
    let mut tensors = HashMap::new();
    if folder.contains(SINGLE) {
        read_header(folder, SINGLE, &mut tensors)?;
    } else if folder.contains(INDEX) {
        read_shards(folder, &mut tensors)?;
    } else {
        return Err(Error::NoWeights { dir: folder.path().to_path_buf() });
    }
    match Naming::of_checkpoint(&tensors) {
        Ok(naming) => Ok(Weights::new(folder.path(), tensors, naming)),
        Err(names) => Err(Error::TensorPrefix { path: folder.path().to_path_buf(), names }),
    }
}

/// Opens one safetensors file of a folder, whose tensors have the checkpoint's own names.
pub(crate) fn open_file(folder: &Folder, file: &str) -> Result<Weights> {
    let mut tensors = HashMap::new();
    read_header(folder, file, &mut tensors)?;
    Ok(Weights::new(&folder.path_of(file), tensors, Naming::bare()))
}

/// Opens every shard that the index names, and checks that each tensor is in the shard that the index names for it.
fn read_shards(folder: &Folder, tensors: &mut HashMap<String, Entry>) -> Result<()> {
    let weight_map = read_weight_map(folder)?;
    let mut files: Vec<&String> = weight_map.values().collect();
    files.sort_unstable();
    files.dedup();
    for file in files {
        read_header(folder, file, tensors)?;
    }
    for (name, file) in &weight_map {
        let path = folder.path_of(file);
        if tensors.get(name).is_none_or(|entry| entry.file.path != path) {
            return Err(Error::MissingTensor { path, name: name.clone() });
        }
    }
    Ok(())
}

/// The index's `weight_map`: the file of each tensor.
fn read_weight_map(folder: &Folder) -> Result<HashMap<String, String>> {
    let fields = Fields::read(folder, INDEX)?;
    let map = fields.get("weight_map").and_then(Value::as_object);
    let Some(entries) = map.filter(|entries| !entries.is_empty()) else {
        return Err(fields.error("weight_map", "an object that names the file of each tensor"));
    };
    let mut weight_map = HashMap::with_capacity(entries.len());
    for (name, value) in entries {
        match value.as_str().filter(|file| is_plain_name(file)) {
            Some(file) => weight_map.insert(name.clone(), file.to_owned()),
            None => {
                let field = format!("weight_map.{name}");
                let expected = "the name of a file in the same folder";
                return Err(fields.error_with(&field, expected, value.to_string()));
            }
        };
    }
    Ok(weight_map)
}

/// Whether `file` is the name of a file in the same folder, without any path.
fn is_plain_name(file: &str) -> bool {
    let mut components = Path::new(file).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}

/// Maps a safetensors file, parses its header, and adds its tensors to `tensors`.
fn read_header(folder: &Folder, file: &str, tensors: &mut HashMap<String, Entry>) -> Result<()> {
    let file = Arc::new(folder.map(file)?);
    let corrupt = |source| Error::Safetensors { path: file.path.clone(), source };
    // The parser checks that every tensor lies within the file, and that its length fits its shape and type.
    let (header_size, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(corrupt)?;
    // The file begins with the length of the header, a number of eight bytes.
    let data = header_size + 8;
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let entry = Entry {
            file: file.clone(),
            range: data + start..data + end,
            stored_type: StoredType::of_safetensors(info.dtype).ok_or(info.dtype),
            shape: info.shape.clone(),
        };
        if let Some(earlier) = tensors.insert(name.clone(), entry) {
            let (first, second) = (earlier.file.path.clone(), file.path.clone());
            return Err(Error::DuplicateTensor { name, first, second });
        }
    }
    Ok(())
}
