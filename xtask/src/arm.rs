//! A toolchain for 64-bit ARM from Debian's packages, and the tests that run with it on an emulator.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use qwen3_embed::Embedder;
use serde_json::Value;

use crate::debian;
use crate::executables::{self, Executable};
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
pub(crate) const TARGET: &str = "aarch64-unknown-linux-gnu";

/// The oldest version of Rust that compiles the workspace.
const OLDEST_RUST: &str = env!("CARGO_PKG_RUST_VERSION");

/// The emulated CPUs. Each has instructions that the CPU before it does not have. The last CPU runs the kernel sets of
/// all others, too. The others show that no kernel set uses instructions that the CPU does not have.
const CPUS: [(&str, &str); 4] = [
    ("cortex-a53", "NEON"),
    ("neoverse-n1", "and dot products of bytes"),
    ("neoverse-v1", "and matrix products of bytes"),
    (LAST_CPU, "and bf16"),
];

/// The last of [`CPUS`].
const LAST_CPU: &str = "neoverse-n2";

/// Cargo options of the tests. Dependencies are not optimized, because compiling them takes longer than running the
/// tests. Without optimizations, the assembly in gemm-f16 is in functions that may not use its instructions. The kernels
/// have no debug assertions, which would make their code much larger.
const OPTIONS: [&str; 4] = [
    "--config=profile.dev.package.'*'.opt-level=0",
    "--config=profile.dev.package.gemm-f16.opt-level=1",
    "--config=profile.dev.package.qwen3-embed-kernels.debug-assertions=false",
    "--config=profile.dev.package.qwen3-embed-kernels.overflow-checks=false",
];

/// Options that skip the tests that take minutes on an emulator. On emulated ARM CPUs, these run on the last CPU only.
pub(crate) const SKIP_SLOW: [&str; 4] =
    ["--skip", "attention", "--skip", "error_is_within_the_bound_of_rounded_operands"];

