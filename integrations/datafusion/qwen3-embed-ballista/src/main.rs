//! Scheduler, executor and client of a cluster of Apache Ballista, with functions for Qwen3 embedding and reranking
//! models.

mod client;
mod executor;
mod http;
mod logging;
mod scheduler;
mod session;

use anyhow::Result;
use clap::Parser;

/// Runs SQL on many machines, with functions for Qwen3 embedding and reranking models
#[derive(Parser)]
#[command(version)]
enum Cli {
    Scheduler(scheduler::Args),
    Executor(executor::Args),
    Sql(client::Args),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    // Plans of many operators need a deep stack.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(32 << 20)
        .build()?;
    runtime.block_on(async {
        match cli {
            Cli::Scheduler(args) => scheduler::run(args).await,
            Cli::Executor(args) => executor::run(args).await,
            Cli::Sql(args) => client::run(args).await,
        }
    })
}
