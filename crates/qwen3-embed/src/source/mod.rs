//! Model sources: a folder, a GGUF file, or a model on the hub. No other module of this crate reads files.

mod adapter;
#[cfg(feature = "hub")]
mod headers;
mod id;
mod info;
#[cfg(feature = "hub")]
mod selection;

use std::fs::{self, DirEntry, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use qwen3_embed_model::{Adapter, Checkpoint, StoredTokenizer};
use qwen3_embed_text::{Tokenizer, Vocabulary};

use id::ModelId;
pub use info::Info;

pub(crate) use adapter::ADAPTER_CONFIG;
#[cfg(feature = "hub")]
pub(crate) use qwen3_embed_hub::Hub;

use crate::{Error, Result};

/// The place of a model: a folder, a GGUF file, or an id on the hub.
///
/// - A folder contains `config.json`, `tokenizer.json` and the weights, as published, or exactly one GGUF file.
/// - A GGUF file may have any name. It contains the configuration, the weights and the vocabulary. A `tokenizer.json` in
///   the same folder takes precedence over the vocabulary in the file.
/// - `owner/name` is a model on the hub, at its newest commit. `owner/name@revision` is the model at a branch, a tag or a
///   commit. `owner/name:Q8_0` is the GGUF file of that repository whose name ends with `Q8_0`; the full file name is
///   accepted too, and `@revision` may follow. The needed files are downloaded once, into the cache of the `Hub`.
///
/// A string can be any of these. An existing folder or file takes precedence over an id. A [`Path`] is never an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    path: PathBuf,
    /// Whether the source is a string, which may be an id.
    is_text: bool,
}

/// Stands for the settings of downloads in a build without the feature `hub`. No value exists.
#[cfg(not(feature = "hub"))]
#[derive(Debug, Clone)]
pub(crate) enum Hub {}

impl Source {
    /// Downloads the files that the model needs and that are not in the cache of `hub`.
    ///
    /// Returns the model's folder or GGUF file. The path of a local model is returned as it is.
    ///
    /// # Errors
    ///
    /// - [`Error::NoSuchModel`] if the source neither exists nor is an id.
    /// - [`Error::Hub`] if a download fails.
    /// - [`Error::WhichGguf`] if the repository has several GGUF files and the id does not name exactly one of them.
    /// - [`Error::PickleWeights`] or [`Error::NoWeights`] if the repository has no weights in a supported format.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use qwen3_embed::{Embedder, Hub, Source};
    ///
    /// let hub = Hub::from_env().on_download(|file| eprintln!("{}: {}/{}", file.name, file.done, file.total));
    /// let folder = Source::from("Qwen/Qwen3-Embedding-0.6B").download(&hub)?;
    /// let embedder = Embedder::builder(folder).build()?;
    /// // The builder downloads too:
    /// let embedder = Embedder::builder("Qwen/Qwen3-Embedding-0.6B").hub(hub).build()?;
    /// # Ok::<(), qwen3_embed::Error>(())
    /// ```
    #[cfg(feature = "hub")]
    pub fn download(&self, hub: &Hub) -> Result<PathBuf> {
        self.open_alone(Some(hub))
    }

    /// The model's place on this machine. The model is downloaded if necessary. The source may be an adapter,
    /// which belongs to the model that it names as its base.
    pub(crate) fn locate(&self, hub: Option<&Hub>) -> Result<Local> {
        let path = self.open_alone(hub)?;
        let Some(base) = adapter::base(&path)? else {
            return Ok(Local { path, adapter: None });
        };
        let opened = base.source.open_alone(hub);
        let base_path = base.named(opened)?;
        match adapter::base(&base_path)? {
            None => Ok(Local { path: base_path, adapter: Some(*base.adapter) }),
            Some(_) => Err(Error::TwoAdapters { first: base_path, second: path }),
        }
    }

    /// The folder of an adapter, after downloading it if necessary.
    pub(crate) fn open_adapter(&self, hub: Option<&Hub>) -> Result<PathBuf> {
        self.open_alone(hub)
    }

    /// The folder or GGUF file, after downloading it if necessary.
    fn open_alone(&self, hub: Option<&Hub>) -> Result<PathBuf> {
        match self.parse()? {
            Parsed::Local(path) => Ok(path),
            #[cfg(feature = "hub")]
            Parsed::Id(id) => match hub {
                Some(hub) => selection::download(hub, &id),
                None => selection::download(&Hub::from_env(), &id),
            },
            #[cfg(not(feature = "hub"))]
            Parsed::Id(id) => match hub {
                Some(hub) => match *hub {},
                None => Err(Error::NoHub { id: id.to_string() }),
            },
        }
    }

    /// Decides between a folder, a GGUF file and an id.
    fn parse(&self) -> Result<Parsed> {
        let path = &self.path;
        if path.is_dir() {
            return look_into(path).map(Parsed::Local);
        }
        if path.is_file() {
            return Ok(Parsed::Local(path.clone()));
        }
        let id = path.to_str().filter(|_| self.is_text && !path.exists()).and_then(ModelId::parse);
        id.map(Parsed::Id).ok_or_else(|| Error::NoSuchModel { path: path.clone() })
    }
}

