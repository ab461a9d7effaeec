use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::cuda_toolkit::Toolkit;
use crate::e2e::Clients;
use crate::postgres::Server;
use crate::workspace::{self, cargo_command, root};
use crate::{
    arm, book, emulated_device, fixtures, invariants, kernel_sets, parity, quality, supply,
};

/// Cargo options that turn off the optimization of the packages that take the longest to compile. Builds with other
/// features, which compile these packages again, use the options because they have few tests.
const UNOPTIMIZED: [&str; 8] = [
    "--config=profile.dev.package.candle-core.opt-level=0",
    "--config=profile.dev.package.candle-nn.opt-level=0",
    "--config=profile.dev.package.gemm-common.opt-level=0",
    "--config=profile.dev.package.gemm-f16.opt-level=0",
    "--config=profile.dev.package.gemm-f32.opt-level=0",
    "--config=profile.dev.package.gemm-f64.opt-level=0",
    "--config=profile.dev.package.tokenizers.opt-level=0",
    "--config=profile.dev.package.qwen3-embed-kernels.opt-level=0",
];

/// Runs all checks of CI except for `cargo test`: the format, the lints, the documentation, the tests of
/// [`kernel_sets`], the fuzz targets, the builds without the hub, without the bundled model and with hf-hub, the guide,
/// the invariants, the hashes of the fixtures, parity, the quality of the bundled model, the SQL functions, the simulation
/// of a cluster, the examples, the licenses and sources of dependencies, the packages of the crates, the server with real
/// clients, the example for PostgreSQL, the kernels for ARM on one emulated CPU, and the feature `cuda` on an emulated
/// device.
pub(crate) fn run() -> Result<()> {
    step("format", || cargo(&["fmt", "--all", "--check"]))?;
    step("lints", || cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    step("documentation", || {
        let mut command = cargo_command(&["doc", "--workspace", "--no-deps"]);
        workspace::run(command.env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    step("kernel sets", kernel_sets::test)?;
    step("fuzz targets", || {
        let mut command = cargo_command(&["test", "--workspace", "--test=smoke"]);
        // Seconds for each target. Two targets run at once on two cores.
        workspace::run(command.env("QWEN3_EMBED_FUZZ_SECONDS", "4"))
    })?;
    other_features()?;
    step("guide", book::check)?;
    step("invariants", invariants::check)?;
    step("fixtures", fixtures::check)?;
    step("parity", || parity::fixtures(1e-5))?;
    step("quality", quality::check)?;
    step("SQL", sql)?;
    step("simulation", || {
        let mut python = Command::new("python3");
        python.current_dir(root()).args(["bench/simulation/cluster.py", "--check"]);
        workspace::run(&mut python)
    })?;
    for example in ["multilingual_similarity", "retrieve_and_rerank"] {
        step(example, || cargo(&["run", "--example", example]))?;
    }
    // Checks that this machine cannot run are listed at the end, so that they are noticed.
    let mut unchecked = Vec::new();
    unchecked.extend(supply_chain()?);
    match Clients::assemble().map(Clients::with_installed_chromium) {
        Ok(clients) => {
            step("server with real clients", || clients.check(""))?;
            if !clients.have_a_browser() {
                unchecked.push("the playground, because Chromium is not installed".to_owned());
            }
        }
        Err(error) => unchecked
            .push(format!("the server with real clients, because of this error: {error:#}")),
    }
    match Server::start() {
        Ok(server) => step("pgvector", || {
            let test = ["test", "--workspace", "--test=outputs", "--", "--ignored", "postgresql"];
            workspace::run(cargo_command(&test).env("DATABASE_URL", server.url()))
        })?,
        Err(error) => {
            unchecked.push(format!("the example for PostgreSQL, because of this error: {error:#}"))
        }
    }
    match arm::Toolchain::assemble(&arm::default_folder()) {
        Ok(toolchain) => step("kernels for ARM", || toolchain.quick_test())?,
        Err(error) => {
            unchecked.push(format!("the kernels for ARM, because of this error: {error:#}"))
        }
    }
    let toolkit = Toolkit::assemble(&root().join("target/cuda-toolkit"));
    match toolkit.and_then(|toolkit| Ok((toolkit, emulated_device::build()?))) {
        Ok((toolkit, device)) => step("cuda", || cuda(&toolkit, &device))?,
        Err(error) => {
            unchecked.push(format!("the feature `cuda`, because of this error: {error:#}"))
        }
    }
    for what in unchecked {
        println!("\n{0}\nNOT CHECKED: {what}\n{0}", "!".repeat(100));
    }
    Ok(())
}

/// Checks the builds with other features than the default ones.
fn other_features() -> Result<()> {
    step("build without the hub", || {
        let package = ["--package=qwen3-embed", "--no-default-features", "--test=without_hub"];
        cargo(&[&["test"], &package[..], &UNOPTIMIZED].concat())
    })?;
    // The lints have checked the dependencies already, so this takes seconds.
    step("build without the bundled model", || {
        cargo(&["clippy", "--workspace", "--no-default-features", "--", "-D", "warnings"])
    })?;
    // Without clippy, which would compile 190 dependencies a second time.
    step("build with hf-hub", || cargo(&["test", "--package=qwen3-embed-hub", "--features=hf-hub"]))
}

/// Checks the licenses and sources of dependencies and the packages of the crates. Returns what was not checked.
fn supply_chain() -> Result<Option<String>> {
    if let Err(error) = supply::tools() {
        return Ok(Some(format!("dependencies and packages, because of this error: {error:#}")));
    }
    step("supply chain", supply::check).map(|()| None)
}

/// Checks the feature `cuda`: the lints, and the tests on an emulated device. Only the packages with code for the feature
/// are built. The kernels of this project are compiled and candle's kernels are not, so the build cannot be used with a
/// device and has its own target folder.
fn cuda(toolkit: &Toolkit, device: &Path) -> Result<()> {
    // One build covers both packages. Tests that need a device have the attribute `ignore`.
    let packages = ["test", "--package=qwen3-embed-kernels", "--package=qwen3-embed-model"];
    let features = "--features=qwen3-embed-kernels/cuda,qwen3-embed-model/cuda";
    let targets = [&["--lib", "cuda"][..], &["--test=cuda"], &["--test=emulated_device"]];
    for target in targets {
        let options = [features, "--", "--include-ignored"];
        let mut command = cargo_command(&[&packages[..], &UNOPTIMIZED, target, &options].concat());
        command.env("CARGO_TARGET_DIR", root().join("target/cuda-without-device"));
        command.env("LD_LIBRARY_PATH", device);
        command.env("EMULATED_DEVICE_COUNTS", device.join("counts"));
        toolkit.set(&mut command, false)?;
        workspace::run(with_lints(&mut command))?;
    }
    Ok(())
}

/// Checks the workspace of the SQL functions, which is not a part of this workspace: the format, the tests and the lints.
fn sql() -> Result<()> {
    let command = |args: &[&str]| {
        let mut command = cargo_command(args);
        command.current_dir(root().join("integrations/datafusion"));
        command.env("CARGO_TARGET_DIR", root().join("target/datafusion"));
        command
    };
    workspace::run(&mut command(&["fmt", "--check"]))?;
    workspace::run(with_lints(&mut command(&["test", "--workspace", "--locked"])))
}

/// Makes a build command check the lints of the packages that it builds, with warnings as errors. These are the settings
/// of `cargo clippy`, which would check the dependencies a second time.
fn with_lints(command: &mut Command) -> &mut Command {
    command.env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver");
    command.env("CLIPPY_ARGS", "-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__")
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n== {name}");
    let start = Instant::now();
    work()?;
    println!("== {name}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn cargo(args: &[&str]) -> Result<()> {
    workspace::run(&mut cargo_command(args))
}
