//! A toolchain for 64-bit ARM from Debian's packages, and the tests that run with it on an emulator.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::debian;
use crate::executables::executables;
use crate::workspace::{self, cargo_command, root};

/// Assemble a toolchain for 64-bit ARM Linux from Debian's packages
///
/// The toolchain contains a Rust compiler with the standard library of ARM, a C compiler, and an emulator of ARM CPUs
/// (qemu). It is unpacked and not installed, and takes 820 MB. This task needs Debian or a distribution with its
/// packages, on x86-64. It prints the environment variables for a build, after which
/// `cargo test --target aarch64-unknown-linux-gnu` runs tests on the emulator. The environment variable `QEMU_CPU`
/// chooses the CPU.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the toolchain [default: target/arm-toolchain]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// The target of builds.
const TARGET: &str = "aarch64-unknown-linux-gnu";

/// The oldest version of Rust that compiles the workspace.
const OLDEST_RUST: &str = env!("CARGO_PKG_RUST_VERSION");

/// The emulated CPUs. Each has instructions that the CPU before it does not have. The last CPU runs the kernel sets of
/// all others, too. The others show that no kernel set uses instructions that the CPU does not have.
const CPUS: [(&str, &str); 4] = [
    ("cortex-a53", "NEON"),
    ("neoverse-n1", "and dot products of bytes"),
    ("neoverse-v1", "and matrix products of bytes"),
    ("neoverse-n2", "and bf16"),
];

/// Cargo options of the tests. Dependencies are not optimized, because compiling them takes longer than running the
/// tests. The kernels have no debug assertions, which would make their code much larger.
const OPTIONS: [&str; 3] = [
    "--config=profile.dev.package.'*'.opt-level=0",
    "--config=profile.dev.package.qwen3-embed-kernels.debug-assertions=false",
    "--config=profile.dev.package.qwen3-embed-kernels.overflow-checks=false",
];

/// Tests that take minutes on the emulator. They run on the last CPU only.
const SLOW: [&str; 2] = ["attention", "error_is_within_the_bound_of_rounded_operands"];

/// The tests that run on each emulated CPU: those of the kernels, except for `memory`, which takes minutes.
const KERNEL_TESTS: [&str; 7] = [
    "--package=qwen3-embed-kernels",
    "--lib",
    "--test=blocks",
    "--test=cpu",
    "--test=int8",
    "--test=ops",
    "--test=search",
];

/// The tests of the whole model, which run on the last emulated CPU only.
const MODEL_TESTS: [&str; 3] =
    ["--package=qwen3-embed-model", "--test=parity", "--test=properties"];

/// Of the tests of the model, those that run: the comparison of a fixture with transformers, and the bit-for-bit
/// invariants. The others take too long on the emulator.
const MODEL_FILTERS: [&str; 2] =
    ["every_layer_of_the_base_fixture_matches_transformers", "bit_for_bit"];

/// A toolchain in a folder.
pub(crate) struct Toolchain {
    folder: PathBuf,
}

/// Runs `cargo xtask arm-toolchain`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = args.out.clone().unwrap_or_else(default_folder);
    for (name, value) in Toolchain::assemble(&folder)?.variables() {
        println!("export {name}=\"{value}\"");
    }
    Ok(())
}

/// Runs `cargo xtask arm-test`.
pub(crate) fn test() -> Result<()> {
    Toolchain::assemble(&default_folder())?.test()
}

fn default_folder() -> PathBuf {
    root().join("target/arm-toolchain")
}

impl Toolchain {
    /// Assembles the toolchain in a folder, unless the folder already contains it.
    pub(crate) fn assemble(folder: &Path) -> Result<Self> {
        ensure!(
            cfg!(all(target_arch = "x86_64", target_os = "linux")),
            "the toolchain can be assembled on Linux on x86-64 only"
        );
        fs::create_dir_all(folder)?;
        let toolchain = Self { folder: folder.canonicalize()? };
        // This file is written after all others. It contains the script that made the toolchain.
        let stamp = toolchain.folder.join("assembled");
        let script = [debian::APT, include_str!("../arm/assemble.sh")].concat();
        if fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == script) {
            return Ok(toolchain);
        }
        let mut assemble = Command::new("sh");
        assemble.args(["-ec", &script, "assemble.sh"]).arg(&toolchain.folder).arg(OLDEST_RUST);
        workspace::run(&mut assemble).context("the toolchain for ARM could not be assembled")?;
        fs::write(&stamp, script)?;
        Ok(toolchain)
    }

    /// The environment variables for builds.
    fn variables(&self) -> [(&'static str, String); 6] {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let runner = format!("{} -L {}", path("qemu-aarch64"), self.libraries().display());
        [
            ("RUSTC", path("rust/usr/bin/rustc")),
            ("RUSTDOC", path("rust/usr/bin/rustdoc")),
            ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", path("gcc")),
            ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", runner),
            ("CC_aarch64_unknown_linux_gnu", path("gcc")),
            ("AR_aarch64_unknown_linux_gnu", path("ar")),
        ]
    }

    /// The folder of the C library for ARM.
    fn libraries(&self) -> PathBuf {
        self.folder.join("c/usr/aarch64-linux-gnu")
    }

    /// Compiles tests and runs them on emulated CPUs.
    pub(crate) fn test(&self) -> Result<()> {
        let kernels = self.build(&KERNEL_TESTS)?;
        let model = self.build(&MODEL_TESTS)?;
        for (i, (cpu, instructions)) in CPUS.into_iter().enumerate() {
            let start = Instant::now();
            let is_last = i + 1 == CPUS.len();
            for (package, program) in kernels.iter().chain(model.iter().filter(|_| is_last)) {
                let mut command = Command::new(self.folder.join("qemu-aarch64"));
                command.current_dir(root().join("crates").join(package));
                command.arg("-L").arg(self.libraries()).arg(program).arg("--quiet");
                if !is_last {
                    command.args(SLOW.iter().flat_map(|name| ["--skip", *name]));
                }
                if package == "qwen3-embed-model" {
                    command.args(MODEL_FILTERS);
                }
                workspace::run(command.env("QEMU_CPU", cpu))?;
            }
            println!("{cpu} ({instructions}): {:.0} s", start.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// Compiles tests. Returns the package and the path of each program.
    fn build(&self, tests: &[&str]) -> Result<Vec<(String, PathBuf)>> {
        const ARGS: [&str; 5] = ["test", "--no-run", "--message-format=json", "--target", TARGET];
        let mut build = cargo_command(&[&ARGS, &OPTIONS[..], tests].concat());
        // The compiler is another one than that of the workspace, so the build has a folder of its own.
        build.envs(self.variables()).env("CARGO_TARGET_DIR", root().join("target/arm"));
        let output = build.stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "{build:?} failed");
        let mut programs = executables(&output.stdout)?;
        programs.retain(|program| program.is_test);
        let n_tests = tests.iter().filter(|test| !test.starts_with("--package")).count();
        ensure!(programs.len() == n_tests, "expected {n_tests} programs, got {programs:?}");
        Ok(programs.into_iter().map(|program| (program.package, program.path)).collect())
    }
}
