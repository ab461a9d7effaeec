//! Development tasks: `cargo xtask --help` lists them.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "tasks report to the terminal")]

mod ci;
mod fixtures;
mod invariants;
mod parity;
mod random_checkpoint;
mod rerank_parity;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Development tasks of the qwen3-embed workspace
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Parity(parity::Args),
    Fixtures(fixtures::Args),
    RandomCheckpoint(random_checkpoint::Args),
    Ci,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Parity(args) => parity::run(&args),
        Task::Fixtures(args) => fixtures::run(&args),
        Task::RandomCheckpoint(args) => random_checkpoint::run(&args),
        Task::Ci => ci::run(),
    }
}

/// The workspace's root folder.
fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
