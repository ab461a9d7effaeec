use std::env;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::{fixtures, invariants, parity, root};

/// Everything that has to hold besides the tests: format, lints, documentation, the layering of the
/// crates, the fixtures' hashes, parity, and the examples.
pub(crate) fn run() -> Result<()> {
    step("format", || cargo(&["fmt", "--all", "--check"]))?;
    step("lints", || cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    step("documentation", || {
        let mut command = cargo_command(&["doc", "--workspace", "--no-deps"]);
        fixtures::succeed(command.env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    step("without the hub", || {
        let package = ["--package", "qwen3-embed", "--no-default-features"];
        cargo(&[&["test"], &package[..], &["--test", "without_hub"]].concat())
    })?;
    step("invariants", invariants::check)?;
    step("fixtures", fixtures::check)?;
    step("parity", || parity::fixtures(1e-5))?;
    for example in ["multilingual_similarity", "retrieve_and_rerank"] {
        step(example, || cargo(&["run", "--release", "--example", example]))?;
    }
    Ok(())
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n== {name}");
    let start = Instant::now();
    work()?;
    println!("== {name}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn cargo(args: &[&str]) -> Result<()> {
    fixtures::succeed(&mut cargo_command(args))
}

fn cargo_command(args: &[&str]) -> Command {
    // The cargo that runs this task.
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}
