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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn flags_have_no_conflicts() {
        Cli::command().debug_assert();
    }

    /// The files list the arguments of each process in a line of its own, which is JSON.
    #[test]
    fn the_arguments_of_the_deployments_are_valid() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        for (file, n_processes) in [("compose.yaml", 3), ("kubernetes.yaml", 2)] {
            let text = std::fs::read_to_string(dir.join(file)).expect(file);
            let lists = text.lines().filter_map(|line| {
                let (key, list) = line.trim().split_once(": ")?;
                matches!(key, "command" | "args").then_some(list)
            });
            let lists = lists.map(|list| serde_json::from_str::<Vec<String>>(list).expect(list));
            // The object store of the first file is another program.
            let ours: Vec<_> = lists.filter(|arguments| arguments[0] != "server").collect();
            assert_eq!(ours.len(), n_processes, "{file}: {ours:?}");
            for arguments in ours {
                let program = "qwen3-embed-ballista".to_owned();
                if let Err(error) = Cli::try_parse_from([vec![program], arguments].concat()) {
                    panic!("{file}: {error}");
                }
            }
        }
    }
}
