use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::Result;
use indicatif::HumanBytes;
use qwen3_embed::{Head, Info, Precision};
use serde::Serialize;

use crate::{download, model};

/// Show the shape, size, prompts and memory usage of a model
///
/// The model is not loaded. If it is on the Hugging Face Hub and not in the cache, only its configuration and the
/// headers of its weight files are downloaded.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder, GGUF file, or id on the Hugging Face Hub [default: a small model for demonstrations, which is part of
    /// this program]
    #[arg(value_name = "PATH or ID")]
    model: Option<String>,
    /// Print the information as one JSON object
    #[arg(long)]
    json: bool,
}

/// The printed information. Sizes are in bytes.
#[derive(Serialize)]
struct Report {
    architecture: &'static str,
    parameters: u64,
    /// The number of parameters of each stored type.
    stored: BTreeMap<String, u64>,
    head: &'static str,
    layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    query_heads: usize,
    key_value_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    context: usize,
    /// The default maximum length of a text, in tokens.
    max_tokens: usize,
    dimensions: [usize; 2],
    prompts: BTreeMap<String, String>,
    /// The size of the weight files.
    file_bytes: u64,
    /// The default precision.
    default: String,
    memory: BTreeMap<String, Memory>,
}

/// Estimated memory in bytes, with the default batch budget.
#[derive(Serialize)]
struct Memory {
    weights: u64,
    embeddings: u64,
    workspace: u64,
    total: u64,
    /// The total for a text of `max_tokens` tokens, or for a batch of the default budget if the budget is larger.
    total_longest_text: u64,
}

/// Runs `qwen3-embed info`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let example = "info Qwen/Qwen3-Embedding-0.6B";
    let source = model::named_or_bundled(args.model.as_deref(), example)?;
    let report = Report::of(source.info_from(&download::hub())?);
    let mut output = io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut output, &report)?;
        writeln!(output)?;
    } else {
        report.print(&mut output)?;
    }
    Ok(())
}

impl Report {
    fn of(info: Info) -> Self {
        let precisions = Precision::ALL.into_iter().filter(|p| *p != Precision::Stored);
        let memory = precisions.map(|precision| {
            let memory = info.memory(precision);
            let (weights, embeddings) = (memory.weights, memory.embeddings);
            let (workspace, total) = (memory.workspace, memory.total());
            let total_longest_text = info.longest_text_memory(precision).total();
            let memory = Memory { weights, embeddings, workspace, total, total_longest_text };
            (precision.to_string(), memory)
        });
        let memory = memory.collect();
        let (dimensions, head, max_tokens) = (info.dimensions(), info.head(), info.max_tokens);
        let config = info.summary.config;
        Self {
            architecture: "qwen3",
            parameters: info.summary.n_parameters,
            stored: info.summary.stored,
            head: match head {
                Head::None => "none",
                Head::TiedLmHead => "language model, tied to the token embeddings",
                Head::LmHead => "language model",
                Head::Score => "classification",
                _ => "other",
            },
            layers: config.num_hidden_layers,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            query_heads: config.num_attention_heads,
            key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            vocabulary: config.vocab_size,
            context: config.max_position_embeddings,
            max_tokens,
            dimensions,
            prompts: info.prompts,
            file_bytes: info.summary.file_bytes,
            default: info.summary.stored_precision.to_string(),
            memory,
        }
    }

    fn print(&self, output: &mut impl Write) -> io::Result<()> {
        let stored: Vec<&str> = self.stored.keys().map(String::as_str).collect();
        let [fewest, most] = self.dimensions;
        let rows = [
            ("architecture", self.architecture.to_owned()),
            ("parameters", format!("{:.1} million", self.parameters as f64 / 1e6)),
            ("stored as", stored.join(", ")),
            ("weight files", HumanBytes(self.file_bytes).to_string()),
            ("head", self.head.to_owned()),
            ("layers", self.layers.to_string()),
            ("hidden size", self.hidden_size.to_string()),
            ("dimensions", format!("{fewest} to {most}")),
            ("context", format!("{} tokens", self.context)),
            ("longest text", format!("{} tokens by default", self.max_tokens)),
            ("vocabulary", format!("{} tokens", self.vocabulary)),
        ];
        for (name, value) in rows {
            writeln!(output, "{name:14}{value}")?;
        }
        for (name, prompt) in &self.prompts {
            writeln!(output, "{:14}{prompt:?}", format!("prompt {name} "))?;
        }
        writeln!(output, "\nmemory, estimated")?;
        writeln!(
            output,
            "{:14}{:>12}{:>14}{:>14}{:>12}{:>19}",
            "", "weights", "embeddings", "activations", "total", "with longest text"
        )?;
        for (name, memory) in &self.memory {
            let Memory { weights, embeddings, workspace, total, total_longest_text } = memory;
            let [weights, embeddings, workspace, total, longest] =
                [weights, embeddings, workspace, total, total_longest_text]
                    .map(|&n| HumanBytes(n).to_string());
            writeln!(
                output,
                "{name:14}{weights:>12}{embeddings:>14}{workspace:>14}{total:>12}{longest:>19}"
            )?;
        }
        writeln!(output, "the default precision is {}", self.default)
    }
}
