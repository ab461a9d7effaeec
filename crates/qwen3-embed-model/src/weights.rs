use std::collections::HashMap;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use qwen3_embed_kernels::cpu::{Arithmetic, Kernels, Layout, PackedWeight};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::{Error, Result};

/// How weights are kept and multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Precision {
    /// Weights and products in f32: exact, four bytes for each weight.
    #[default]
    F32,
    /// Weights in bf16, as the published checkpoints store them: two bytes for each. Where the
    /// processor multiplies bf16, activations are rounded to bf16 for every product and attention,
    /// and sums are f32. Elsewhere products are in f32, with the same result as `F32` where the
    /// checkpoint is in bf16, and as fast.
    Bf16,
    /// Weights in 8 bits with a scale for every 32, and activations brought into 16 bits for every
    /// product: a little over one byte for each weight, and the fastest. Attention, norms and sums
    /// are f32, token embeddings as the checkpoint stores them. The norms' weights become part of the
    /// products behind them, and the features with the largest activations, which a few tokens that
    /// pass the layers while they are loaded show, have weights of twice as many bits.
    Int8,
}

impl Precision {
    /// How this processor multiplies with weights of this precision.
    pub fn arithmetic(self) -> Arithmetic {
        match self {
            Self::F32 => Arithmetic::F32,
            Self::Bf16 => Kernels::best().bf16_weights,
            Self::Int8 => Arithmetic::Int8,
        }
    }
}

/// The tensors of a checkpoint, memory-mapped.
#[derive(Debug)]
pub(crate) struct Weights {
    dir: PathBuf,
    tensors: HashMap<String, Stored>,
    prefix: &'static str,
}

/// One tensor as it lies in its file.
#[derive(Debug, Clone)]
struct Stored {
    file: Arc<MappedFile>,
    range: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

#[derive(Debug)]
struct MappedFile {
    path: PathBuf,
    map: Mmap,
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
        // Embedding checkpoints name tensors from the decoder's root; causal-LM ones put it at
        // `model.`.
        let prefix = if tensors.contains_key("model.embed_tokens.weight") { "model." } else { "" };
        Ok(Self { dir: dir.to_path_buf(), tensors, prefix })
    }

    /// Whether the decoder has a tensor of this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(&format!("{}{name}", self.prefix))
    }

    /// The file that holds the decoder's tensor `name`, or the checkpoint's folder.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        let stored = self.tensors.get(&format!("{}{name}", self.prefix));
        stored.map_or_else(|| self.dir.clone(), |stored| stored.file.path.clone())
    }

    /// The decoder's vector `name` in f32, whatever its type in the file.
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        let stored = self.stored(name, &[length])?;
        let mut values = vec![0f32; length];
        stored.read(0, &mut values);
        Ok(values)
    }

    /// Weight matrices with the same number of columns, one below the other.
    pub(crate) fn matrix(&self, parts: &[(String, usize)], n_columns: usize) -> Result<Matrix> {
        let mut stored = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            stored.push(self.stored(name, &[*rows, n_columns])?);
        }
        Ok(Matrix { parts: stored, n_rows: parts.iter().map(|(_, rows)| rows).sum(), n_columns })
    }

    /// The rows of the decoder's tensor `name`, left in the file until they are asked for.
    pub(crate) fn rows(&self, name: &str, shape: [usize; 2]) -> Result<MappedRows> {
        Ok(MappedRows { n_columns: shape[1], stored: self.stored(name, &shape)? })
    }

    /// The tensor `name`, checked against the shape that the configuration calls for.
    fn stored(&self, name: &str, shape: &[usize]) -> Result<Stored> {
        let name = format!("{}{name}", self.prefix);
        let Some(stored) = self.tensors.get(&name) else {
            return Err(Error::MissingTensor { path: self.dir.clone(), name });
        };
        let path = stored.file.path.clone();
        if stored.shape != shape {
            let (expected, got) = (shape.to_vec(), stored.shape.clone());
            return Err(Error::TensorShape { path, name, expected, got });
        }
        if !matches!(stored.dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32) {
            return Err(Error::TensorType { path, name, got: format!("{:?}", stored.dtype) });
        }
        Ok(stored.clone())
    }
}

/// A weight matrix in its file.
pub(crate) struct Matrix {
    /// What lies one below the other.
    parts: Vec<Stored>,
    n_rows: usize,
    n_columns: usize,
}

impl Matrix {
    /// Packs the matrix in f32.
    pub(crate) fn pack_f32(&self, layout: Layout) -> PackedWeight {
        PackedWeight::pack_f32(self.n_rows, self.n_columns, layout, |o, row| self.read_row(o, row))
    }

    /// Packs the matrix in bf16.
    pub(crate) fn pack_bf16(&self, layout: Layout) -> PackedWeight {
        PackedWeight::pack_bf16(self.n_rows, self.n_columns, layout, |o, row| self.read_row(o, row))
    }

