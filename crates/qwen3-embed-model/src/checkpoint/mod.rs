//! A checkpoint: its files, its configuration and its tensors.

pub(crate) mod adapter;
pub(crate) mod class;
pub(crate) mod config;
pub(crate) mod fields;
pub(crate) mod file;
pub(crate) mod folder;
pub(crate) mod gguf;
pub(crate) mod gguf_vocabulary;
pub(crate) mod head;
pub(crate) mod known_tensors;
pub(crate) mod low_rank;
pub(crate) mod matrix;
pub(crate) mod modules;
pub(crate) mod naming;
pub(crate) mod safetensors;
pub(crate) mod sentence_transformers;
pub(crate) mod stored_type;
pub(crate) mod summary;
pub(crate) mod weights;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Result;
use crate::checkpoint::adapter::Adapter;
use crate::checkpoint::config::Config;
use crate::checkpoint::fields::Fields;
use crate::checkpoint::file::MappedFile;
use crate::checkpoint::folder::Folder;
use crate::checkpoint::gguf::Header;
use crate::checkpoint::gguf_vocabulary::GgufVocabulary;
use crate::checkpoint::head::Head;
use crate::checkpoint::modules::Modules;
use crate::checkpoint::sentence_transformers::SentenceTransformers;
use crate::checkpoint::weights::{PROJECTION, Weights};

/// The files of a model: opened, memory-mapped and checked. No weight has been read yet.
///
/// Everything about a model is derived from its checkpoint, so each file is opened only once:
/// [`Model::load_with`](crate::Model::load_with) loads the decoder,
/// [`RerankHead::load`](crate::RerankHead::load) the head of a reranker,
/// [`Summary::of`](crate::Summary::of) describes the model, and [`tokenizer`](Self::tokenizer) reads its tokenizer. A checkpoint is cheap to open: memory is mapped, and only headers are parsed. Drop it after the
/// last of these calls.
///
/// # Examples
///
/// ```
/// use qwen3_embed_model::{Checkpoint, LoadOptions, Model};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/base");
/// let checkpoint = Checkpoint::open(folder.as_ref())?;
/// println!("{} layers", checkpoint.config().num_hidden_layers);
/// let model = Model::load_with(&checkpoint, &LoadOptions::default())?;
/// # Ok::<(), qwen3_embed_model::Error>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    /// The folder of the model, or of the GGUF file.
    folder: Folder,
    config: Config,
    weights: Weights,
    /// The header of a GGUF file, or `None` for a folder with safetensors files.
    gguf: Option<Header>,
    repository: SentenceTransformers,
    adapter: Option<Adapter>,
}

/// The tokenizer of a checkpoint, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredTokenizer {
    /// A `tokenizer.json`.
    Json {
        /// The path of the file, for errors.
        path: PathBuf,
        /// The contents of the file.
        contents: Cow<'static, [u8]>,
    },
    /// The vocabulary of a GGUF file.
    Gguf(GgufVocabulary),
}

impl Checkpoint {
    /// Opens the model at `path`: a folder with `config.json` and safetensors files, or a GGUF file.
    ///
    /// In a folder, the weights are `model.safetensors`, or the shards that `model.safetensors.index.json` lists;
    /// the files of sentence-transformers are read if there are any. A GGUF file contains the whole model.
    ///
    /// The files with weights are memory-mapped. They must not be truncated or rewritten in place while the
    /// checkpoint, or a model that was loaded from it, is in use. To replace a file, write a new file and rename it to
    /// the name of the old file, as package managers and git do.
    ///
    /// # Errors
    ///
    /// A missing or damaged file, a configuration that is not supported, or a tensor that the configuration does
    /// not describe: each variant of [`Error`](crate::Error) names the file and what is wrong in it.
    pub fn open(path: &Path) -> Result<Self> {
        match path.is_dir() {
            true => Self::open_folder(Folder::on_disk(path)),
            false => Self::open_gguf(path),
        }
    }

    /// Opens the model in a folder, which may be [in memory](Folder::in_memory).
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    ///
    /// # Examples
    ///
    /// ```
    /// use qwen3_embed_model::{Checkpoint, Folder};
    ///
    /// static FILES: &[(&str, &[u8])] = &[
    ///     ("config.json", include_bytes!("../../../../fixtures/models/base/config.json")),
    ///     ("model.safetensors", include_bytes!("../../../../fixtures/models/base/model.safetensors")),
    /// ];
    /// let checkpoint = Checkpoint::open_folder(Folder::in_memory("my-model", FILES))?;
    /// println!("{} layers", checkpoint.config().num_hidden_layers);
    /// # Ok::<(), qwen3_embed_model::Error>(())
    /// ```
    pub fn open_folder(folder: Folder) -> Result<Self> {
        let checkpoint = Self {
            config: Config::from_fields(&Fields::read(&folder, "config.json")?)?,
            weights: safetensors::open_folder(&folder)?,
            gguf: None,
            repository: SentenceTransformers::read(&folder)?,
            adapter: None,
            folder,
        };
        checkpoint.checked()
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let header = Header::parse(&Arc::new(MappedFile::open(path)?))?;
        let folder = Folder::on_disk(path.parent().unwrap_or(path));
        let checkpoint = Self {
            config: Config::from_gguf(&header)?,
            weights: Weights::of_gguf(&header),
            gguf: Some(header),
            repository: SentenceTransformers::none(&folder),
            adapter: None,
            folder,
        };
        checkpoint.checked()
    }

