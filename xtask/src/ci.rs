use std::env;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::cuda_toolkit::Toolkit;
use crate::e2e::Clients;
use crate::{fixtures, invariants, kernel_sets, parity, root};

/// Other features need another build of what a package depends on, which nobody waits for to run: it is compiled
/// sooner than it is optimised.
const QUICKLY: [&str; 2] = [
    "--config=profile.dev.package.'*'.opt-level=0",
    "--config=profile.dev.package.qwen3-embed-kernels.opt-level=0",
];

/// Everything that has to hold besides the tests: format, lints, documentation, the tests that depend on
/// the CPU with each kernel set, the layering of the
/// crates, the fixtures' hashes, parity, the examples, the server with real clients, and the feature `cuda`,
/// as far as it goes without a CUDA device.
pub(crate) fn run() -> Result<()> {
    step("format", || cargo(&["fmt", "--all", "--check"]))?;
    step("lints", || cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    step("documentation", || {
        let mut command = cargo_command(&["doc", "--workspace", "--no-deps"]);
        fixtures::succeed(command.env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    step("kernel sets", kernel_sets::test)?;
    step("without the hub", || {
        let package = ["--package=qwen3-embed", "--no-default-features", "--test=without_hub"];
        cargo(&[&["test"], &package[..], &QUICKLY].concat())
    })?;
    step("hf-hub", || {
        let package = ["--package=qwen3-embed-hub", "--features=hf-hub"];
        let clippy = [&["clippy", "--all-targets"], &package[..], &QUICKLY];
        cargo(&[&clippy.concat()[..], &["--", "-D", "warnings"]].concat())?;
        cargo(&[&["test"], &package[..], &QUICKLY].concat())
    })?;
    step("invariants", invariants::check)?;
    step("fixtures", fixtures::check)?;
    step("parity", || parity::fixtures(1e-5))?;
    for example in ["multilingual_similarity", "retrieve_and_rerank"] {
        step(example, || cargo(&["run", "--release", "--example", example]))?;
    }
    // What cannot be checked here is said last.
    let mut unchecked = Vec::new();
    match Clients::assemble().map(Clients::with_installed_chromium) {
        Ok(clients) => {
            step("clients", || clients.check(""))?;
            if !clients.have_a_browser() {
                unchecked.push("the playground: there is no Chromium".to_owned());
            }
        }
        Err(error) => unchecked.push(format!("the server with real clients: {error:#}")),
    }
    match Toolkit::assemble(&root().join("target/cuda-toolkit")) {
        Ok(toolkit) => step("cuda", || cuda(&toolkit))?,
        Err(error) => unchecked.push(format!("the feature `cuda`: {error:#}")),
    }
    for what in unchecked {
        println!("\n{0}\nNOT CHECKED: {what}\n{0}", "!".repeat(100));
    }
    Ok(())
}

/// The feature `cuda`: lints, and tests, whose programs are linked: of the kernels, and of what is said where
/// there is no device. Its kernels are compiled, candle's are not: what is built here is of no use with a device, and so
/// lies in a folder of its own.
fn cuda(toolkit: &Toolkit) -> Result<()> {
    const FOLDER: &str = "target/cuda-without-device";
    const FEATURES: &str = "--features=qwen3-embed-kernels/cuda,qwen3-embed-cli/cuda,xtask/cuda";
    let command = |args: &[&str]| -> Result<Command> {
        let mut command = cargo_command(args);
        command.env("CARGO_TARGET_DIR", root().join(FOLDER));
        toolkit.set(&mut command, false)?;
        Ok(command)
    };
    let clippy = ["clippy", "--workspace", "--all-targets", FEATURES];
    fixtures::succeed(&mut command(&[&clippy[..], &QUICKLY, &["--", "-D", "warnings"]].concat())?)?;
    // In one build. What needs a device is ignored.
    let packages = ["--package=qwen3-embed-kernels", "--package=qwen3-embed-model"];
    let features = "--features=qwen3-embed-kernels/cuda,qwen3-embed-model/cuda";
    let tests = ["--lib", "--test=cuda", features, "cuda"];
    fixtures::succeed(&mut command(&[&["test"], &packages[..], &QUICKLY, &tests].concat())?)
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

/// The cargo that runs this task.
pub(crate) fn cargo_command(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What it says of the package `xtask` would have crates whose build scripts look at it built again.
    let is_of_this_package =
        |name: &str| name.starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR";
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_this_package) {
            command.env_remove(name);
        }
    }
    command.args(args).current_dir(root());
    command
}
