use qwen3_embed::{Device, Embedder, EmbedderBuilder, Precision, Reranker, RerankerBuilder};

use crate::download;

/// Which model, and how it is computed.
#[derive(clap::Args)]
pub(crate) struct ModelArgs {
    /// Folder with the model's config.json, tokenizer.json and safetensors files, a GGUF file, or an id
    /// of the hub: OWNER/NAME, with @REVISION if need be, or OWNER/NAME:Q8_0 for a GGUF file
    #[arg(long, value_name = "PATH or ID")]
    model: String,
    /// Folder or id of a LoRA adapter that is added to the model
    #[arg(long, value_name = "PATH or ID")]
    adapter: Option<String>,
    /// How weights are stored and multiplied. `stored`, also called `auto`: as the checkpoint stores them, bf16 (f16
    /// too), f32, or int8 for GGUF files in few bits. `f32`: exact, 4 bytes for each weight. `bf16`: 2 bytes. `int8`:
    /// about 1 byte, or less for GGUF files in few bits
    #[arg(long, value_name = "PRECISION", default_value_t)]
    precision: Precision,
    /// Copy the token embeddings into memory: texts never wait for the disk when memory is short
    #[arg(long)]
    preload: bool,
    /// Where it runs: cpu, cuda, or cuda:N for the CUDA device of that number
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    pub(crate) device: Device,
}

impl ModelArgs {
    /// An embedder of this model, to be set up further.
    pub(crate) fn builder(&self) -> EmbedderBuilder {
        let builder = Embedder::builder(self.model.as_str()).hub(download::hub());
        let builder = builder.precision(self.precision).device(self.device);
        let builder = builder.preload(self.preload);
        match &self.adapter {
            Some(adapter) => builder.adapter(adapter.as_str()),
            None => builder,
        }
    }

    /// A reranker of this model, to be set up further.
    pub(crate) fn reranker(&self) -> RerankerBuilder {
        let builder = Reranker::builder(self.model.as_str()).hub(download::hub());
        let builder = builder.precision(self.precision).device(self.device);
        let builder = builder.preload(self.preload);
        match &self.adapter {
            Some(adapter) => builder.adapter(adapter.as_str()),
            None => builder,
        }
    }
}