    /// Rejects tensors that the configuration does not describe.
    fn checked(self) -> Result<Self> {
        let Self { weights, config, .. } = &self;
        weights.check_names(config)?;
        // The tables of rotary frequencies have this width, and are computed before the layers are read.
        weights.vector("layers.0.self_attn.q_norm.weight", config.head_dim)?;
        Ok(self)
    }

    /// Adds a LoRA adapter, whose weights are read now. A `modules.json` and a `tokenizer.json` in the adapter's folder
    /// replace the same files of the model.
    ///
    /// # Errors
    ///
    /// [`Error::Field`](crate::Error::Field) if the adapter is of a kind that is not supported;
    /// [`Error::AdapterTensor`](crate::Error::AdapterTensor) or
    /// [`Error::TensorShape`](crate::Error::TensorShape) if the adapter belongs to another model; and the errors
    /// of [`open`](Self::open) for files that cannot be read.
    pub fn with_adapter(self, adapter: Adapter) -> Result<Self> {
        let weights = self.weights.with_updates(adapter.updates(&self.config)?);
        Ok(Self { weights, adapter: Some(adapter), ..self })
    }

    /// The path of the model's folder, or of the GGUF file. For files in memory, it is their name.
    pub fn path(&self) -> &Path {
        self.gguf.as_ref().map_or(self.folder.path(), Header::path)
    }

    /// Whether the model is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        self.gguf.is_some()
    }

    /// The model's hyper-parameters.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The head after the decoder, found by the names of the tensors.
    pub fn head(&self) -> Head {
        self.weights.head()
    }

    /// Reads the tokenizer in the adapter's folder, in the model's folder, beside the GGUF file, or in the GGUF file,
    /// whichever of these is found first.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) if the folder of a model has no `tokenizer.json`, or if the file cannot be read;
    /// [`Error::Field`](crate::Error::Field) if the vocabulary of a GGUF file is incomplete or of other types.
    pub fn tokenizer(&self) -> Result<StoredTokenizer> {
        const FILE: &str = "tokenizer.json";
        let of_adapter = self.adapter.as_ref().map(Adapter::folder);
        let folder = of_adapter.filter(|folder| folder.contains(FILE)).unwrap_or(&self.folder);
        match &self.gguf {
            Some(header) if !folder.contains(FILE) => {
                GgufVocabulary::read(header).map(StoredTokenizer::Gguf)
            }
            _ => Ok(StoredTokenizer::Json {
                path: folder.path_of(FILE),
                contents: folder.read(FILE)?,
            }),
        }
    }

    /// The files of sentence-transformers that describe how the model is used. They are in the adapter's folder if this
    /// folder has `modules.json` or `config_sentence_transformers.json`, otherwise in the model's folder.
    pub fn sentence_transformers(&self) -> &SentenceTransformers {
        let of_adapter = self.adapter.as_ref().map(Adapter::repository);
        let describes = |files: &&SentenceTransformers| {
            files.modules_json().is_some() || files.prompts_json().is_some()
        };
        of_adapter.filter(describes).unwrap_or(&self.repository)
    }

    /// Whether the adapter's folder or the model's folder has a `modules.json`.
    pub fn has_modules(&self) -> bool {
        self.repositories().any(|repository| repository.modules_json().is_some())
    }

    /// Whether the model's folder contains an adapter that is not in use.
    pub fn has_unused_adapter(&self) -> bool {
        let used = self.adapter.as_ref().map(Adapter::folder);
        !self.is_gguf() && used != Some(&self.folder) && self.folder.contains("adapter_config.json")
    }

    /// The steps that compute a text's vector, or `None` without a `modules.json`.
    pub(crate) fn modules(&self) -> Result<Option<Modules>> {
        for repository in self.repositories() {
            if let Some(modules) = Modules::read(repository)? {
                return Ok(Some(modules));
            }
        }
        Ok(None)
    }

    /// The width of the projection after the decoder, if there is one: `num_labels` of the configuration, or the
    /// rows of the tensor.
    pub(crate) fn projected_size(&self) -> Option<usize> {
        let stored = self.weights.n_rows(PROJECTION).filter(|_| self.config.may_project);
        self.config.num_labels.or(stored)
    }

    /// The tensors.
    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The header of a GGUF file.
    pub(crate) fn gguf(&self) -> Option<&Header> {
        self.gguf.as_ref()
    }

    /// The files of sentence-transformers in the model's own folder.
    pub(crate) fn repository(&self) -> &SentenceTransformers {
        &self.repository
    }

    /// The files of sentence-transformers in the adapter's folder, then the files in the model's folder.
    fn repositories(&self) -> impl Iterator<Item = &SentenceTransformers> {
        self.adapter.iter().map(Adapter::repository).chain([&self.repository])
    }
}
