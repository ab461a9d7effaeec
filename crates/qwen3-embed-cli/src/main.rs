//! The `qwen3-embed` command: text embeddings and rerank scores with Qwen3 models.
#![forbid(unsafe_code)]

mod bench;
mod completions;
mod download;
mod embed;
mod environment;
mod info;
mod lines;
mod model;
mod rerank;
mod search;
mod serve;
mod similarity;
mod usage;

use std::io;
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use usage::UsageError;

/// Text embeddings and rerank scores with Qwen3 models
#[derive(Parser)]
#[command(name = "qwen3-embed", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Embed(Box<embed::Args>),
    Similarity(similarity::Args),
    Search(search::Args),
    Rerank(rerank::Args),
    Serve(Box<serve::Args>),
    Bench(bench::Args),
    Download(download::Args),
    Info(info::Args),
    Completions(completions::CompletionsArgs),
    Man(completions::ManArgs),
}

fn main() -> ExitCode {
    let command = parse().command;
    // The server configures its own log.
    if !matches!(command, Command::Serve(_)) {
        print_warnings();
    }
    let result = match command {
        Command::Embed(args) => embed::run(&args),
        Command::Similarity(args) => similarity::run(&args),
        Command::Search(args) => search::run(&args),
        Command::Rerank(args) => rerank::run(&args),
        Command::Serve(args) => serve::run(*args),
        Command::Bench(args) => bench::run(&args),
        Command::Download(args) => download::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Man(args) => completions::run_man(&args, Cli::command()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The program that reads the output has closed the pipe, as in `qwen3-embed … | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let is_usage = error.downcast_ref::<UsageError>().is_some();
            // One line, with the causes separated by colons.
            eprintln!("error: {error:#}");
            if is_usage { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Prints the warnings of the library to standard error.
fn print_warnings() {
    let log = tracing_subscriber::fmt().with_env_filter("off,qwen3_embed=warn").with_target(false);
    log.without_time().with_ansi(false).with_writer(io::stderr).init();
}

/// Parses the command line, and for the server also environment variables.
fn parse() -> Cli {
    let command = Cli::command().mut_subcommand("serve", |serve| {
        serve.mut_args(|arg| match arg.get_env().is_some_and(environment::counts_as_unset) {
            true => arg.env(Resettable::Reset),
            false => arg,
        })
    });
    Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
