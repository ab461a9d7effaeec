use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qwen3_embed_kernels::cpu::BLOCK;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use safetensors::Dtype;

use crate::checkpoint::file::MappedFile;
use crate::checkpoint::gguf::Header;
use crate::checkpoint::low_rank::LowRankUpdate;
use crate::checkpoint::matrix::{MappedRows, Matrix, Part, Stored};
use crate::checkpoint::naming::Naming;
use crate::checkpoint::stored_type::{SAFETENSORS_TYPES, StoredType};
use crate::numerics::StoredTypes;
use crate::precision::Precision;
use crate::{Error, Result};

/// The tensors of a checkpoint, memory-mapped.
#[derive(Debug)]
pub(crate) struct Weights {
    /// The folder of the checkpoint, or the file.
    path: PathBuf,
    tensors: HashMap<String, Entry>,
    pub(super) naming: Naming,
    /// The updates of a LoRA adapter, by the names of the weights that they are added to.
    updates: HashMap<String, Arc<LowRankUpdate>>,
}

/// The weight of the projection that may follow the decoder of a model with its own code.
pub(crate) const PROJECTION: &str = "linear.weight";

/// The number of parts of a matrix that are checked when it is loaded: see [`Stored::find_not_finite`].
const SAMPLE: usize = 64;

