//! Development tasks of the workspace. `cargo xtask --help` lists the tasks.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "tasks report to the terminal")]

mod arm;
mod book;
mod checkpoint_tensors;
mod ci;
mod cuda_toolkit;
mod cycles;
mod debian;
mod e2e;
mod emulated_device;
mod executables;
mod fixtures;
mod gguf;
mod gpu_check;
mod inner_loops;
mod invariants;
mod kernel_sets;
mod oracle_parity;
mod parity;
mod postgres;
mod quality;
mod random_checkpoint;
mod release;
mod rerank_parity;
mod sanitize;
mod supply;
mod test_names;
mod workspace;

use clap::{Parser, Subcommand};

/// Development tasks of the qwen3-embed workspace
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Parity(parity::Args),
    Fixtures(fixtures::Args),
    RandomCheckpoint(random_checkpoint::Args),
    Gguf(gguf::Args),
    Quality(quality::Args),
    CudaToolkit(cuda_toolkit::Args),
    /// Build a library that emulates a CUDA device, for machines without one
    ///
    /// Programs that are built with the toolkit of `cargo xtask cuda-toolkit` run on the emulated device if its folder
    /// is in LD_LIBRARY_PATH. The device is slow, and has the kernels of this project and few of candle's. This task
    /// needs a C++ compiler. It prints the environment variable.
    EmulatedDevice,
    GpuCheck(gpu_check::Args),
    ArmToolchain(arm::Args),
    ArmTest(arm::TestArgs),
    E2e(e2e::Args),
    Postgres(postgres::Args),
    InnerLoops(inner_loops::Args),
    Supply(supply::Args),
    Features(supply::FeaturesArgs),
    Release(release::Args),
    Sanitize(sanitize::Args),
    /// Run tests of the crates qwen3-embed-kernels, qwen3-embed-model and qwen3-embed with each kernel set that
    /// this CPU supports
    KernelSets,
    /// Check the rules of ARCHITECTURE.md: which crates may depend on which, no dependency cycles between files, and
    /// others
    Invariants,
    /// Build the guide in `docs` as a book in `target/book`, and check its links and those of all Markdown files
    Book,
    /// Run all checks of CI except for `cargo test`
    Ci,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Parity(args) => parity::run(&args),
        Task::Fixtures(args) => fixtures::run(&args),
        Task::RandomCheckpoint(args) => random_checkpoint::run(&args),
        Task::Gguf(args) => gguf::run(&args),
        Task::Quality(args) => quality::run(&args),
        Task::CudaToolkit(args) => cuda_toolkit::run(&args),
        Task::EmulatedDevice => emulated_device::run(),
        Task::GpuCheck(args) => gpu_check::run(&args),
        Task::ArmToolchain(args) => arm::run(&args),
        Task::ArmTest(args) => arm::test(&args),
        Task::E2e(args) => e2e::run(&args),
        Task::Postgres(args) => postgres::run(&args),
        Task::InnerLoops(args) => inner_loops::run(&args),
        Task::Supply(args) => supply::run(&args),
        Task::Features(args) => supply::check_features(&args),
        Task::Release(args) => release::run(&args),
        Task::Sanitize(args) => sanitize::run(&args),
        Task::KernelSets => kernel_sets::test(),
        Task::Invariants => invariants::check(),
        Task::Book => book::check(),
        Task::Ci => ci::run(),
    }
}
