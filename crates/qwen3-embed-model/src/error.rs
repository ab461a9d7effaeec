use std::path::PathBuf;

/// An error of loading or running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read or mapped.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The folder contains neither `model.safetensors` nor `model.safetensors.index.json`.
    #[error(
        "{} contains no weights: expected model.safetensors or model.safetensors.index.json",
        dir.display()
    )]
    NoWeights {
        /// The folder.
        dir: PathBuf,
    },
    /// A JSON file does not parse.
    #[error("{} is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The error of the parser, with the position in the file.
        source: serde_json::Error,
    },
    /// A field of a JSON file, or of the metadata of a GGUF file, is missing, has another type, or has a value that
    /// is not supported.
    #[error("{}: field `{field}`: expected {expected}, got {got}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's path in the file, with dots between nested names.
        field: String,
        /// The values that are supported.
        expected: String,
        /// The value in the file, as JSON, or `nothing`.
        got: String,
    },
    /// A file is truncated or corrupt, or it is not a safetensors file.
    #[error("{} is not a valid safetensors file", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The error of the parser.
        source: safetensors::SafeTensorError,
    },
    /// A file was given as a model and does not begin with the magic number of GGUF files.
    #[error(
        "{} is not a GGUF file: expected a file that begins with `GGUF`, got `{got}`; name a GGUF file, or the \
         folder that holds a model's config.json, tokenizer.json and safetensors files",
        path.display()
    )]
    NotGguf {
        /// The file.
        path: PathBuf,
        /// The first bytes of the file, at most four.
        got: String,
    },
    /// A GGUF file is truncated or corrupt, or has a version that is not supported.
    #[error(
        "{} is not a GGUF file that can be read: byte {offset}, {what}: expected {expected}, got {got}",
        path.display()
    )]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The position in the file at which parsing failed.
        offset: u64,
        /// The part of the file that is wrong, with the name of its key or tensor.
        what: String,
        /// The contents that are supported.
        expected: String,
        /// The contents of the file.
        got: String,
    },
    /// Two shards contain a tensor of the same name.
    #[error("tensor `{name}` is both in {} and in {}", first.display(), second.display())]
    DuplicateTensor {
        /// The tensor.
        name: String,
        /// The shard that was read first.
        first: PathBuf,
        /// The shard that contains the tensor again.
        second: PathBuf,
    },
    /// The names of the tensors begin with a prefix that is not supported, or the checkpoint contains more than one
    /// decoder.
    #[error(
        "{}: expected one tensor `embed_tokens.weight`, without a prefix or with `model.`, `module.`, \
         `_orig_mod.`, `base_model.model.` or `language_model.` before its name, got `{}`",
        path.display(),
        names.join("`, `")
    )]
    TensorPrefix {
        /// The checkpoint's folder.
        path: PathBuf,
        /// The names of the tensors that look like token embeddings.
        names: Vec<String>,
    },
    /// The weights are quantized in the format of MLX, which is not supported.
    #[error(
        "{}: {found}: weights that MLX has quantized are not supported: use the original model, or a GGUF file",
        path.display()
    )]
    QuantizedByMlx {
        /// The file that contains the field or the tensor.
        path: PathBuf,
        /// The field or the tensor by which the format was recognized.
        found: String,
    },
    /// The checkpoint lacks a tensor that its configuration requires.
    #[error("{} has no tensor `{name}`", path.display())]
    MissingTensor {
        /// The checkpoint's folder, or the file that should contain the tensor.
        path: PathBuf,
        /// The tensor's name.
        name: String,
    },
    /// The checkpoint contains a tensor that the forward pass does not use, such as a bias that the configuration
    /// does not mention, or a tensor of a model with its own code.
    #[error(
        "{}: tensor `{name}`: expected only the tensors of a decoder with this configuration, and of its head",
        path.display()
    )]
    UnexpectedTensor {
        /// The file that contains the tensor.
        path: PathBuf,
        /// The tensor's name.
        name: String,
    },
    /// An adapter contains a tensor that does not belong to a linear layer of the decoder.
    #[error(
        "{}: tensor `{name}`: expected only `lora_A` and `lora_B` of the decoder's linear layers",
        path.display()
    )]
    AdapterTensor {
        /// The file that contains the tensor.
        path: PathBuf,
        /// The tensor's name.
        name: String,
    },
    /// A tensor's shape does not fit the configuration.
    #[error("{}: tensor `{name}`: expected shape {expected:?}, got {got:?}", path.display())]
    TensorShape {
        /// The file that contains the tensor.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// The shape that follows from the configuration.
        expected: Vec<usize>,
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// A tensor is stored in a type that is not supported.
    #[error("{}: tensor `{name}`: expected type {expected}, got {got}", path.display())]
    TensorType {
        /// The file that contains the tensor.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// The types that are supported in files of this format.
        expected: &'static str,
        /// The type in the file. For a GGUF file, it is a number.
        got: String,
    },
    /// A weight is NaN or infinite, so the file is damaged, or the training of the model has failed.
    #[error("{}: tensor `{name}`: expected finite values, got {value} at index {index}", path.display())]
    WeightNotFinite {
        /// The file that contains the tensor.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// The index of the value in the tensor, in row-major order.
        index: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// The checkpoint has no head that computes rerank scores.
    #[error("{} is not a reranker: expected {expected}, got {got}", path.display())]
    NoRerankHead {
        /// The checkpoint's folder, or the GGUF file.
        path: PathBuf,
        /// The heads that a reranker may have.
        expected: &'static str,
        /// The reason why the checkpoint has none of them.
        got: String,
    },
    /// The token `yes` or `no`, which a reranker answers with, is not in the model's vocabulary. The tokenizer belongs
    /// to another model.
    #[error(
        "{}: the token id {id} of `yes` or `no` is not below the vocabulary size {vocab_size}",
        path.display()
    )]
    AnswerOutOfRange {
        /// The checkpoint's folder, or the GGUF file.
        path: PathBuf,
        /// The token id of `yes` or `no`.
        id: u32,
        /// The number of token ids.
        vocab_size: usize,
    },
    /// A text has no tokens.
    #[error("text {text} has no tokens")]
    EmptyText {
        /// The index of the text in the call.
        text: usize,
    },
    /// A token id is not in the model's vocabulary. It was probably made by the tokenizer of another model.
    #[error(
        "text {text}: token id {id} at position {position} is not below the vocabulary size {vocab_size}"
    )]
    TokenOutOfRange {
        /// The index of the text in the call.
        text: usize,
        /// The position of the token in the text.
        position: usize,
        /// The token id.
        id: u32,
        /// The number of token ids.
        vocab_size: usize,
    },
    /// A text has more tokens than the model has positions.
    #[error("text {text} has {n_tokens} tokens, the model's limit is {limit}")]
    TooManyTokens {
        /// The index of the text in the call.
        text: usize,
        /// The number of tokens of the text.
        n_tokens: usize,
        /// `max_position_embeddings` of the configuration.
        limit: usize,
    },
    /// The hidden state of a text is not finite. The weights are damaged, or activations exceed the range of their
    /// type.
    #[error("the hidden state of text {text} is not finite at dimension {dimension}: {value}")]
    NotFinite {
        /// The index of the text in the call.
        text: usize,
        /// The first dimension that is not finite.
        dimension: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// The name of a device is not valid.
    #[error("expected a device: `cpu`, `cuda`, or `cuda:` and a number, got `{got}`")]
    DeviceName {
        /// The name.
        got: String,
    },
    /// The name of a precision is not valid.
    #[error("unknown precision: expected one of {expected}, got `{got}`")]
    PrecisionName {
        /// The names of all precisions.
        expected: String,
        /// The name.
        got: String,
    },
    /// The weights do not fit in the memory of the device.
    #[error(
        "the weights need about {} MiB of memory, and {} MiB are left",
        needed_bytes >> 20,
        free_bytes >> 20
    )]
    WeightsTooLarge {
        /// The memory that the packed weights need, estimated.
        needed_bytes: u64,
        /// The memory that the device has left.
        free_bytes: u64,
    },
    /// A batch does not fit in the memory of the device, and a batch of half the tokens does not fit either.
    #[error(
        "a batch of {n_tokens} tokens needs about {} MiB of memory, and {} MiB are left: a batch of \
         {fitting_tokens} tokens would fit",
        needed_bytes >> 20,
        free_bytes >> 20
    )]
    OutOfMemory {
        /// The number of tokens in the batch, including tokens whose keys and values come from the prefix cache.
        n_tokens: usize,
        /// The memory that the activations of the batch need, estimated.
        needed_bytes: usize,
        /// The memory that the device has left.
        free_bytes: usize,
        /// The number of tokens whose activations would fit, by the same estimate.
        fitting_tokens: usize,
        /// The error of the device. `None` if the memory was measured before the batch was computed.
        source: Option<Box<qwen3_embed_kernels::Error>>,
    },
    /// A rerank head belongs to a model with another hidden size.
    #[error(
        "the rerank head is for vectors of {got} values, but the model's vectors have {expected}"
    )]
    HeadSize {
        /// The size of the model's vectors.
        expected: usize,
        /// The `hidden_size` of the checkpoint from which the head was loaded.
        got: usize,
    },
    /// The logit of a text is not finite, while its hidden state is. The weights of the head are damaged.
    #[error("the logit of text {text} is not finite: {value}")]
    LogitNotFinite {
        /// The index of the text in the call.
        text: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// A kernel failed.
    #[error(transparent)]
    Kernel(#[from] qwen3_embed_kernels::Error),
}

/// A result with the [`Error`] of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Kernel(error.into())
    }
}
