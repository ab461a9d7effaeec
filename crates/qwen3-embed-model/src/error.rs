use std::path::PathBuf;

/// What can go wrong when a model is loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read or mapped.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The folder holds neither `model.safetensors` nor `model.safetensors.index.json`.
    #[error(
        "{} holds no weights: expected model.safetensors or model.safetensors.index.json",
        dir.display()
    )]
    NoWeights {
        /// The folder.
        dir: PathBuf,
    },
    /// A JSON file does not parse, or is no object.
    #[error("{} is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped.
        source: serde_json::Error,
    },
    /// A field of a JSON file, or of a GGUF file's metadata, is missing, of the wrong type, or has a
    /// value this model cannot have.
    #[error("{}: field `{field}`: expected {expected}, got {got}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's name, with a dot before a nested one.
        field: String,
        /// The values that are understood.
        expected: String,
        /// The value that is there, as JSON, or `nothing`.
        got: String,
    },
    /// A safetensors file is truncated, corrupt, or not a safetensors file at all.
    #[error("{} is not a whole safetensors file", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::SafeTensorError,
    },
    /// A GGUF file is truncated, corrupt, of a version that is not read, or no GGUF file at all.
    #[error(
        "{} is not a GGUF file that can be read: byte {offset}, {what}: expected {expected}, got {got}",
        path.display()
    )]
    Gguf {
        /// The file.
        path: PathBuf,
        /// Where in the file it is said.
        offset: u64,
        /// What is wrong, with the key or the tensor that it belongs to.
        what: String,
        /// What is understood.
        expected: String,
        /// What is there.
        got: String,
    },
    /// Two shards hold a tensor of the same name, so that it is unclear which is meant.
    #[error("tensor `{name}` is both in {} and in {}", first.display(), second.display())]
    DuplicateTensor {
        /// The tensor.
        name: String,
        /// The shard that was read first.
        first: PathBuf,
        /// The shard that holds it again.
        second: PathBuf,
    },
    /// The names of the checkpoint's tensors begin with something that is not known, or there is more than
    /// one decoder.
    #[error(
        "{}: expected one tensor `embed_tokens.weight`, behind nothing or behind `model.`, `module.`, \
         `_orig_mod.`, `base_model.model.` or `language_model.`, got `{}`",
        path.display(),
        names.join("`, `")
    )]
    TensorPrefix {
        /// The checkpoint's folder.
        path: PathBuf,
        /// The tensors that hold token embeddings.
        names: Vec<String>,
    },
    /// The checkpoint's weights are quantized in a way that is not read.
    #[error(
        "{}: {found}: weights that MLX has quantized are not read: use the original model, or a GGUF file",
        path.display()
    )]
    QuantizedByMlx {
        /// The file that shows it.
        path: PathBuf,
        /// The field or the tensor that shows it.
        found: String,
    },
    /// The checkpoint lacks a tensor that its configuration calls for.
    #[error("{} has no tensor `{name}`", path.display())]
    MissingTensor {
        /// The checkpoint's folder, or the file that should hold the tensor.
        path: PathBuf,
        /// The tensor's name.
        name: String,
    },
    /// The checkpoint holds a tensor that would not be read, such as a bias that its configuration does not
    /// have, or one of a model with code of its own.
    #[error(
        "{}: tensor `{name}`: expected only those of a decoder of this configuration and its head",
        path.display()
    )]
    UnexpectedTensor {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor's name.
        name: String,
    },
    /// An adapter has a tensor that belongs to none of the linear layers of the decoder.
    #[error(
        "{}: tensor `{name}`: expected only `lora_A` and `lora_B` of the decoder's linear layers",
        path.display()
    )]
    AdapterTensor {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor's name.
        name: String,
    },
    /// A tensor's shape is not the one that the configuration calls for.
    #[error("{}: tensor `{name}`: expected shape {expected:?}, got {got:?}", path.display())]
    TensorShape {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// The shape that the configuration calls for.
        expected: Vec<usize>,
        /// The shape that the file has.
        got: Vec<usize>,
    },
    /// A tensor is stored in a type that is not read.
    #[error("{}: tensor `{name}`: expected type {expected}, got {got}", path.display())]
    TensorType {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// The types that are read from such a file.
        expected: &'static str,
        /// Its type in the file, as a number if it is a GGUF file.
        got: String,
    },
    /// The checkpoint has nothing that gives rerank scores.
    #[error("{} is no reranker: expected {expected}, got {got}", path.display())]
    NoRerankHead {
        /// The checkpoint's folder, or the GGUF file.
        path: PathBuf,
        /// What a reranker has.
        expected: &'static str,
        /// What there is.
        got: String,
    },
    /// A reranker's answer is not in the model's vocabulary: the tokenizer is another model's.
    #[error(
        "{}: the answer's token id {id} is not below the vocabulary size {vocab_size}",
        path.display()
    )]
    AnswerOutOfRange {
        /// The checkpoint's folder, or the GGUF file.
        path: PathBuf,
        /// The token id of yes or no.
        id: u32,
        /// Number of ids that the model knows.
        vocab_size: usize,
    },
    /// A text has no token at all.
    #[error("text {text} has no tokens")]
    EmptyText {
        /// Index of the text in the call.
        text: usize,
    },
    /// A token id is not in the model's vocabulary; it probably comes from another tokenizer.
    #[error(
        "text {text}: token id {id} at position {position} is not below the vocabulary size {vocab_size}"
    )]
    TokenOutOfRange {
        /// Index of the text in the call.
        text: usize,
        /// Position of the token in the text.
        position: usize,
        /// The token id.
        id: u32,
        /// Number of ids that the model knows.
        vocab_size: usize,
    },
    /// A text has more tokens than the model has positions.
    #[error("text {text} has {n_tokens} tokens, the model's limit is {limit}")]
    TooManyTokens {
        /// Index of the text in the call.
        text: usize,
        /// Tokens of the text.
        n_tokens: usize,
        /// `max_position_embeddings` of the configuration.
        limit: usize,
    },
    /// The hidden state of a text is not finite: the checkpoint's weights are damaged, or
    /// overflow the type that they are computed in.
    #[error("the hidden state of text {text} is not finite at dimension {dimension}: {value}")]
    NotFinite {
        /// Index of the text in the call.
        text: usize,
        /// The first dimension that is not finite.
        dimension: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// A device's name is none that is known.
    #[error("expected a device `cpu`, `cuda` or `cuda:` and its number, got `{got}`")]
    DeviceName {
        /// The name.
        got: String,
    },
    /// The name of a precision is unknown.
    #[error("expected a precision stored, f32, bf16 or int8, got `{got}`")]
    PrecisionName {
        /// The name.
        got: String,
    },
    /// A batch does not fit in the device's memory, and neither did one of half the tokens.
    #[error(
        "a batch of {n_tokens} tokens takes about {} MiB on the device, which has {} MiB left: a budget \
         of {fitting_tokens} tokens would fit",
        needed_bytes >> 20,
        free_bytes >> 20
    )]
    OutOfMemory {
        /// Tokens of the batch.
        n_tokens: usize,
        /// What its activations take, about.
        needed_bytes: usize,
        /// What the device had left without them.
        free_bytes: usize,
        /// Tokens whose activations would fit in that, by the same estimate.
        fitting_tokens: usize,
        /// What the device said.
        source: Box<qwen3_embed_kernels::Error>,
    },
    /// A rerank head was given to a model of another size.
    #[error("the rerank head is for vectors of {got} values, the model's have {expected}")]
    HeadSize {
        /// The size of the model's vectors.
        expected: usize,
        /// `hidden_size` of the checkpoint that the head comes from.
        got: usize,
    },
    /// The logit of a text is not finite although its hidden state is: the head's weights are damaged.
    #[error("the logit of text {text} is not finite: {value}")]
    LogitNotFinite {
        /// Index of the text in the call.
        text: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// A kernel failed.
    #[error(transparent)]
    Kernel(#[from] qwen3_embed_kernels::Error),
}

/// A result whose error is this crate's.
pub type Result<T> = std::result::Result<T, Error>;

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Kernel(error.into())
    }
}