    /// Packs the matrix in 8 bits, its columns multiplied with `columns` if there are any, and those
    /// of `precise` in twice as many bits.
    pub(crate) fn pack_int8(
        &self,
        layout: Layout,
        columns: Option<&[f32]>,
        precise: &[usize],
    ) -> PackedWeight {
        PackedWeight::pack_int8(self.n_rows, self.n_columns, layout, precise, |o, row| {
            self.read_row(o, row);
            for (weight, column) in row.iter_mut().zip(columns.into_iter().flatten()) {
                *weight *= column;
            }
        })
    }

    /// Lets the system have back the memory that the file's pages take, now that they were packed.
    pub(crate) fn release(&self) {
        self.parts.iter().for_each(Stored::release);
    }

    fn read_row<T: Element>(&self, mut row_idx: usize, out: &mut [T]) {
        for part in &self.parts {
            if row_idx < part.shape[0] {
                return part.read(row_idx * out.len(), out);
            }
            row_idx -= part.shape[0];
        }
    }
}

/// A matrix whose rows are read from the memory-mapped file when they are asked for.
#[derive(Debug)]
pub(crate) struct MappedRows {
    stored: Stored,
    n_columns: usize,
}

impl MappedRows {
    /// The rows at `ids` in f32, [ids, columns]. Every id must be below the number of rows.
    pub(crate) fn gather(&self, ids: &[u32]) -> Vec<f32> {
        let mut values = vec![0f32; ids.len() * self.n_columns];
        for (row, id) in values.chunks_exact_mut(self.n_columns).zip(ids) {
            self.stored.read(*id as usize * self.n_columns, row);
        }
        values
    }
}

impl Stored {
    /// Lets the system have back the memory that the tensor's pages take, now that it was packed.
    fn release(&self) {
        #[cfg(unix)]
        // SAFETY: the map is read-only and backed by its file: what is read again comes from there.
        // Advice that the system does not take costs memory and nothing else.
        let _ = unsafe {
            let (start, length) = (self.range.start, self.range.len());
            self.file.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, length)
        };
    }

    /// Converts the elements from `start` on into `out`. `Weights::stored` has checked the type.
    fn read<T: Element>(&self, start: usize, out: &mut [T]) {
        let bytes = &self.file.map[self.range.clone()];
        if self.dtype == Dtype::F32 {
            let bytes = &bytes[start * 4..][..out.len() * 4];
            let (values, _) = bytes.as_chunks::<4>();
            out.iter_mut().zip(values).for_each(|(o, &v)| *o = T::of_f32(f32::from_le_bytes(v)));
            return;
        }
        let bytes = &bytes[start * 2..][..out.len() * 2];
        let (values, _) = bytes.as_chunks::<2>();
        let pairs = out.iter_mut().zip(values);
        if self.dtype == Dtype::BF16 {
            pairs.for_each(|(o, &v)| *o = T::of_bf16(bf16::from_le_bytes(v)));
        } else {
            pairs.for_each(|(o, &v)| *o = T::of_f32(f16::from_le_bytes(v).to_f32()));
        }
    }
}

/// A type that weights are kept in.
trait Element: Copy + Default + Send + Sync {
    fn of_f32(value: f32) -> Self;
    fn of_bf16(value: bf16) -> Self;
}

impl Element for f32 {
    fn of_f32(value: f32) -> Self {
        value
    }
    fn of_bf16(value: bf16) -> Self {
        value.to_f32()
    }
}

impl Element for bf16 {
    fn of_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn of_bf16(value: bf16) -> Self {
        value
    }
}

/// A whole file.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })
}

/// Opens every shard that the index names and checks that each holds what the index says.
fn read_shards(dir: &Path, index: &Path, tensors: &mut HashMap<String, Stored>) -> Result<()> {
    let weight_map = read_weight_map(index)?;
    let mut files: Vec<&String> = weight_map.values().collect();
    files.sort_unstable();
    files.dedup();
    for file in files {
        read_header(&dir.join(file), tensors)?;
    }
    for (name, file) in &weight_map {
        let path = dir.join(file);
        if tensors.get(name).is_none_or(|stored| stored.file.path != path) {
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
fn read_header(path: &Path, tensors: &mut HashMap<String, Stored>) -> Result<()> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let corrupt = |source| Error::Safetensors { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(io)?;
    // SAFETY: the map is read-only. As with every memory-mapped file,
    // soundness asks that nobody truncates or rewrites it in place while the model lives; the crate's
    // documentation of `Model::load` says so. No length or offset is taken from the file unchecked:
    // `read_metadata` verifies that every tensor lies within the map and fits its shape and type.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    let (header_size, metadata) = SafeTensors::read_metadata(&map).map_err(corrupt)?;
    // The header follows its own length, a number of eight bytes.
    let data = header_size + 8;
    let file = Arc::new(MappedFile { path: path.to_path_buf(), map });
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let stored = Stored {
            file: file.clone(),
            range: data + start..data + end,
            dtype: info.dtype,
            shape: info.shape.clone(),
        };
        if let Some(earlier) = tensors.insert(name.clone(), stored) {
            let (first, second) = (earlier.file.path.clone(), path.to_path_buf());
            return Err(Error::DuplicateTensor { name, first, second });
        }
    }
    Ok(())
}
