use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use qwen3_embed_kernels::cpu::BLOCK;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::checkpoint::adapter::Adapter;
use crate::checkpoint::file::{MappedFile, read_file};
use crate::checkpoint::gguf::Header;
use crate::checkpoint::matrix::{MappedRows, Matrix, Part, Stored};
use crate::checkpoint::naming::Naming;
use crate::checkpoint::stored_type::{SAFETENSORS_TYPES, StoredType};
use crate::numerics::StoredTypes;
use crate::{Config, Error, Head, Precision, Result};

/// The tensors of a checkpoint, memory-mapped.
#[derive(Debug)]
pub(crate) struct Weights {
    /// The checkpoint's folder, or the GGUF file.
    path: PathBuf,
    tensors: HashMap<String, Entry>,
    naming: Naming,
    /// What is added to the weights of linear layers.
    adapter: Option<Adapter>,
}

/// The linear layer that may stand behind the decoder of a model with code of its own.
pub(crate) const PROJECTION: &str = "linear.weight";

/// One tensor as its file describes it: of a type that is read, or of another one.
#[derive(Debug)]
struct Entry {
    file: Arc<MappedFile>,
    range: Range<usize>,
    stored_type: std::result::Result<StoredType, Dtype>,
    shape: Vec<usize>,
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
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
        let path = dir.to_path_buf();
        match Naming::of_checkpoint(&tensors) {
            Ok(naming) => Ok(Self { path, tensors, naming, adapter: None }),
            Err(names) => Err(Error::TensorPrefix { path, names }),
        }
    }

    /// Opens one safetensors file.
    pub(crate) fn open_file(path: &Path) -> Result<Self> {
        let mut tensors = HashMap::new();
        read_header(path, &mut tensors)?;
        Ok(Self { path: path.to_path_buf(), tensors, naming: Naming::bare(), adapter: None })
    }

    /// Opens a GGUF file, which also holds the configuration.
    pub(crate) fn open_gguf(path: &Path) -> Result<(Config, Self)> {
        let file = Arc::new(MappedFile::open(path)?);
        let header = Header::parse(file.bytes(), path)?;
        let config = Config::from_gguf(&header)?;
        let mut tensors = HashMap::new();
        for tensor in header.tensors {
            let entry = Entry {
                file: file.clone(),
                range: tensor.range,
                stored_type: Ok(tensor.stored_type),
                shape: tensor.shape,
            };
            tensors.insert(tensor.name.to_owned(), entry);
        }
        let weights =
            Self { path: path.to_path_buf(), tensors, naming: Naming::Gguf, adapter: None };
        Ok((config, weights))
    }

    /// The weights with an adapter's updates added to them.
    pub(crate) fn with_adapter(self, adapter: Adapter) -> Self {
        Self { adapter: Some(adapter), ..self }
    }

    /// The names in the file, in order.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The first dimension of a tensor that is there.
    pub(crate) fn n_rows(&self, name: &str) -> Option<usize> {
        self.tensors.get(&self.name_in_file(name))?.shape.first().copied()
    }

    /// The matrices of the layers: the type and the number of values of each.
    fn layer_matrices(&self) -> impl Iterator<Item = (StoredType, u64)> {
        let prefix = match &self.naming {
            Naming::Checkpoint { prefix, .. } => format!("{prefix}layers."),
            Naming::Gguf => "blk.".to_owned(),
        };
        let of_layers = self
            .tensors
            .iter()
            .filter(move |(name, entry)| name.starts_with(&prefix) && entry.shape.len() == 2);
        of_layers.filter_map(|(_, entry)| {
            Some((entry.stored_type.ok()?, entry.shape.iter().map(|&n| n as u64).product()))
        })
    }

    /// The precision that keeps what most of the layers' weights are stored in.
    fn stored_precision(&self) -> Precision {
        let values_in = |precision| -> u64 {
            let matrices = self.layer_matrices();
            matrices.filter(|(stored, _)| stored.precision() == precision).map(|(_, n)| n).sum()
        };
        // The more exact one where there are as many of both.
        let precisions = [Precision::Int8, Precision::Bf16, Precision::F32];
        precisions.into_iter().max_by_key(|&precision| values_in(precision)).unwrap_or_default()
    }

    /// The types in which the matrices of the layers are stored, for the choice of numerics.
    pub(crate) fn layer_types(&self) -> StoredTypes {
        let precision = self.stored_precision();
        StoredTypes { precision, has_blocks: self.blocks() != [0; 2] }
    }

    /// Whether all matrices of the layers are stored in Q8_0, and so need no rounding to 8 bits.
    pub(crate) fn are_q8_0(&self) -> bool {
        self.adapter.is_none()
            && self.layer_matrices().all(|(stored, _)| stored == StoredType::Q8_0)
    }

    /// The matrices of the layers that are stored in blocks which the kernels multiply with as they are: the
    /// values of all of them, and the bytes that they take when they are packed.
    pub(crate) fn blocks(&self) -> [u64; 2] {
        let mut sizes = [0; 2];
        for (stored, n_values) in self.layer_matrices() {
            if let Some(bits) = stored.block_bits() {
                sizes[0] += n_values;
                sizes[1] += n_values / BLOCK as u64 * bits.packed_size() as u64;
            }
        }
        sizes
    }

    /// The type of each tensor, by its format's name, and its number of values.
    pub(crate) fn stored_types(&self) -> impl Iterator<Item = (String, u64)> {
        self.tensors.values().map(|entry| {
            let name = match &entry.stored_type {
                Ok(stored_type) => format!("{stored_type:?}"),
                Err(dtype) => format!("{dtype:?}"),
            };
            (name, entry.shape.iter().map(|&n| n as u64).product())
        })
    }

    /// Bytes of the files with tensors.
    pub(crate) fn file_bytes(&self) -> u64 {
        let files = self.tensors.values().map(|entry| &entry.file);
        let sizes: HashMap<_, _> =
            files.map(|file| (&file.path, file.bytes().len() as u64)).collect();
        sizes.values().sum()
    }

    /// What is behind the decoder.
    pub(crate) fn head(&self) -> Head {
        if self.contains("score.weight") {
            return Head::Score;
        }
        match self.naming {
            _ if self.contains("lm_head.weight") => Head::LmHead,
            // Its model has `model.` before the decoder's names because of the layer.
            _ if self.contains(PROJECTION) => Head::None,
            Naming::Checkpoint { .. } if !self.naming.is_of_decoder_alone() => Head::TiedLmHead,
            Naming::Checkpoint { .. } | Naming::Gguf => Head::None,
        }
    }

    /// Whether the decoder has a tensor of this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(&self.name_in_file(name))
    }

    /// Whether the tensors are named as those of a decoder by itself, which is how embedding models are
    /// saved: models that put a head on it name it.
    pub(crate) fn are_of_decoder_alone(&self) -> bool {
        self.naming.is_of_decoder_alone()
    }

    /// What the file calls the tensor `name` of the decoder or of a head, which stands beside it.
    pub(crate) fn name_in_file(&self, name: &str) -> String {
        self.naming.name_in_file(name)
    }

    /// The file that holds the tensor that it calls `name`, or the checkpoint's folder.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        let entry = self.tensors.get(name);
        entry.map_or_else(|| self.path.clone(), |entry| entry.file.path.clone())
    }

    /// The decoder's vector `name` in f32, whatever its type in the file.
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        Ok(self.stored(name, &[length])?.values())
    }

    /// The values of the matrix `name` in f32, whatever its type in the file.
    pub(crate) fn values(&self, name: &str, shape: [usize; 2]) -> Result<Vec<f32>> {
        Ok(self.stored(name, &shape)?.values())
    }

    /// Weight matrices with the same number of columns, one below the other.
    pub(crate) fn matrix(&self, parts: &[(String, usize)], n_columns: usize) -> Result<Matrix> {
        let mut read = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            let stored = self.stored(name, &[*rows, n_columns])?;
            let update = self.adapter.as_ref().and_then(|adapter| adapter.update(name));
            read.push(Part { stored, update });
        }
        Ok(Matrix { parts: read, n_rows: parts.iter().map(|(_, rows)| rows).sum(), n_columns })
    }

    /// The rows of the decoder's tensor `name`, left in the file until they are asked for.
    pub(crate) fn rows(&self, name: &str, shape: [usize; 2]) -> Result<MappedRows> {
        Ok(MappedRows { n_columns: shape[1], stored: self.stored(name, &shape)? })
    }

    /// The tensor `name`, checked against the shape that the configuration calls for.
    fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        let name = self.name_in_file(name);
        let Some(entry) = self.tensors.get(&name) else {
            return Err(Error::MissingTensor { path: self.path.clone(), name });
        };
        let path = entry.file.path.clone();
        if entry.shape != shape {
            let (expected, got) = (shape.to_vec(), entry.shape.clone());
            return Err(Error::TensorShape { path, name, expected, got });
        }
        let stored_type = entry.stored_type.map_err(|dtype| Error::TensorType {
            path,
            name,
            expected: SAFETENSORS_TYPES,
            got: format!("{dtype:?}"),
        })?;
        let (file, range) = (entry.file.clone(), entry.range.clone());
        Ok(Stored { file, range, stored_type, shape: entry.shape.clone() })
    }
}

