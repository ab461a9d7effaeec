use clap::ValueEnum;
use qwen3_embed::{Device, Embedder, EmbedderBuilder, Precision, Reranker, RerankerBuilder};

use crate::download;

/// The flags that choose a model, its precision, its device and its limits.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// Folder with the model's config.json, tokenizer.json and safetensors files, a GGUF file, or an id on the Hugging
    /// Face Hub: OWNER/NAME, optionally with @REVISION, or OWNER/NAME:Q8_0 for a GGUF file
    #[arg(long, value_name = "PATH or ID")]
    pub(crate) model: String,
    /// Folder or id of a LoRA adapter, which is merged into the model
    #[arg(long, value_name = "PATH or ID")]
    pub(crate) adapter: Option<String>,
    /// Precision in which weights are kept and multiplied
    #[arg(long, value_enum, default_value = "stored")]
    pub(crate) precision: PrecisionArg,
    /// Copy the token embeddings into memory when the model is loaded. Otherwise they are read from the model's file,
    /// and texts wait for the disk when memory is short. On devices other than the CPU, this flag has no effect
    #[arg(long)]
    pub(crate) preload: bool,
    /// Device that runs the model: cpu, cuda, or cuda:N for the CUDA device with index N
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    pub(crate) device: Device,
    /// Number of threads that compute [default: one for each core, or fewer if the CPU quota of the container is
    /// smaller]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Maximum length of a text, or of a prompt when reranking, in tokens [default: the model's limit, but at
    /// most 32768, or 8192 when reranking]
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// Maximum number of tokens that are computed together. A smaller number needs less memory [default: 4096]
    #[arg(long, value_name = "N")]
    pub(crate) batch_tokens: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum PrecisionArg {
    /// The precision of the checkpoint: f32 for f32, bf16 for bf16 and f16, int8 for quantized GGUF files
    Stored,
    /// Exact, four bytes for each weight
    F32,
    /// Two bytes for each weight
    Bf16,
    /// About one byte for each weight, or less for quantized GGUF files. A CUDA device uses bf16 instead
    Int8,
    /// bf16 on a CUDA device, and on a CPU with fast bf16 instructions if the checkpoint is not quantized; otherwise
    /// int8
    Auto,
}

/// Applies [`ModelArgs`] to a builder. It is a macro because the methods of the two builders belong to no common
/// trait.
macro_rules! configured {
    ($args:expr, $builder:expr) => {{
        let args: &ModelArgs = $args;
        let mut builder = $builder
            .hub(download::hub())
            .precision(args.precision.into())
            .device(args.device)
            .preload(args.preload);
        if let Some(adapter) = &args.adapter {
            builder = builder.adapter(adapter.as_str());
        }
        if let Some(threads) = args.threads {
            builder = builder.threads(threads);
        }
        if let Some(max_tokens) = args.max_tokens {
            builder = builder.max_tokens(max_tokens);
        }
        if let Some(batch_tokens) = args.batch_tokens {
            builder = builder.batch_tokens(batch_tokens);
        }
        builder
    }};
}

impl ModelArgs {
    /// The builder of an embedder with these settings.
    pub(crate) fn embedder(&self) -> EmbedderBuilder {
        configured!(self, Embedder::builder(self.model.as_str()))
    }

    /// The builder of a reranker with these settings.
    pub(crate) fn reranker(&self) -> RerankerBuilder {
        configured!(self, Reranker::builder(self.model.as_str()))
    }
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::Stored => Self::Stored,
            PrecisionArg::F32 => Self::F32,
            PrecisionArg::Bf16 => Self::Bf16,
            PrecisionArg::Int8 => Self::Int8,
            PrecisionArg::Auto => Self::Auto,
        }
    }
}
