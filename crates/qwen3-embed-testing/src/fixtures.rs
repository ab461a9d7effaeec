//! Paths of the fixtures, and copies of fixtures that a test may change.
//!
//! The functions panic if a file cannot be read or written, because a test cannot continue without the file.
#![expect(clippy::unwrap_used, reason = "a test without its fixture fails")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

pub use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView};
use serde_json::Value;
use tempfile::TempDir;

/// The path of a file or folder in `fixtures/`, such as `models/base`.
///
/// The environment variable `QWEN3_EMBED_FIXTURES` replaces the repository's folder `fixtures` by another folder. Test
/// programs that run on a machine without the repository need this.
pub fn path(name: impl AsRef<Path>) -> PathBuf {
    let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures");
    let fixtures = env::var_os("QWEN3_EMBED_FIXTURES").map(PathBuf::from);
    fixtures.unwrap_or_else(|| repository.into()).join(name)
}

/// The path of an embedding model in `fixtures/models`: its folder, or its GGUF file if it has one.
pub fn model(name: &str) -> PathBuf {
    checkpoint(path("models").join(name))
}

/// The path of a reranker in `fixtures/rerankers`: its folder, or its GGUF file if it has one.
pub fn reranker(name: &str) -> PathBuf {
    checkpoint(path("rerankers").join(name))
}

fn checkpoint(folder: PathBuf) -> PathBuf {
    let gguf = folder.join("model.gguf");
    if gguf.is_file() { gguf } else { folder }
}

/// A copy of a fixture's folder in a temporary folder. The copy is writable even if the fixture is not.
pub fn copy(name: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(&path(name), copy.path());
    copy
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let from = entry.unwrap().path();
        let to = to.join(from.file_name().unwrap());
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            copy_file(&from, &to);
        }
    }
}

/// Copies a file. The copy is writable even if the file is not.
pub fn copy_file(from: &Path, to: &Path) {
    fs::write(to, fs::read(from).unwrap()).unwrap();
}

/// The contents of a JSON file.
pub fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Changes a JSON file.
pub fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = read_json(path);
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// A tensor of a safetensors file.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// The type of the values.
    pub dtype: Dtype,
    /// The shape.
    pub shape: Vec<usize>,
    /// The values in row-major order, little-endian.
    pub data: Vec<u8>,
}

/// The tensors of a safetensors file by their names.
pub type Tensors = BTreeMap<String, Tensor>;

/// The tensors of a safetensors file.
pub fn read_tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter().map(|(name, view)| {
        let (dtype, shape, data) = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        (name.to_owned(), Tensor { dtype, shape, data })
    });
    tensors.collect()
}

/// Changes the tensors of a safetensors file.
pub fn edit_tensors(path: &Path, edit: impl FnOnce(&mut Tensors)) {
    let mut tensors = read_tensors(path);
    edit(&mut tensors);
    write_tensors(path, &tensors);
}

/// Writes a safetensors file.
pub fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, tensor)| {
        (name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}