/// The kind of a source.
enum Parsed {
    Local(PathBuf),
    Id(ModelId),
}

/// A model on this machine.
#[derive(Debug)]
pub(crate) struct Local {
    /// The model's folder or GGUF file, which exists.
    pub(crate) path: PathBuf,
    /// The adapter that is added to the model.
    pub(crate) adapter: Option<Adapter>,
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Whether a file begins as a GGUF file does: other programs keep them without the end of the name.
fn begins_as_gguf(path: &Path) -> Result<bool> {
    let mut magic = [0; 4];
    let begin = |mut file: File| match file.read_exact(&mut magic) {
        Ok(()) => Ok(magic == *b"GGUF"),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    };
    let begun = File::open(path).and_then(begin);
    begun.map_err(|source| Error::Io { path: path.to_path_buf(), source })
}

/// Whether a folder has a model's weights in it.
fn has_weights(dir: &Path) -> bool {
    MODEL_WEIGHTS.iter().any(|file| dir.join(file).is_file())
}

/// The files of a model's weights, of which there is one.
const MODEL_WEIGHTS: [&str; 2] = ["model.safetensors", "model.safetensors.index.json"];

/// Whether a file of this name holds weights that pickle wrote.
fn is_pickle(name: &str) -> bool {
    let (stem, extension) = name.rsplit_once('.').unwrap_or_default();
    let is_weights = ["model", "adapter", "weights"].iter().any(|word| stem.contains(word));
    is_weights && ["bin", "pt", "pth", "ckpt", "pkl"].contains(&extension)
}

/// The model in a folder: the folder itself, or without a configuration, the only GGUF file in it.
fn look_into(dir: &Path) -> Result<PathBuf> {
    let io = |source| Error::Io { path: dir.to_path_buf(), source };
    let name = |entry: io::Result<DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let names: io::Result<Vec<String>> = fs::read_dir(dir).and_then(|all| all.map(name).collect());
    let names = names.map_err(io)?;
    let is_safetensors =
        |name: &String| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    let pickle = names.iter().filter(|name| is_pickle(name)).max();
    if let (Some(file), false) = (pickle, names.iter().any(is_safetensors)) {
        return Err(Error::PickleWeights { model: dir.display().to_string(), file: file.clone() });
    }
    if ["config.json", ADAPTER_CONFIG].iter().any(|file| dir.join(file).is_file()) {
        return Ok(dir.to_path_buf());
    }
    let mut files = Vec::new();
    for name in names {
        let path = dir.join(&name);
        if path.is_file() && (is_gguf(&path) || begins_as_gguf(&path)?) {
            files.push(name);
        }
    }
    files.sort_unstable();
    match &files[..] {
        [] => Err(Error::NoConfig { dir: dir.to_path_buf(), snapshot: snapshot(dir) }),
        [file] => Ok(dir.join(file)),
        _ => Err(Error::WhichGguf { model: dir.display().to_string(), choices: files }),
    }
}

/// The folder of the newest commit, if `dir` is a repository's part of the hub's cache.
fn snapshot(dir: &Path) -> Option<PathBuf> {
    let commit = fs::read_to_string(dir.join("refs/main")).ok()?;
    let snapshot = dir.join("snapshots").join(commit.trim());
    snapshot.join("config.json").is_file().then_some(snapshot)
}

/// Reads the tokenizer of a checkpoint. Returns the file that contains it, too.
pub(crate) fn read_tokenizer(checkpoint: &Checkpoint) -> Result<(Tokenizer, PathBuf)> {
    match checkpoint.tokenizer()? {
        StoredTokenizer::Json(path) => Ok((Tokenizer::from_json(&read(&path)?, &path)?, path)),
        StoredTokenizer::Gguf(stored) => {
            let vocabulary = Vocabulary {
                model: &stored.model,
                pre_tokenizer: &stored.pre_tokenizer,
                tokens: &stored.tokens,
                token_types: &stored.token_types,
                merges: &stored.merges,
            };
            let path = checkpoint.path().to_path_buf();
            Ok((Tokenizer::from_vocabulary(&vocabulary, &path)?, path))
        }
    }
}

/// A whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self { path, is_text: false }
    }
}

impl From<&PathBuf> for Source {
    fn from(path: &PathBuf) -> Self {
        path.clone().into()
    }
}

impl From<&Path> for Source {
    fn from(path: &Path) -> Self {
        path.to_path_buf().into()
    }
}

impl From<&str> for Source {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<&String> for Source {
    fn from(text: &String) -> Self {
        text.clone().into()
    }
}

impl From<String> for Source {
    fn from(text: String) -> Self {
        Self { path: text.into(), is_text: true }
    }
}
