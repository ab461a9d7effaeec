use std::io;
use std::path::PathBuf;
use std::time::Duration;

use qwen3_embed_model::Error as ModelError;
use qwen3_embed_text::Error as TextError;

#[cfg(feature = "hub")]
use qwen3_embed_hub::HubError;

/// An error while an embedder, a reranker or a service is built or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model's source is neither a folder nor a GGUF file on this machine, and is not an id on the hub.
    #[error(
        "there is no model at `{}`: expected a folder with config.json, tokenizer.json and safetensors files, a \
         .gguf file, or an id on the hub such as Qwen/Qwen3-Embedding-0.6B",
        path.display()
    )]
    NoSuchModel {
        /// The source as the caller gave it.
        path: PathBuf,
    },
    /// A model could not be downloaded from the hub.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] Box<HubError>),
    /// The source is an id on the hub, and this program was built without the feature `hub`.
    #[error(
        "there is no folder `{id}`, and this program cannot download a model: it was built without the feature \
         `hub` of qwen3-embed"
    )]
    NoHub {
        /// The id.
        id: String,
    },
    /// The weights of a model are only available as pickle files.
    #[error(
        "{model} has its weights in {file}, a pickle file, which is not read because loading it can run any code: \
         convert it to safetensors with save_pretrained of transformers"
    )]
    PickleWeights {
        /// The model's folder or id.
        model: String,
        /// The name of one of the pickle files.
        file: String,
    },
    /// A folder contains no model.
    #[error(
        "{} is not the folder of a model: it has no config.json{}",
        dir.display(),
        snapshot.as_ref().map_or_else(String::new, |dir| format!(", but {} has one", dir.display()))
    )]
    NoConfig {
        /// The folder.
        dir: PathBuf,
        /// The folder of the newest commit, if `dir` is a repository in the hub's cache.
        snapshot: Option<PathBuf>,
    },
    /// A folder or a repository has several GGUF files, and the source does not name exactly one of them.
    #[error("{model} does not name exactly one GGUF file: use one of {}", choices.join(", "))]
    WhichGguf {
        /// The folder, or the id on the hub.
        model: String,
        /// The names of the folder's files, or an id for each file of the repository.
        choices: Vec<String>,
    },
    /// A repository on the hub has no weights in a supported format.
    #[error(
        "{model} has no weights: expected model.safetensors, model.safetensors.index.json, \
         adapter_model.safetensors or a GGUF file"
    )]
    NoWeights {
        /// The id on the hub.
        model: String,
    },
    /// An embedder cannot be built from this model, because the model is a reranker.
    #[error(
        "{} is a reranker and gives no embeddings: use `Reranker`, or on the command line `rerank`, or \
         `serve --reranker-path`",
        path.display()
    )]
    IsReranker {
        /// The model's folder or GGUF file.
        path: PathBuf,
    },
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The model has no prompt of this name.
    #[error("the model has no prompt `{name}`, expected one of {known:?}")]
    NoSuchPrompt {
        /// The name that was asked for.
        name: String,
        /// The names of the model's prompts.
        known: Vec<String>,
    },
    /// The base model of an adapter cannot be opened. An adapter may name its base model by a folder that exists only
    /// on the machine where the adapter was trained.
    #[error(
        "{}: field `base_model_name_or_path`: the model `{base}` cannot be opened: choose the base with \
         `--model BASE --adapter {}` or `.adapter(…)`",
        path.display(),
        path.parent().unwrap_or(path).display()
    )]
    AdapterBase {
        /// The adapter's `adapter_config.json`.
        path: PathBuf,
        /// The base model that the adapter names.
        base: String,
        /// The reason why the base model cannot be opened.
        source: Box<Error>,
    },
    /// An adapter was given for a source that is an adapter itself.
    #[error(
        "the adapter {} cannot be added to the adapter {}: merge one of them into its model first",
        second.display(), first.display()
    )]
    TwoAdapters {
        /// The folder of the source.
        first: PathBuf,
        /// The folder of the adapter that was given for it.
        second: PathBuf,
    },
    /// A setting of a builder, or an option of a request, is out of range.
    #[error("`{setting}` is {got}, expected {min} to {max}")]
    Setting {
        /// The name of the setting.
        setting: &'static str,
        /// The value that was set.
        got: usize,
        /// The smallest allowed value.
        min: usize,
        /// The largest allowed value.
        max: usize,
    },
    /// The vectors cannot be cut to this number of dimensions.
    #[error("`dimensions` is {got}, expected {min} to {max}")]
    Dimensions {
        /// The number that was asked for.
        got: usize,
        /// The smallest allowed number.
        min: usize,
        /// The largest allowed number: the model's hidden size, or the number of dimensions of the vectors.
        max: usize,
    },
    /// The tokenizer has token ids that are not in the model's vocabulary: the tokenizer belongs to another model.
    #[error(
        "{} has token ids up to {max_token}, but the vocabulary of the model has {vocab_size} tokens",
        path.display()
    )]
    Vocabulary {
        /// The tokenizer's file.
        path: PathBuf,
        /// The largest token id of the tokenizer that texts can contain.
        max_token: usize,
        /// `vocab_size` of config.json, or the number of rows of `token_embd.weight` in a GGUF file.
        vocab_size: usize,
    },
    /// A text has more tokens than the limit, and the overflow policy is
    /// [`Overflow::Error`](crate::Overflow::Error).
    #[error("text {text} has {n_tokens} tokens, the limit is {max_tokens}")]
    TextTooLong {
        /// The index of the text.
        text: usize,
        /// The number of tokens of the text, including its prompt and the end-of-text token.
        n_tokens: usize,
        /// The limit, see [`EmbedOptions::max_tokens`](crate::EmbedOptions::max_tokens).
        max_tokens: usize,
    },
    /// Vectors cannot be compared because they have different numbers of dimensions.
    #[error("vectors of {left} dimensions cannot be compared with vectors of {right} dimensions")]
    DimensionMismatch {
        /// The number of dimensions on the left.
        left: usize,
        /// The number of dimensions on the right.
        right: usize,
    },
    /// The number of values is not a multiple of the number of dimensions, see
    /// [`Embeddings::new`](crate::Embeddings::new).
    #[error("{n_values} values cannot be divided into vectors of {dimensions} dimensions")]
    NotWholeRows {
        /// The number of values.
        n_values: usize,
        /// The number of dimensions.
        dimensions: usize,
    },
    /// A value of a vector is NaN or infinite. Vectors that a model has computed cause [`Error::Model`] instead.
    #[error("vector {row} is not finite: its value at dimension {dimension} is {value}")]
    NotFinite {
        /// The index of the vector. For a query it is 0.
        row: usize,
        /// The index of the first value in the vector that is NaN or infinite.
        dimension: usize,
        /// The value: NaN or an infinity.
        value: f32,
    },
    /// The number of bytes is not a multiple of the number of bytes that a vector of bits takes, see
    /// [`BinaryEmbeddings::new`](crate::BinaryEmbeddings::new).
    #[error(
        "{n_bytes} bytes cannot be divided into vectors of {dimensions} bits, which take {} bytes each",
        dimensions.div_ceil(8)
    )]
    NotWholeBitRows {
        /// The number of bytes.
        n_bytes: usize,
        /// The number of dimensions, each of which is a bit.
        dimensions: usize,
    },
    /// A bit after the last dimension of a vector of bits is 1.
    #[error("vector {row} has a bit that is 1 after its {dimensions} bits")]
    PaddingBits {
        /// The index of the vector.
        row: usize,
        /// The number of dimensions, each of which is a bit.
        dimensions: usize,
    },
    /// The number of scales is not the number of dimensions or of vectors, see [`Int8Scales`](crate::Int8Scales).
    #[error("got {got} scales of 8-bit integers, expected {expected}")]
    Int8ScaleCount {
        /// The number of scales.
        got: usize,
        /// The number of dimensions, or for [`Int8Scales::PerVector`](crate::Int8Scales::PerVector) of vectors.
        expected: usize,
    },
    /// A scale of 8-bit integers is negative, NaN or infinite.
    #[error("scale {index} is {got}, expected a finite number that is at least 0")]
    Int8Scale {
        /// The index of the scale.
        index: usize,
        /// The scale.
        got: f32,
    },
    /// The index of a candidate is not the index of a vector, see [`Embeddings::rescore`](crate::Embeddings::rescore).
    #[error("there is no vector {index}: there are {len} vectors")]
    NoSuchRow {
        /// The index.
        index: usize,
        /// The number of vectors.
        len: usize,
    },
    /// A conversion from or to an Arrow array failed: the array has another type or null values.
    #[cfg(feature = "arrow")]
    #[error(transparent)]
    Arrow(#[from] arrow_schema::ArrowError),
    /// The operating system could not start the threads of a thread pool.
    #[error("cannot start the thread pool")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// The operating system could not start the worker thread of a service.
    #[error("cannot start the worker thread of the service")]
    Thread {
        /// The error of the operating system.
        source: io::Error,
    },
    /// A service refuses a request because its queue is full.
    #[error("{n_waiting} texts are waiting, the limit is {limit}: try again in {retry_after:.1?}")]
    ServiceFull {
        /// The number of texts in the queue.
        n_waiting: usize,
        /// The limit, see [`ServiceOptions::max_waiting_texts`](crate::ServiceOptions::max_waiting_texts).
        limit: usize,
        /// The estimated time until the queue has room again, based on the time that recent texts took.
        retry_after: Duration,
    },
    /// A service refuses a request because it is draining.
    #[error("the service is shutting down and accepts no more requests")]
    ServiceDraining,
    /// A service has stopped, because it was drained or because a bug made its worker thread panic.
    #[error("the service has stopped")]
    ServiceStopped,
    /// The queries and documents of a request do not form pairs.
    #[error(
        "{queries} queries and {documents} documents: expected one query, or one query for each document"
    )]
    Pairs {
        /// The number of queries.
        queries: usize,
        /// The number of documents.
        documents: usize,
    },
    /// The tokenizer could not be loaded, or a text could not be tokenized.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The model could not be loaded, or its input or output is invalid.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// A reference to the text index in an error, or `None` if the error is not about a text. The reference is mutable if
/// the reference to the error is mutable.
macro_rules! text_index {
    ($error:expr) => {
        match $error {
            Self::TextTooLong { text, .. }
            | Self::Text(TextError::Encode { text, .. } | TextError::WhiteSpace { text, .. })
            | Self::Model(
                ModelError::EmptyText { text }
                | ModelError::TooManyTokens { text, .. }
                | ModelError::TokenOutOfRange { text, .. }
                | ModelError::NotFinite { text, .. }
                | ModelError::LogitNotFinite { text, .. },
            ) => Some(text),
            _ => None,
        }
    };
}

impl Error {
    /// The index of the text, or of the pair of texts, that the error is about. `None` if the error is not about a
    /// text.
    pub fn text_index(&self) -> Option<usize> {
        text_index!(self).copied()
    }

    /// The same error with another [`text_index`](Self::text_index). Use this if the texts of a call are a part of a
    /// longer list, and the error should contain the index in that list. An error that is not about a text is returned
    /// unchanged.
    pub fn map_text_index(mut self, map: impl FnOnce(usize) -> usize) -> Self {
        if let Some(text) = text_index!(&mut self) {
            *text = map(*text);
        }
        self
    }
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
