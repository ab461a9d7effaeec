use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qwen3_embed_kernels::cpu::BLOCK;
use safetensors::Dtype;

use crate::checkpoint::file::MappedFile;
use crate::checkpoint::gguf::Header;
use crate::checkpoint::low_rank::LowRankUpdate;
use crate::checkpoint::matrix::{MappedRows, Matrix, Part, Stored};
use crate::checkpoint::naming::Naming;
use crate::checkpoint::stored_type::{SAFETENSORS_TYPES, StoredType};
use crate::precision::Precision;
use crate::{Error, Result};

/// The tensors of a checkpoint, memory-mapped.
#[derive(Debug)]
pub(crate) struct Weights {
    /// The checkpoint's folder, or the GGUF file.
    path: PathBuf,
    tensors: HashMap<String, Entry>,
    pub(super) naming: Naming,
    /// What an adapter adds to the weights, by their names.
    updates: HashMap<String, Arc<LowRankUpdate>>,
}

/// The linear layer that may stand behind the decoder of a model with code of its own.
pub(crate) const PROJECTION: &str = "linear.weight";

/// One tensor as its file describes it: of a type that is read, or of another one.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) file: Arc<MappedFile>,
    /// The bytes of the file that hold the values.
    pub(crate) range: Range<usize>,
    pub(crate) stored_type: std::result::Result<StoredType, Dtype>,
    pub(crate) shape: Vec<usize>,
}

impl Weights {
    /// The tensors of a checkpoint at `path`, a folder or a file, under the names that `naming` describes.
    pub(crate) fn new(path: &Path, tensors: HashMap<String, Entry>, naming: Naming) -> Self {
        Self { path: path.to_path_buf(), tensors, naming, updates: HashMap::new() }
    }

    /// The tensors that the header of a GGUF file describes.
    pub(crate) fn of_gguf(header: &Header) -> Self {
        let mut tensors = HashMap::new();
        for tensor in &header.tensors {
            let entry = Entry {
                file: header.file().clone(),
                range: tensor.range.clone(),
                stored_type: Ok(tensor.stored_type),
                shape: tensor.shape.clone(),
            };
            tensors.insert(tensor.name.clone(), entry);
        }
        Self::new(header.path(), tensors, Naming::Gguf)
    }

    /// The same weights, to which `updates` are added when they are read. Keys are the names of the weights.
    pub(crate) fn with_updates(self, updates: HashMap<String, Arc<LowRankUpdate>>) -> Self {
        Self { updates, ..self }
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
    pub(crate) fn stored_precision(&self) -> Precision {
        let values_in = |precision| -> u64 {
            let matrices = self.layer_matrices();
            matrices.filter(|(stored, _)| stored.precision() == precision).map(|(_, n)| n).sum()
        };
        // The more exact one where there are as many of both.
        let precisions = [Precision::Int8, Precision::Bf16, Precision::F32];
        precisions.into_iter().max_by_key(|&precision| values_in(precision)).unwrap_or_default()
    }

    /// Whether all matrices of the layers are stored in Q8_0, and so need no rounding to 8 bits.
    pub(crate) fn are_q8_0(&self) -> bool {
        self.updates.is_empty()
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
            let update = self.updates.get(name).cloned();
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
