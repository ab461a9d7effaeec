//! Tests with `AddressSanitizer`, and with Valgrind.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::arm::{KERNEL_TESTS, SKIP_SLOW};
use crate::executables;
use crate::workspace::{self, cargo_command, root};

/// Run the tests of the kernels with AddressSanitizer or with Valgrind
///
/// The sanitizer is an unstable option of the compiler, which this task allows with `RUSTC_BOOTSTRAP`. The build has its
/// own target folder and takes several minutes. `memcheck` needs Valgrind. There is no task for ThreadSanitizer, because
/// it reports races in every lock of a standard library that is not compiled with it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The tool
    #[arg(value_enum)]
    tool: Tool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Tool {
    /// `AddressSanitizer`: accesses outside of allocations
    Address,
    /// Valgrind's memcheck: accesses outside of allocations, and uninitialized values
    Memcheck,
}

/// Options that skip a test that measures the speed of the CPU. With memcheck, it is too slow.
const SKIP_SPEED: [&str; 2] = ["--skip", "measured_peak_is_plausible_for_a_cpu"];

/// The target, which must be named so that build scripts and procedural macros are compiled without the sanitizer.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Cargo options: the dependencies that take the longest to compile are not optimized.
const OPTIONS: [&str; 3] = [
    "--config=profile.dev.package.candle-core.opt-level=0",
    "--config=profile.dev.package.candle-nn.opt-level=0",
    "--config=profile.dev.package.tokenizers.opt-level=0",
];

/// Runs `cargo xtask sanitize`.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        cfg!(all(target_arch = "x86_64", target_os = "linux")),
        "these tools are used on Linux on x86-64 only"
    );
    match args.tool {
        Tool::Address => address(),
        Tool::Memcheck => memcheck(),
    }
}

/// Builds the tests of the kernels with `AddressSanitizer` and runs them.
fn address() -> Result<()> {
    let mut command = cargo_command(&["test", "--target", TARGET]);
    command.args(OPTIONS).args(KERNEL_TESTS);
    command.env("CARGO_TARGET_DIR", root().join("target/sanitize"));
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
    // Memory that is never freed is not an error: the tests keep models until the process ends.
    command.env("ASAN_OPTIONS", "detect_leaks=0");
    workspace::run(&mut command)
}

/// Runs the tests of the kernels with memcheck. Valgrind hides AVX-512 from programs, so the kernel sets are those up
/// to AVX2 and the emulated sets.
fn memcheck() -> Result<()> {
    let mut build = cargo_command(&["test", "--workspace", "--no-run", "--message-format=json"]);
    let mut programs = executables::build(&mut build)?;
    programs.retain(|program| {
        let is_listed = KERNEL_TESTS.contains(&format!("--test={}", program.name).as_str());
        program.is_test
            && program.package == "qwen3-embed-kernels"
            && (is_listed || program.name == "qwen3_embed_kernels")
    });
    ensure!(
        programs.len() == KERNEL_TESTS.len() - 1,
        "expected every test program, got {programs:?}"
    );
    for program in &programs {
        let start = Instant::now();
        let mut command = Command::new("valgrind");
        command.args(["--quiet", "--error-exitcode=9", "--errors-for-leak-kinds=none"]);
        command.arg(&program.path).args(["--quiet", "--test-threads=1"]);
        command.args(SKIP_SLOW).args(SKIP_SPEED);
        command.current_dir(root().join("crates").join(&program.package));
        workspace::run(&mut command)?;
        println!("{} with memcheck: {:.0} s", program.name, start.elapsed().as_secs_f64());
    }
    Ok(())
}