/// The tests of the kernels that run on each emulated CPU and with other tools. `memory` is not among them, because it
/// takes minutes on an emulator, and its allocator counts allocations.
pub(crate) const KERNEL_TESTS: [&str; 7] = [
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

/// The largest difference between a similarity on the emulated CPU and on this machine. The kernel sets of both round
/// differently.
const MOST_DIFFERENT: f32 = 0.01;

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

/// Test the kernels and the command on emulated ARM CPUs
///
/// The tests of the kernels run on four emulated CPUs. On the last one, a fixture is also compared with transformers,
/// and `qwen3-embed similarity` must print the same matrix as on this machine.
#[derive(clap::Args)]
pub(crate) struct TestArgs {
    /// Test only the kernels, on one CPU with all kernel sets, and skip slow tests
    #[arg(long)]
    quick: bool,
}

/// Runs `cargo xtask arm-test`.
pub(crate) fn test(args: &TestArgs) -> Result<()> {
    let toolchain = Toolchain::assemble(&default_folder())?;
    if args.quick { toolchain.quick_test() } else { toolchain.test() }
}

/// The folder of the toolchain if no other is given.
pub(crate) fn default_folder() -> PathBuf {
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
    pub(crate) fn variables(&self) -> [(&'static str, String); 6] {
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

    /// Compiles tests and the command, and runs them on emulated CPUs.
    fn test(&self) -> Result<()> {
        let kernels = self.build_tests(&KERNEL_TESTS)?;
        let model = self.build_tests(&MODEL_TESTS)?;
        for (cpu, instructions) in CPUS {
            let start = Instant::now();
            // The last CPU runs every test.
            let is_last = cpu == LAST_CPU;
            for test in &kernels {
                self.run_test(test, cpu, if is_last { &[] } else { &SKIP_SLOW })?;
            }
            for test in model.iter().filter(|_| is_last) {
                self.run_test(test, cpu, &MODEL_FILTERS)?;
            }
            println!("{cpu} ({instructions}): {:.0} s", start.elapsed().as_secs_f64());
        }
        self.test_command()
    }

    /// Compiles the tests of the kernels, and runs those that are not slow on the last emulated CPU.
    pub(crate) fn quick_test(&self) -> Result<()> {
        self.build_tests(&KERNEL_TESTS)?
            .iter()
            .try_for_each(|test| self.run_test(test, LAST_CPU, &SKIP_SLOW))
    }

    /// Runs a test program on an emulated CPU.
    fn run_test(&self, test: &Executable, cpu: &str, args: &[&str]) -> Result<()> {
        let mut command = self.emulate(cpu, &test.path);
        command.current_dir(root().join("crates").join(&test.package));
        workspace::run(command.arg("--quiet").args(args))
    }

    /// Compiles the command, and compares the matrix that `qwen3-embed similarity` prints on the last emulated CPU with
    /// the similarities that this machine computes.
    fn test_command(&self) -> Result<()> {
        let texts = [
            "今天天气很好,适合去公园散步。",
            "The weather is lovely today, perfect for a walk in the park.",
            "今日は天気が良いので、公園を散歩するのに最適です。",
            "The stock market fell sharply on Monday.",
        ];
        let built = self.build(&["build"], &["--package=qwen3-embed-cli", "--bin=qwen3-embed"])?;
        let [program] = &built[..] else { bail!("expected one program, got {built:?}") };
        let mut command = self.emulate(LAST_CPU, &program.path);
        let output = command.args(["similarity", "--json"]).args(texts).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?} failed: {error}");
        let output: Value = serde_json::from_slice(&output.stdout)?;
        let got: Vec<Vec<f32>> = serde_json::from_value(output["similarities"].clone())?;

        let vectors = Embedder::builder(root().join("crates/qwen3-embed-demo/model"))
            .build()?
            .embed_documents(&texts)?;
        let similarities = vectors.similarity(&vectors)?;
        ensure!(got.len() == texts.len(), "expected a row for each text, got {got:?}");
        for (row, got) in got.iter().enumerate() {
            let expected = similarities.row(row);
            let is_close = |(a, b): (&f32, &f32)| (a - b).abs() <= MOST_DIFFERENT;
            ensure!(
                got.len() == expected.len() && got.iter().zip(expected).all(is_close),
                "row {row} of the matrix is {got:?}, and {expected:?} on this machine"
            );
        }
        println!("qwen3-embed similarity on {LAST_CPU}: {got:.3?}");
        Ok(())
    }

    /// A command that runs a program on the last emulated CPU.
    pub(crate) fn command(&self, program: &Path) -> Command {
        self.emulate(LAST_CPU, program)
    }

    /// A command that runs a program on an emulated CPU.
    fn emulate(&self, cpu: &str, program: &Path) -> Command {
        let mut command = Command::new(self.folder.join("qemu-aarch64"));
        command.arg("-L").arg(self.libraries()).arg(program).env("QEMU_CPU", cpu);
        command
    }

    /// Compiles tests.
    fn build_tests(&self, tests: &[&str]) -> Result<Vec<Executable>> {
        let programs = self.build(&["test", "--no-run"], tests)?;
        let n_tests = tests.iter().filter(|test| !test.starts_with("--package")).count();
        ensure!(programs.len() == n_tests, "expected {n_tests} programs, got {programs:?}");
        Ok(programs)
    }

    /// Compiles with a command of cargo. Returns the programs.
    fn build(&self, command: &[&str], options: &[&str]) -> Result<Vec<Executable>> {
        const ARGS: [&str; 3] = ["--message-format=json", "--target", TARGET];
        let mut build = cargo_command(&[command, &ARGS[..], &OPTIONS, options].concat());
        // The compiler is another one than that of the workspace, so the build has a folder of its own.
        build.envs(self.variables()).env("CARGO_TARGET_DIR", root().join("target/arm"));
        executables::build(&mut build)
    }
}