/// The description of a tensor in the header of its file. The type may be one that is not supported.
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

    /// The names of all tensors in the file, sorted.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The first dimension of a tensor, or `None` if there is no such tensor.
    pub(crate) fn n_rows(&self, name: &str) -> Option<usize> {
        self.tensors.get(&self.name_in_file(name))?.shape.first().copied()
    }

    /// The type and the number of values of each matrix in the layers.
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

    /// The types in which the matrices of the layers are stored, for the choice of numerics.
    pub(crate) fn layer_types(&self) -> StoredTypes {
        StoredTypes { precision: self.stored_precision(), has_blocks: self.blocks() != [0; 2] }
    }

    /// The precision of the type in which most weights of the layers are stored.
    fn stored_precision(&self) -> Precision {
        let values_in = |precision| -> u64 {
            let matrices = self.layer_matrices();
            matrices.filter(|(stored, _)| stored.precision() == precision).map(|(_, n)| n).sum()
        };
        // If two precisions have equally many weights, the later and more exact one is chosen.
        let precisions = [Precision::Int8, Precision::Bf16, Precision::F32];
        precisions.into_iter().max_by_key(|&precision| values_in(precision)).unwrap_or_default()
    }

    /// Whether all matrices of the layers are stored in Q8_0. If so, `Int8` can use them without rounding.
    pub(crate) fn are_q8_0(&self) -> bool {
        self.updates.is_empty()
            && self.layer_matrices().all(|(stored, _)| stored == StoredType::Q8_0)
    }

    /// The size of the matrices in the layers whose stored blocks the kernels use without conversion: the number of
    /// values, and the bytes after packing.
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

    /// The type and the number of values of each tensor. Types are named as in their file format.
    pub(crate) fn stored_types(&self) -> impl Iterator<Item = (String, u64)> {
        self.tensors.values().map(|entry| {
            let sizes = entry.shape.iter().map(|&n| n as u64);
            (entry.type_name(), sizes.fold(1, u64::saturating_mul))
        })
    }

    /// The size in bytes of all files with tensors.
    pub(crate) fn file_bytes(&self) -> u64 {
        let files = self.tensors.values().map(|entry| &entry.file);
        let sizes: HashMap<_, _> =
            files.map(|file| (&file.path, file.bytes().len() as u64)).collect();
        sizes.values().sum()
    }

    /// Whether there is a tensor `name`.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(&self.name_in_file(name))
    }

    /// Whether the names of the decoder's tensors show that the model has no head: see [`Naming::has_no_head_name`].
    pub(crate) fn show_no_head(&self) -> bool {
        self.naming.has_no_head_name()
    }

    /// The name in the file of the tensor `name`.
    pub(crate) fn name_in_file(&self, name: &str) -> String {
        self.naming.name_in_file(name)
    }

    /// The file that contains the tensor with this name in the file, or the path of the checkpoint.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        let entry = self.tensors.get(name);
        entry.map_or_else(|| self.path.clone(), |entry| entry.file.path.clone())
    }

    /// The values of the vector `name`, converted to f32.
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        Ok(self.finite(name, &[length], usize::MAX)?.values())
    }

    /// The values of the matrix `name`, converted to f32.
    pub(crate) fn values(&self, name: &str, shape: [usize; 2]) -> Result<Vec<f32>> {
        Ok(self.finite(name, &shape, usize::MAX)?.values())
    }

    /// Weight matrices with the same number of columns, concatenated by rows. `parts` are their names and numbers of
    /// rows.
    pub(crate) fn matrix(&self, parts: &[(String, usize)], n_columns: usize) -> Result<Matrix> {
        let mut read = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            let stored = self.finite(name, &[*rows, n_columns], SAMPLE)?;
            let update = self.updates.get(name).cloned();
            read.push(Part { stored, update });
        }
        Ok(Matrix { parts: read, n_rows: parts.iter().map(|(_, rows)| rows).sum(), n_columns })
    }

    /// The rows of the matrix `name`, which are read from the file when they are used.
    pub(crate) fn rows(&self, name: &str, shape: [usize; 2]) -> Result<MappedRows> {
        Ok(MappedRows { n_columns: shape[1], stored: self.finite(name, &shape, SAMPLE)? })
    }

    /// The rows `ids` of the matrix `name`, converted to f32. Every id must be below the number of rows.
    pub(crate) fn gather(&self, name: &str, shape: [usize; 2], ids: &[u32]) -> Result<Vec<f32>> {
        let rows = MappedRows { n_columns: shape[1], stored: self.stored(name, &shape)? };
        let values = rows.gather(ids);
        match values.iter().position(|value| !value.is_finite()) {
            Some(at) => {
                let index = ids[at / shape[1]] as usize * shape[1] + at % shape[1];
                Err(self.not_finite(&self.name_in_file(name), index, values[at]))
            }
            None => Ok(values),
        }
    }

    /// The size of the matrix `name` in bytes.
    pub(crate) fn n_bytes(&self, name: &str, shape: [usize; 2]) -> Result<u64> {
        Ok(self.stored(name, &shape)?.range.len() as u64)
    }

    /// Reads every value of every tensor whose type is supported.
    ///
    /// # Errors
    ///
    /// [`Error::WeightNotFinite`] if a value is not finite.
    pub(crate) fn verify(&self) -> Result<()> {
        let found = self.names().into_par_iter().find_map_first(|name| {
            let stored = self.tensors.get(name)?.stored()?;
            let (index, value) = stored.find_not_finite(usize::MAX)?;
            Some(self.not_finite(name, index, value))
        });
        found.map_or(Ok(()), Err)
    }

    /// The tensor `name`, of whose values at most `max_parts` parts are checked: see [`Stored::find_not_finite`].
    fn finite(&self, name: &str, shape: &[usize], max_parts: usize) -> Result<Stored> {
        let stored = self.stored(name, shape)?;
        match stored.find_not_finite(max_parts) {
            Some((index, value)) => Err(self.not_finite(&self.name_in_file(name), index, value)),
            None => Ok(stored),
        }
    }

    /// An error about a value of the tensor with this name in the file.
    fn not_finite(&self, name: &str, index: usize, value: f32) -> Error {
        Error::WeightNotFinite { path: self.path_of(name), name: name.to_owned(), index, value }
    }

    /// The tensor `name`, which must have this shape.
    fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        let name = self.name_in_file(name);
        let Some(entry) = self.tensors.get(&name) else {
            return Err(Error::MissingTensor { path: self.path.clone(), name });
        };
        let path = || entry.file.path.clone();
        if entry.shape != shape {
            let (expected, got) = (shape.to_vec(), entry.shape.clone());
            return Err(Error::TensorShape { path: path(), name, expected, got });
        }
        entry.stored().ok_or_else(|| Error::TensorType {
            path: path(),
            name,
            expected: SAFETENSORS_TYPES,
            got: entry.type_name(),
        })
    }
}

impl Entry {
    /// The tensor in its file, or `None` if its type is not supported.
    fn stored(&self) -> Option<Stored> {
        let stored_type = self.stored_type.ok()?;
        let (file, range) = (self.file.clone(), self.range.clone());
        Some(Stored { file, range, stored_type, shape: self.shape.clone() })
    }

    /// The type, named as in the file format.
    fn type_name(&self) -> String {
        match &self.stored_type {
            Ok(stored_type) => format!("{stored_type:?}"),
            Err(dtype) => format!("{dtype:?}"),
        }
    }
}
