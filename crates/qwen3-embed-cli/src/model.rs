use std::path::PathBuf;

use clap::ValueEnum;
use qwen3_embed::{Device, Embedder, EmbedderBuilder, Precision};

/// Which model, and how it is computed.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// Folder with the model's config.json, tokenizer.json and safetensors files, or a .gguf file
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// How weights are kept and multiplied
    #[arg(long, value_enum, default_value = "f32")]
    precision: PrecisionArg,
    /// Where it runs: cpu, cuda, or cuda:N for the CUDA device of that number
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    pub(crate) device: Device,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionArg {
    F32,
    Bf16,
    Int8,
    /// The fastest that this processor and these weights allow without a loss that matters
    Auto,
}

impl ModelArgs {
    /// An embedder of this model, to be set up further.
    pub(crate) fn builder(&self) -> EmbedderBuilder {
        let builder = Embedder::builder(self.model.as_path()).device(self.device);
        builder.precision(match self.precision {
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Bf16 => Precision::Bf16,
            PrecisionArg::Int8 => Precision::Int8,
            PrecisionArg::Auto => Precision::Auto,
        })
    }

    /// The precision's name on the command line.
    pub(crate) fn precision_name(&self) -> String {
        let value = self.precision.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}
