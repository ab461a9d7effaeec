//! `cargo xtask quality`: how well a multilingual embedding model finds translations, in every weight format, and the
//! description of its weights.

mod bars;
mod evaluation;
mod held_out;
mod measures;
mod tables;
mod variants;
mod weights;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use qwen3_embed::Precision;

use crate::workspace::root;
use bars::Bar;
use evaluation::Evaluation;
use held_out::HeldOut;
use variants::Scope;

/// Measure how well an embedding model finds translations, in every weight format
///
/// The texts are meanings in Chinese, English, Japanese and Korean that the model was not trained with. For each
/// ordered pair of languages, a text in the first language is a query, and all texts in the second language are
/// candidates. The query's translation should be the first hit.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the model [default: crates/qwen3-embed-demo/model]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder with meanings.tsv, tatoeba.tsv and, optionally, hsk.tsv [default: training/held_out]
    #[arg(long, value_name = "DIR")]
    held_out: Option<PathBuf>,
    /// Fail if a figure misses its bar. Only figures with a bar are measured
    #[arg(long, conflicts_with = "write")]
    check: bool,
    /// Describe the weights and activations instead: deviations and outliers
    #[arg(long, conflicts_with_all = ["check", "vectors"])]
    weights: bool,
    /// Write the tables to this Markdown file, between the lines `<!-- quality -->` and `<!-- /quality -->`.
    /// With --weights, the lines are `<!-- weights -->` and `<!-- /weights -->`
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Only write the vectors of the meanings to this file, as f32. The task starts itself with this option to use
    /// another kernel set
    #[arg(long, value_name = "FILE", hide = true, requires = "precision")]
    vectors: Option<PathBuf>,
    /// The precision of these vectors
    #[arg(long, value_name = "PRECISION", hide = true)]
    precision: Option<Precision>,
}

/// Runs `cargo xtask quality`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let model = args.model.clone().unwrap_or_else(default_model);
    let folder = args.held_out.clone().unwrap_or_else(default_held_out);
    let held_out = HeldOut::read(&folder)?;
    if let (Some(file), Some(precision)) = (&args.vectors, args.precision) {
        return variants::write_vectors(&model, precision, &held_out.meanings, file);
    }
    let (section, text, missed) = if args.weights {
        ("weights", weights::describe(&model, &held_out.meanings)?, Vec::new())
    } else {
        let scope = if args.check { Scope::Bars } else { Scope::All };
        let evaluation = Evaluation::run(&model, &folder, &held_out, scope)?;
        let bars = bars::evaluate(&evaluation);
        let text = tables::report(&evaluation, &bars);
        ("quality", text, bars.iter().filter(|bar| !bar.is_met()).map(Bar::to_string).collect())
    };
    println!("{text}");
    if let Some(file) = &args.write {
        tables::write_section(file, section, &text)?;
    }
    ensure!(!args.check || missed.is_empty(), "missed bars:\n{}", missed.join("\n"));
    Ok(())
}

/// Checks that the bundled model meets every bar.
pub(crate) fn check() -> Result<()> {
    let args = Args {
        model: None,
        held_out: None,
        check: true,
        weights: false,
        write: None,
        vectors: None,
        precision: None,
    };
    run(&args)
}

fn default_model() -> PathBuf {
    root().join("crates/qwen3-embed-demo/model")
}

fn default_held_out() -> PathBuf {
    root().join("training/held_out")
}
