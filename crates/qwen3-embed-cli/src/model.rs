use std::path::Path;

use anyhow::Result;
use qwen3_embed::{
    Device, EmbedOptions, Embedder, EmbedderBuilder, Precision, Prompt, Reranker, RerankerBuilder,
    Source,
};

use crate::download;

/// The help of `--model`.
pub(crate) const MODEL: &str = "Folder with the model's config.json, tokenizer.json and safetensors files, a GGUF file, \
    or an id on the Hugging Face Hub: OWNER/NAME, optionally with @REVISION, or OWNER/NAME:Q8_0 for a GGUF file";

/// The flags that choose an embedding model, which is the bundled one by default, and the length of its vectors.
#[derive(clap::Args)]
pub(crate) struct EmbedderArgs {
    #[arg(long, value_name = "PATH or ID", help = embedder_help())]
    model: Option<String>,
    #[command(flatten)]
    settings: ModelArgs,
    /// Number of dimensions of the vectors [default: that of the model]
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
}

impl EmbedderArgs {
    /// The builder of the embedder. Says on standard error that the bundled model is used, if no model is named.
    pub(crate) fn builder(&self) -> Result<EmbedderBuilder> {
        Ok(self.builder_of(self.source()?))
    }

    /// The [`builder`](Self::builder) of a model that is on this machine, after downloading it if necessary, and what
    /// identifies the model.
    pub(crate) fn local_builder(&self) -> Result<(EmbedderBuilder, ModelIdentity)> {
        let source = self.source()?;
        let (local, name) = (source.download(&download::hub())?, source.to_string());
        // The cache of the hub has a folder `snapshots` with a folder for each commit.
        let path = local.to_string();
        let mut folders = Path::new(&path).iter().skip_while(|folder| *folder != "snapshots");
        let commit = folders.nth(1).filter(|_| !Path::new(&name).exists());
        let commit = commit.map(|commit| commit.to_string_lossy().into_owned());
        Ok((self.builder_of(local), ModelIdentity { name, commit }))
    }

    /// The model. Says on standard error that the bundled model is used, if no model is named.
    fn source(&self) -> Result<Source> {
        named_or_bundled(self.model.as_deref(), "--model Qwen/Qwen3-Embedding-0.6B")
    }

    fn builder_of(&self, source: Source) -> EmbedderBuilder {
        let builder = self.settings.embedder(source);
        match self.dimensions {
            Some(dimensions) => builder.dimensions(dimensions),
            None => builder,
        }
    }

    /// The adapter.
    pub(crate) fn adapter(&self) -> Option<&str> {
        self.settings.adapter.as_deref()
    }

    /// A reranker on the same device and in the same precision. The adapter and the maximum length are those of the
    /// embedder only.
    pub(crate) fn reranker(&self, model: &str) -> Result<Reranker> {
        let settings = ModelArgs { adapter: None, max_tokens: None, ..self.settings.clone() };
        Ok(settings.reranker(model).build()?)
    }
}

/// What identifies a model.
pub(crate) struct ModelIdentity {
    /// The model as the user named it, or the name of the bundled model.
    pub(crate) name: String,
    /// The commit of a model on the hub.
    pub(crate) commit: Option<String>,
}

/// The help of an optional `--model`.
fn embedder_help() -> String {
    format!("{MODEL} [default: a small model for demonstrations, which is part of this program]")
}

/// The flags that choose a prompt.
#[derive(clap::Args)]
pub(crate) struct PromptArgs {
    /// Embed the texts as queries, with the model's prompt for queries
    #[arg(long)]
    query: bool,
    /// Embed the texts as queries, with this instruction
    #[arg(long, value_name = "TEXT", conflicts_with = "query")]
    instruct: Option<String>,
    /// Embed the texts with the model's prompt of this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["query", "instruct"])]
    prompt_name: Option<String>,
}

impl PromptArgs {
    pub(crate) fn options(&self) -> EmbedOptions {
        EmbedOptions::new().prompt(match (&self.instruct, &self.prompt_name) {
            (Some(instruction), _) => Prompt::Instruction(instruction.clone()),
            (None, Some(name)) => Prompt::Named(name.clone()),
            (None, None) if self.query => Prompt::Query,
            (None, None) => Prompt::Document,
        })
    }
}

/// The flags that choose a model's adapter, its precision, its device and its limits. Each subcommand has its own flag
/// `--model`, which is required by some of them.
#[derive(Clone, clap::Args)]
pub(crate) struct ModelArgs {
    /// Folder or id of a LoRA adapter, which is merged into the model
    #[arg(long, value_name = "PATH or ID", requires = "model")]
    pub(crate) adapter: Option<String>,
    #[arg(long, value_name = "PRECISION", default_value_t, help = precision_help())]
    pub(crate) precision: Precision,
    /// Copy the token embeddings into memory when the model is loaded. Otherwise they are read from the model's file,
    /// and texts wait for the disk when memory is short. On devices other than the CPU, this flag has no effect
    #[arg(long)]
    pub(crate) preload: bool,
    /// Read all weights before the model is loaded, to check that none of them is NaN or infinite. Otherwise only
    /// samples are checked
    #[arg(long)]
    pub(crate) verify: bool,
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

/// The help of `--precision`: the names and the descriptions of all precisions.
pub(crate) fn precision_help() -> String {
    let precisions =
        Precision::ALL.map(|precision| format!("{precision} ({})", precision.description()));
    let precisions = precisions.join(", ");
    format!("Precision of weights and matrix multiplications: {precisions}. auto means stored")
}

/// The bundled model, for a command that names no model, and a sentence about it for the user. `example` is a flag or
/// an argument that names another model.
///
/// # Errors
///
/// If this program was built without the bundled model.
pub(crate) fn bundled(example: &str) -> Result<(Source, String)> {
    #[cfg(feature = "demo-model")]
    {
        let source = Source::demo();
        let about = format!(
            "{source} is a small model for demonstrations, which is part of this program. To use another model, name \
             it, for example with `{example}`."
        );
        Ok((source, about))
    }
    #[cfg(not(feature = "demo-model"))]
    anyhow::bail!(
        "no model is named, and this program contains none: name a model, for example with `{example}`"
    )
}

/// The model that a command names, or the bundled model, with a sentence about it on standard error.
///
/// # Errors
///
/// As [`bundled`].
pub(crate) fn named_or_bundled(model: Option<&str>, example: &str) -> Result<Source> {
    match model {
        Some(model) => Ok(model.into()),
        None => {
            let (source, about) = bundled(example)?;
            eprintln!("{about}");
            Ok(source)
        }
    }
}

/// Applies [`ModelArgs`] to a builder. It is a macro because the methods of the two builders belong to no common
/// trait.
macro_rules! configured {
    ($args:expr, $builder:expr) => {{
        let args: &ModelArgs = $args;
        let mut builder = $builder
            .hub(download::hub())
            .precision(args.precision)
            .device(args.device)
            .preload(args.preload)
            .verify(args.verify);
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
    pub(crate) fn embedder(&self, model: impl Into<Source>) -> EmbedderBuilder {
        configured!(self, Embedder::builder(model))
    }

    /// The builder of a reranker with these settings.
    pub(crate) fn reranker(&self, model: impl Into<Source>) -> RerankerBuilder {
        configured!(self, Reranker::builder(model))
    }
}
