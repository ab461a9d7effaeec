//! Tests with sanitizers, and with Valgrind.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::executables::executables;
use crate::workspace::{self, cargo_command, root};

/// Run tests with a sanitizer or with Valgrind
///
/// The sanitizers are unstable options of the compiler, which this task allows with `RUSTC_BOOTSTRAP`. A build with a
/// sanitizer has its own target folder and takes several minutes. `memcheck` needs Valgrind.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The tool
    #[arg(value_enum)]
    tool: Tool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Tool {
    /// `AddressSanitizer`, with the tests of the kernels: accesses outside of allocations
    Address,
    /// `ThreadSanitizer`, with the tests of the prefix cache and of the service: data races
    Thread,
    /// Valgrind's memcheck, with the tests of the kernels: accesses outside of allocations, and uninitialized values
    Memcheck,
}

/// The tests of the kernels. `memory` is not among them, because its allocator counts allocations. The slow tests are
/// left out.
const KERNELS: [&str; 7] = [
    "--package=qwen3-embed-kernels",
    "--lib",
    "--test=blocks",
    "--test=cpu",
    "--test=int8",
    "--test=ops",
    "--test=search",
];

/// The tests with several threads.
const THREADS: [&str; 4] =
    ["--package=qwen3-embed-model", "--test=sharing", "--package=qwen3-embed", "--test=service"];

/// Tests that take minutes with memcheck, which runs one thread at a time.
const SLOW_WITH_MEMCHECK: [&str; 4] =
    ["--skip", "attention", "--skip", "error_is_within_the_bound_of_rounded_operands"];

/// The target, which must be named so that build scripts and procedural macros are compiled without the sanitizer.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Runs `cargo xtask sanitize`.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        cfg!(all(target_arch = "x86_64", target_os = "linux")),
        "these tools are used on Linux on x86-64 only"
    );
    match args.tool {
        Tool::Address => sanitize("address", "-Zsanitizer=address", &KERNELS),
        // The standard library is not instrumented. crossbeam does not use fences with this option, because
        // ThreadSanitizer does not understand them.
        Tool::Thread => sanitize(
            "thread",
            "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg crossbeam_sanitize_thread",
            &THREADS,
        ),
        Tool::Memcheck => memcheck(),
    }
}

/// Builds tests with a sanitizer and runs them.
fn sanitize(name: &str, flags: &str, tests: &[&str]) -> Result<()> {
    let mut command = cargo_command(&["test", "--target", TARGET]);
    command.args(tests).env("CARGO_TARGET_DIR", root().join("target/sanitize").join(name));
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flags);
    // Memory that is never freed is not an error: the tests keep models until the process ends.
    command.env("ASAN_OPTIONS", "detect_leaks=0").env("TSAN_OPTIONS", "halt_on_error=1");
    workspace::run(&mut command)
}

/// Runs the tests of the kernels with memcheck. Valgrind hides AVX-512 from programs, so the kernel sets are those up
/// to AVX2 and the emulated sets.
fn memcheck() -> Result<()> {
    let mut build = cargo_command(&["test", "--workspace", "--no-run", "--message-format=json"]);
    let output = build.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{build:?} failed");
    let mut programs = executables(&output.stdout)?;
    programs.retain(|program| {
        let is_listed = KERNELS.contains(&format!("--test={}", program.name).as_str());
        program.is_test
            && program.package == "qwen3-embed-kernels"
            && (is_listed || program.name == "qwen3_embed_kernels")
    });
    ensure!(programs.len() == KERNELS.len() - 1, "expected every test program, got {programs:?}");
    for program in &programs {
        let start = Instant::now();
        let mut command = Command::new("valgrind");
        command.args(["--quiet", "--error-exitcode=9", "--errors-for-leak-kinds=none"]);
        command.arg(&program.path).args(["--quiet", "--test-threads=1"]).args(SLOW_WITH_MEMCHECK);
        command.current_dir(root().join("crates").join(&program.package));
        workspace::run(&mut command)?;
        println!("{} with memcheck: {:.0} s", program.name, start.elapsed().as_secs_f64());
    }
    Ok(())
}