/// Opens every shard that the index names and checks that each holds what the index says.
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

/// The index's `weight_map`: tensor names to the file names of their shards.
fn read_weight_map(index: &Path) -> Result<HashMap<String, String>> {
    let json: Value = serde_json::from_slice(&read_file(index)?)
        .map_err(|source| Error::Json { path: index.into(), source })?;
    let field = |field: String, expected: &str, got: Option<&Value>| Error::Field {
        path: index.into(),
        field,
        expected: expected.to_owned(),
        got: got.map_or_else(|| "nothing".to_owned(), Value::to_string),
    };
    let map = json.get("weight_map");
    let Some(entries) = map.and_then(Value::as_object).filter(|entries| !entries.is_empty()) else {
        return Err(field("weight_map".into(), "an object that names each tensor's file", map));
    };
    let mut weight_map = HashMap::with_capacity(entries.len());
    for (name, value) in entries {
        match value.as_str().filter(|file| is_plain_name(file)) {
            Some(file) => weight_map.insert(name.clone(), file.to_owned()),
            None => {
                let expected = "the name of a file in the same folder";
                return Err(field(format!("weight_map.{name}"), expected, Some(value)));
            }
        };
    }
    Ok(weight_map)
}

/// Whether `file` names something in the folder itself: no other folder, no way up.
fn is_plain_name(file: &str) -> bool {
    let mut components = Path::new(file).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
}

/// Maps a safetensors file and adds its tensors to `tensors`.
fn read_header(path: &Path, tensors: &mut HashMap<String, Entry>) -> Result<()> {
    let corrupt = |source| Error::Safetensors { path: path.to_path_buf(), source };
    let file = Arc::new(MappedFile::open(path)?);
    // No length or offset is taken from the file unchecked: this verifies that every tensor lies
    // within the map and fits its shape and type.
    let (header_size, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(corrupt)?;
    // The header follows its own length, a number of eight bytes.
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
