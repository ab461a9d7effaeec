use std::io;
use std::path::PathBuf;
use std::time::Duration;

use qwen3_embed_model::Error as ModelError;
use qwen3_embed_text::Error as TextError;

#[cfg(feature = "hub")]
use qwen3_embed_hub::HubError;

/// What can go wrong when an embedder or a reranker is built or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model's source is neither a folder on this machine nor a GGUF file, and cannot be an id of the
    /// hub.
    #[error(
        "there is no model at `{}`, and it is no id of the hub: name a folder that holds a model's \
         config.json, tokenizer.json and safetensors files, a .gguf file, or an id such as \
         Qwen/Qwen3-Embedding-0.6B",
        path.display()
    )]
    NoSuchModel {
        /// The path as it was given.
        path: PathBuf,
    },
    /// A download from the hub failed.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] Box<HubError>),
    /// The source is an id of the hub, and this program was built without the feature `hub`.
    #[error(
        "there is no folder `{id}`, and this program cannot download a model of this id, being built \
         without the feature `hub` of qwen3-embed"
    )]
    NoHub {
        /// The id.
        id: String,
    },
    /// A model has its weights only as pickle files.
    #[error(
        "{model} has its weights as {file}, a pickle file: these can run any program when they are \
         read, so they are not. Convert it to safetensors, which transformers' save_pretrained does"
    )]
    PickleWeights {
        /// The model's folder or id.
        model: String,
        /// One of the files.
        file: String,
    },
    /// A folder has nothing in it that says that it is a model's.
    #[error(
        "{} is not a model's folder: it has no config.json{}",
        dir.display(),
        snapshot.as_ref().map_or_else(String::new, |dir| format!(", but {} has", dir.display()))
    )]
    NoConfig {
        /// The folder.
        dir: PathBuf,
        /// The folder of the newest commit, if `dir` is a repository's part of the hub's cache.
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
    /// An embedder was to be built of a reranker that says that it is one.
    #[error(
        "{} is a reranker and gives no embeddings: use `Reranker`, or on the \
         command line `rerank`, or `serve --reranker-path`",
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
        /// What the operating system said.
        source: io::Error,
    },
    /// The model has no prompt of this name.
    #[error("the model has no prompt `{name}`, its prompts are {known:?}")]
    NoSuchPrompt {
        /// The name that was asked for.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// The model that an adapter names as its base cannot be opened: its name may be a folder of the machine
    /// that the adapter was trained on.
    #[error(
        "{}: field `base_model_name_or_path`: the model `{base}` cannot be opened: name the base yourself, \
         with `--model BASE --adapter {}` or `.adapter(…)`",
        path.display(),
        path.parent().unwrap_or(path).display()
    )]
    AdapterBase {
        /// The adapter's `adapter_config.json`.
        path: PathBuf,
        /// What it names as its base.
        base: String,
        /// Why it cannot be opened.
        source: Box<Error>,
    },
    /// An adapter was given to an adapter, or belongs to one.
    #[error(
        "the adapter {} cannot be added to the adapter {}: merge one of them into its model first",
        second.display(), first.display()
    )]
    TwoAdapters {
        /// The folder of the one.
        first: PathBuf,
        /// The folder of the other.
        second: PathBuf,
    },
    /// A setting of the builder is out of range.
    #[error("{setting} is {got}, it must be in {min}..={max}")]
    Setting {
        /// The builder's method.
        setting: &'static str,
        /// The value that was set.
        got: usize,
        /// The smallest value.
        min: usize,
        /// The largest value.
        max: usize,
    },
    /// The number of dimensions is not one that the vectors can be cut to.
    #[error("{got} dimensions were asked for, there can be {min} to {max}")]
    Dimensions {
        /// The number that was asked for.
        got: usize,
        /// The smallest number.
        min: usize,
        /// The largest number: the model's hidden size, or the length of the vectors at hand.
        max: usize,
    },
    /// The tokenizer has more tokens than the model: they do not belong together.
    #[error(
        "{} makes tokens up to {max_token}, but the model's vocabulary has {vocab_size}",
        path.display()
    )]
    Vocabulary {
        /// The tokenizer's file.
        path: PathBuf,
        /// The largest token id that any text can give.
        max_token: usize,
        /// `vocab_size` of config.json, or the rows of a GGUF file's `token_embd.weight`.
        vocab_size: usize,
    },
    /// A text has more tokens than the limit, and the overflow policy is
    /// [`Overflow::Error`](crate::Overflow::Error).
    #[error("text {text} has {n_tokens} tokens, the limit is {max_tokens}")]
    TextTooLong {
        /// Index of the text in the call.
        text: usize,
        /// Its tokens, the end-of-text token and the instruction included.
        n_tokens: usize,
        /// The limit: [`max_tokens`](crate::EmbedderBuilder::max_tokens).
        max_tokens: usize,
    },
    /// Two vectors, or two sets of them, have different numbers of dimensions.
    #[error("vectors of {left} and of {right} dimensions cannot be compared")]
    DimensionMismatch {
        /// Dimensions of the first.
        left: usize,
        /// Dimensions of the second.
        right: usize,
    },
    /// Values given as embeddings are not whole rows.
    #[error("{n_values} values are not whole rows of {dim} dimensions")]
    NotWholeRows {
        /// Number of values.
        n_values: usize,
        /// Number of dimensions of a row.
        dim: usize,
    },
    /// Values given as embeddings are not finite.
    #[error("row {row} is not finite at dimension {dimension}: {value}")]
    NotFinite {
        /// Index of the row.
        row: usize,
        /// Index of the first such value in the row.
        dimension: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// The operating system refused to start the threads.
    #[error("cannot start the thread pool")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// The operating system refused to start the thread that a service computes on.
    #[error("cannot start the thread that computes")]
    Thread {
        /// What it said.
        source: io::Error,
    },
    /// A service does not accept a request, because too many texts wait.
    #[error("{n_waiting} texts are waiting, the limit is {limit}: try again in {retry_after:.1?}")]
    ServiceFull {
        /// Texts that wait.
        n_waiting: usize,
        /// The limit: [`max_waiting_texts`](crate::ServiceOptions::max_waiting_texts).
        limit: usize,
        /// When there should be room, going by how long texts took lately.
        retry_after: Duration,
    },
    /// A service does not accept a request, because it is about to end.
    #[error("the service accepts no more requests, it is about to end")]
    ServiceDraining,
    /// A service has ended: after it was drained, or because of a bug that made it panic.
    #[error("the service has ended")]
    ServiceStopped,
    /// A service was given numbers of queries and documents that do not make pairs.
    #[error(
        "{queries} queries and {documents} documents: expected one query, or one for each document"
    )]
    Pairs {
        /// Number of queries.
        queries: usize,
        /// Number of documents.
        documents: usize,
    },
    /// The tokenizer could not be loaded, or refused a text.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The model could not be loaded, or refused its input.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl Error {
    /// The same error, about the text `by` places further on: for callers that embed a long list
    /// piece by piece.
    pub fn shift_text(mut self, by: usize) -> Self {
        if let Some(text) = self.text_mut() {
            *text += by;
        }
        self
    }

    /// The index of the text, or of the pair, that the error is about, if it is about one.
    pub fn text_mut(&mut self) -> Option<&mut usize> {
        match self {
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
    }
}

/// A result whose error is this crate's.
pub type Result<T> = std::result::Result<T, Error>;
