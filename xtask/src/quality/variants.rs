//! The weight formats and kernel sets with which the meanings are embedded.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use qwen3_embed::{Embedder, Embeddings, Kernels, Precision};

use super::held_out::Translations;
use crate::gguf::{self, Mixture};
use crate::workspace;

/// Which variants are measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// int8 with every kernel set, and bf16 with the default set and the sets that multiply bf16 with another
    /// arithmetic.
    All,
    /// Only what has a bar: no bf16, and int8 with one kernel set for each arithmetic, because some of the other sets
    /// are slow.
    Bars,
}

/// A model file, a precision and a kernel set.
pub(super) struct Variant {
    /// The name of the weight format.
    pub(super) weights: &'static str,
    /// The folder or GGUF file of the model.
    source: PathBuf,
    precision: Precision,
    kernels: &'static Kernels,
}

impl Variant {
    /// The variants of the model in `folder`, except for f32. GGUF files are written to `temporary`.
    pub(super) fn list(folder: &Path, temporary: &Path, scope: Scope) -> Result<Vec<Self>> {
        let default = Kernels::current();
        let mut variants = Vec::new();
        let mut push = |weights, precision, kernels| {
            variants.push(Self { weights, source: folder.to_path_buf(), precision, kernels });
        };
        if scope == Scope::All {
            push("bf16", Precision::Bf16, default);
            for kernels in Kernels::all().filter(|set| set.bf16_weights != default.bf16_weights) {
                push("bf16", Precision::Bf16, kernels);
            }
        }
        push("int8", Precision::Int8, default);
        let others = Kernels::all().filter(|set| set.name != default.name);
        match scope {
            Scope::All => others.for_each(|set| push("int8", Precision::Int8, set)),
            Scope::Bars => {
                // The last set that fits, because later sets are faster.
                let mut available = Kernels::available().iter().rev().chain(Kernels::emulated());
                let other = available.find(|set| set.int8_weights != default.int8_weights);
                other.into_iter().for_each(|set| push("int8", Precision::Int8, set));
            }
        }
        for (weights, mixture) in [("Q8_0", Mixture::Q8_0), ("Q4_K_M", Mixture::Q4KM)] {
            let source = temporary.join(format!("{weights}.gguf"));
            gguf::write(folder, mixture, &source)?;
            variants.push(Self { weights, source, precision: Precision::Stored, kernels: default });
        }
        Ok(variants)
    }

    /// The name of the kernel set.
    pub(super) fn kernels(&self) -> &'static str {
        self.kernels.name
    }

    /// Embeds the meanings of `held_out/meanings.tsv`. A process reads the name of its kernel set once, so another kernel
    /// set needs another process.
    pub(super) fn embed(
        &self,
        meanings: &Translations,
        held_out: &Path,
        temporary: &Path,
    ) -> Result<Embeddings> {
        if self.kernels.name == Kernels::current().name {
            return embed(&self.source, self.precision, meanings);
        }
        let file = temporary.join("vectors");
        let mut command = Command::new(env::current_exe()?);
        command.env(Kernels::VARIABLE, self.kernels.name).arg("quality");
        command.arg("--model").arg(&self.source).arg("--held-out").arg(held_out);
        command.args(["--precision", &self.precision.to_string()]).arg("--vectors").arg(&file);
        workspace::run(&mut command)?;
        let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
        let values: Vec<f32> =
            bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        let dimensions = values.len() / meanings.texts.len();
        Ok(Embeddings::new(values, dimensions)?)
    }
}

/// Writes the vectors of the meanings to a file, as f32.
pub(super) fn write_vectors(
    model: &Path,
    precision: Precision,
    meanings: &Translations,
    file: &Path,
) -> Result<()> {
    let values = embed(model, precision, meanings)?.into_vec();
    let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
    fs::write(file, bytes).with_context(|| file.display().to_string())
}

fn embed(source: &Path, precision: Precision, meanings: &Translations) -> Result<Embeddings> {
    let embedder = Embedder::builder(source).precision(precision).build()?;
    Ok(embedder.embed_documents(&meanings.texts)?)
}
