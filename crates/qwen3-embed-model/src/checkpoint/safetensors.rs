//! Safetensors files: a single file, or the shards that an index lists.

use std::collections::HashMap;
use std::path::{Component, Path};
use std::sync::Arc;

use safetensors::SafeTensors;
use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::checkpoint::file::MappedFile;
use crate::checkpoint::naming::Naming;
use crate::checkpoint::stored_type::StoredType;
use crate::checkpoint::weights::{Entry, Weights};
use crate::{Error, Result};

/// Opens `model.safetensors` in `dir`, or the shards that `model.safetensors.index.json` lists.
pub(crate) fn open_folder(dir: &Path) -> Result<Weights> {
    let index = dir.join("model.safetensors.index.json");
    let single = dir.join("model.safetensors");
    let mut tensors = HashMap::new();
    if single.is_file() {
        read_header(&single, &mut tensors)?;
    } else if index.is_file() {
        read_shards(dir, &index, &mut tensors)?;
    } else {
        return Err(Error::NoWeights { dir: dir.to_path_buf() });
    }
    match Naming::of_checkpoint(&tensors) {
        Ok(naming) => Ok(Weights::new(dir, tensors, naming)),
        Err(names) => Err(Error::TensorPrefix { path: dir.to_path_buf(), names }),
    }
}

/// Opens one safetensors file, whose tensors have the checkpoint's own names.
pub(crate) fn open_file(path: &Path) -> Result<Weights> {
    let mut tensors = HashMap::new();
    read_header(path, &mut tensors)?;
    Ok(Weights::new(path, tensors, Naming::bare()))
}

/// Opens every shard that the index names, and checks that each tensor is in the shard that the index names for it.
fn read_shards(dir: &Path, index: &Path, tensors: &mut HashMap<String, Entry>) -> Result<()> {
    let weight_map = read_weight_map(index)?;
    let mut files: Vec<&String> = weight_map.values().collect();
    files.sort_unstable();
    files.dedup();
    for file in files {
        read_header(&dir.join(file), tensors)?;
    }
    for (name, file) in &weight_map {
        let path = dir.join(file);
        if tensors.get(name).is_none_or(|entry| entry.file.path != path) {
            return Err(Error::MissingTensor { path, name: name.clone() });
        }
    }
    Ok(())
}

/// The index's `weight_map`: the file of each tensor.
fn read_weight_map(index: &Path) -> Result<HashMap<String, String>> {
    let fields = Fields::read(index)?;
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
fn read_header(path: &Path, tensors: &mut HashMap<String, Entry>) -> Result<()> {
    let corrupt = |source| Error::Safetensors { path: path.to_path_buf(), source };
    let file = Arc::new(MappedFile::open(path)?);
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
            let (first, second) = (earlier.file.path.clone(), path.to_path_buf());
            return Err(Error::DuplicateTensor { name, first, second });
        }
    }
    Ok(())
}
