//! The flags and the shell of `qwen3-embed-sql`, which `qwen3-embed-ballista` has, too.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use datafusion::prelude::SessionContext;
use datafusion_cli::exec;
use datafusion_cli::object_storage::instrumented::InstrumentedObjectStoreRegistry;
use datafusion_cli::print_format::PrintFormat;
use datafusion_cli::print_options::{MaxRows, PrintOptions};
use qwen3_embed::{Device, Precision};
use qwen3_embed_datafusion::ModelSettings;

/// The flags that choose models.
#[derive(Debug, Clone, Args)]
#[group(skip)]
pub struct ModelArgs {
    /// Embedding model: a folder, a GGUF file, or an id on the Hugging Face Hub, optionally with @REVISION [default:
    /// the option qwen3.model of the session, or else a small model for demonstrations, which is part of this program]
    #[arg(long, value_name = "PATH or ID", env = "QWEN3_EMBED_MODEL")]
    pub model: Option<String>,
    /// Reranker: a folder, a GGUF file, or an id [default: the option qwen3.reranker of the session]
    #[arg(long, value_name = "PATH or ID", env = "QWEN3_EMBED_RERANKER")]
    pub reranker: Option<String>,
    /// Precision of weights and matrix multiplications, such as int8. auto means stored
    #[arg(long, value_name = "PRECISION", default_value_t)]
    pub precision: Precision,
    /// Device that runs the models: cpu, cuda, or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Cpu)]
    pub device: Device,
    /// Number of threads that compute [default: one for each core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

impl ModelArgs {
    /// The settings of the models.
    pub fn settings(&self) -> ModelSettings {
        let Self { model, reranker, precision, device, threads } = self.clone();
        // A variable of the environment that is empty is not set.
        let [model, reranker] = [model, reranker].map(|name| name.filter(|name| !name.is_empty()));
        ModelSettings { model, reranker, precision, device, threads }
    }
}

/// The flags that say which statements are executed, and how results are printed.
#[derive(Debug, Args)]
#[group(skip)]
pub struct ShellArgs {
    /// Execute these statements, and exit. Several are separated by semicolons
    #[arg(short, long, value_name = "SQL")]
    pub command: Vec<String>,
    /// Execute the statements of this file, and exit
    #[arg(short, long, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// Format of results
    #[arg(long, value_enum, default_value_t = PrintFormat::Automatic)]
    pub format: PrintFormat,
    /// Print results only, without the number of rows and the time
    #[arg(short, long)]
    pub quiet: bool,
    /// Maximum number of rows of a table that is printed: a number, or inf
    #[arg(long, default_value = "40")]
    pub maxrows: MaxRows,
}

impl ShellArgs {
    /// Executes the statements, or reads statements from standard input until it ends if there are none.
    ///
    /// # Errors
    ///
    /// The error of the first statement that fails. Statements after it are not executed. Errors of statements from
    /// standard input are printed, and the shell goes on.
    pub async fn run(&self, context: &SessionContext) -> Result<()> {
        let mut options = PrintOptions {
            format: self.format,
            quiet: self.quiet,
            maxrows: self.maxrows,
            color: false,
            instrumented_registry: Arc::new(InstrumentedObjectStoreRegistry::new()),
        };
        for file in &self.file {
            let place = || file.display().to_string();
            let statements = std::fs::read_to_string(file).with_context(place)?;
            exec::exec_from_commands(context, vec![statements], &options)
                .await
                .with_context(place)?;
        }
        exec::exec_from_commands(context, self.command.clone(), &options).await?;
        if self.file.is_empty() && self.command.is_empty() {
            exec::exec_from_repl(context, &mut options).await?;
        }
        Ok(())
    }
}
