use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::cuda_toolkit::Toolkit;
use crate::executables;
use crate::workspace::{self, root};

/// Check the code for CUDA devices on another machine, which has a device and needs no Rust
///
/// With --out, the task builds an archive with programs and the script `run.sh`. Copy this repository and the archive to
/// the machine with the device, unpack the archive, and run the script in the root folder of the repository. The script
/// runs this task with --run. It compares the kernels with their references and the fixtures with transformers, and runs
/// benchmarks. If compute-sanitizer is installed, it also runs the kernels under memcheck and racecheck. Each check is
/// stopped after 150 seconds. After each check, the task writes the results to gpu-check.json and to gpu-check.txt, which
/// is a table.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder to write the archive gpu-check.tar.xz to, or with --run, the results
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Folder of the unpacked archive. Its programs check this machine's first CUDA device
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
}

/// The longest time of a check, in seconds.
const MAX_SECONDS: u32 = 150;

/// Maximum size of the archive in bytes. Some services that lend devices limit the size of the archive together with that
/// of the repository, which is 37 MiB, to 64 MiB.
const MAX_BYTES: u64 = 24 << 20;

/// The programs of the archive: the name in the archive, the package, and the name of the cargo target. The test
/// programs run in this order.
const PROGRAMS: [(&str, &str, &str); 5] = [
    ("qwen3-embed", "qwen3-embed-cli", "qwen3-embed"),
    ("xtask", "xtask", "xtask"),
    ("test-kernels", "qwen3-embed-kernels", "qwen3_embed_kernels"),
    ("test-operations", "qwen3-embed-kernels", "cuda"),
    ("test-model", "qwen3-embed-model", "cuda"),
];

/// The features of the packages in [`PROGRAMS`].
const FEATURES: &str =
    "--features=qwen3-embed-cli/cuda,qwen3-embed-kernels/cuda,qwen3-embed-model/cuda,xtask/cuda";

const SCRIPT: &str = r#"#!/bin/sh
# Checks this machine's first CUDA device with the fixtures in the current folder, which must be the root folder of the
# repository. Writes gpu-check.json and gpu-check.txt to the folder $OUT, or to the current folder. With arguments, the
# script runs them as a command instead, with the path of CUDA's libraries.
here=$(cd "$(dirname "$0")" && pwd)
# Python packages may contain CUDA's libraries.
packages=$(python3 -c '
import importlib.util as util, os
found = util.find_spec("nvidia")
print(":".join(os.path.join(folder, "cu13/lib") for folder in (found.submodule_search_locations if found else [])))
' 2>/dev/null)
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/usr/local/cuda/lib64${packages:+:$packages}"
if [ $# -gt 0 ]; then exec "$@"; fi
exec "$here/bin/xtask" gpu-check --run "$here" --out "${OUT:-.}"
"#;

/// Runs `cargo xtask gpu-check`.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.run {
        None => bundle(&args.out),
        Some(folder) => check(folder, &args.out),
    }
}

/// Builds the programs and packs them.
fn bundle(out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    let archive = std::path::absolute(out)?.join("gpu-check.tar.xz");
    let toolkit = Toolkit::assemble(&root().join("target/cuda-toolkit"))?;
    // The build has its own target folder, so that it does not reuse files that another nvcc has compiled.
    let target = root().join("target/gpu-check");
    // Both builds select the same packages. Otherwise the dependencies would have other features in the second build,
    // and candle's kernels would be compiled again, which takes minutes.
    let mut built = Vec::new();
    for targets in [["build", "--bins", "--test=cuda"], ["test", "--no-run", "--lib"]] {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(targets).current_dir(root()).env("CARGO_TARGET_DIR", &target);
        command.args(PROGRAMS.map(|(_, package, _)| format!("--package={package}"))).arg(FEATURES);
        command.args(["--no-default-features", "--release"]);
        command.arg("--config=profile.release.strip='symbols'");
        toolkit.set(&mut command, true)?;
        built.extend(executables::build(command.arg("--message-format=json"))?);
    }
    let folder = target.join("gpu-check");
    if folder.is_dir() {
        fs::remove_dir_all(&folder)?;
    }
    let bin = folder.join("bin");
    fs::create_dir_all(&bin)?;
    for (name, package, wanted) in PROGRAMS {
        let program = built.iter().find(|built| built.package == package && built.name == wanted);
        let program = program
            .with_context(|| format!("cargo did not build `{wanted}` of the package {package}"))?;
        fs::copy(&program.path, bin.join(name))?;
    }
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT)?;
    workspace::run(Command::new("chmod").arg("+x").arg(&script))?;
    // Every program contains candle's kernels as 30 MB of text, and most of them contain the same libraries. With a
    // dictionary that is larger than all programs, they are stored only once.
    const COMPRESS: &str = "--use-compress-program=xz --x86 --lzma2=preset=9,dict=384MiB";
    let mut tar = Command::new("tar");
    tar.args(["--create", COMPRESS, "--file"]).arg(&archive);
    workspace::run(tar.arg("--directory").arg(&target).arg("gpu-check"))?;
    let n_bytes = fs::metadata(&archive)?.len();
    ensure!(
        n_bytes <= MAX_BYTES,
        "{} has {n_bytes} bytes; expected at most {MAX_BYTES}",
        archive.display()
    );
    println!("{}: {} MiB; unpack it and run run.sh", archive.display(), n_bytes >> 20);
    Ok(())
}

/// The results of all checks on a device.
#[derive(Serialize)]
struct Report {
    /// Name of the device and version of its driver, from nvidia-smi.
    device: String,
    date: String,
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct Check {
    name: String,
    outcome: Outcome,
    seconds: f64,
    output: String,
}

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Passed,
    Failed,
    /// A program that the check needs is not installed.
    NotRun,
}

/// Runs all checks, even after a failure, and fails at the end if any check has failed.
fn check(folder: &Path, out: &Path) -> Result<()> {
    let folder = folder.canonicalize()?;
    let fixtures = env::current_dir()?.join("fixtures");
    ensure!(
        fixtures.join("tokenizer.json").is_file(),
        "{} has no tokenizer.json: run this script in the root folder of the repository",
        fixtures.display()
    );
    fs::create_dir_all(out)?;
    let device =
        first_line_of("nvidia-smi", &["--query-gpu=name,driver_version", "--format=csv,noheader"]);
    let date = first_line_of("date", &["-u", "+%Y-%m-%d"]);
    let mut report = Report { device, date, checks: Vec::new() };
    let model = env::temp_dir().join(format!("qwen3-embed-0.6b-{}", std::process::id()));
    for (name, command) in checks(&folder, &fixtures, &model) {
        report.run(&name, &command)?;
        // The files are written after each check, so that results are not lost if the machine is shut down.
        fs::write(out.join("gpu-check.json"), serde_json::to_string_pretty(&report)?)?;
        fs::write(out.join("gpu-check.txt"), report.table())?;
    }
    if model.is_dir() {
        fs::remove_dir_all(&model)?;
    }
    println!("{}", report.table());
    let failed = report.checks.iter().filter(|check| check.outcome == Outcome::Failed).count();
    ensure!(failed == 0, "{failed} checks failed: see gpu-check.json");
    Ok(())
}

/// The checks. The checks that take longest are last. One check writes a checkpoint with random weights to `model`.
fn checks(folder: &Path, fixtures: &Path, model: &Path) -> Vec<(String, Command)> {
    let bin = folder.join("bin");
    let mut checks = Vec::new();
    let mut add = |name: &str, command: Command| checks.push((name.to_owned(), command));
    for (test, _, _) in PROGRAMS {
        let Some(name) = test.strip_prefix("test-") else { continue };
        let mut command = Command::new(bin.join(test));
        command.env("QWEN3_EMBED_FIXTURES", fixtures);
        command.args(["--ignored", "--test-threads=1"]);
        add(name, command);
    }
    for (name, precision) in [("parity f32", None), ("parity bf16", Some("--bf16"))] {
        let mut command = Command::new(bin.join("xtask"));
        command.args(["parity", "--device=cuda", "--fixtures"]).arg(fixtures).args(precision);
        add(name, command);
    }
    let mut command = Command::new(bin.join("xtask"));
    command.args(["random-checkpoint", "--size=0.6b", "--tokenizer"]);
    command.arg(fixtures.join("tokenizer.json")).arg("--out").arg(model);
    add("random weights of 0.6B", command);
    let mut command = Command::new(bin.join("qwen3-embed"));
    command.args(["bench", "--kernels", "--device=cuda"]);
    add("kernels of 0.6B", command);
    let bench = |precision: &str, shapes: &str| {
        let mut command = Command::new(bin.join("qwen3-embed"));
        command.args(["bench", "--device=cuda", "--shape", shapes, "--precision", precision]);
        command.args(["--queries=64", "--model"]).arg(model);
        command
    };
    add("bench bf16", bench("bf16", "1x32,2x16,32x128,64x512,8x4096,1x32768"));
    for tool in ["memcheck", "racecheck"] {
        let mut command = Command::new("compute-sanitizer");
        command.args(["--tool", tool, "--error-exitcode=1"]).arg(bin.join("test-kernels"));
        command.args(["--ignored", "--test-threads=1"]);
        add(tool, command);
    }
    // Attention in f32 is slow, so long texts would take minutes.
    add("bench f32", bench("f32", "1x32,2x16,32x128,64x512"));
    checks
}

/// The first line of a program's output, or a message that the program printed nothing.
fn first_line_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = text.ok().and_then(|text| text.lines().next().map(str::to_owned));
    line.unwrap_or_else(|| format!("unknown: {program} printed nothing"))
}

impl Report {
    /// Runs the program of a check, and stops it after [`MAX_SECONDS`]. If the program is not installed, the outcome is
    /// [`Outcome::NotRun`].
    fn run(&mut self, name: &str, command: &Command) -> Result<()> {
        // The exit codes of the program `timeout`.
        const STOPPED: i32 = 124;
        const NOT_FOUND: i32 = 127;
        println!("{name} …");
        let mut limited = Command::new("timeout");
        limited.arg(MAX_SECONDS.to_string()).arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            limited.envs(value.map(|value| (key, value)));
        }
        let start = Instant::now();
        let output =
            limited.env("RUST_BACKTRACE", "0").output().with_context(|| name.to_owned())?;
        let both = [output.stdout, output.stderr].concat();
        let mut text = String::from_utf8_lossy(&both).into_owned();
        let outcome = match output.status.code() {
            Some(0) => Outcome::Passed,
            Some(NOT_FOUND) => {
                text = format!("{} is not installed", command.get_program().display());
                Outcome::NotRun
            }
            code => {
                if code == Some(STOPPED) {
                    _ = writeln!(text, "\nstopped after {MAX_SECONDS} seconds");
                }
                Outcome::Failed
            }
        };
        let seconds = start.elapsed().as_secs_f64();
        self.checks.push(Check { name: name.to_owned(), outcome, seconds, output: text });
        Ok(())
    }

    /// The report as a text table.
    fn table(&self) -> String {
        let mut table = format!("{}\n{}\n\n", self.device, self.date);
        for Check { name, outcome, seconds, output } in &self.checks {
            let outcome = match outcome {
                Outcome::Passed => "passed",
                Outcome::Failed => "FAILED",
                Outcome::NotRun => "not run",
            };
            _ = writeln!(table, "{name:<24} {outcome:<8} {seconds:>7.1} s");
            for line in output.lines().filter(|line| !line.trim().is_empty()) {
                _ = writeln!(table, "    {line}");
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_passed_failed_and_missing_checks() {
        let (device, date) = Default::default();
        let mut report = Report { device, date, checks: Vec::new() };
        report.run("a", Command::new("sh").args(["-c", "echo fine"])).unwrap();
        report.run("b", Command::new("sh").args(["-c", "echo oh >&2; exit 3"])).unwrap();
        report.run("c", &Command::new("/there/is/no/such/program")).unwrap();
        let table = report.table();
        for line in ["a .* passed", "fine", "b .* FAILED", "oh", "c .* not run", "is not installed"]
        {
            let mut parts = line.split(" .* ");
            let (first, second) = (parts.next().unwrap(), parts.next().unwrap_or_default());
            let found =
                table.lines().any(|l| l.trim_start().starts_with(first) && l.contains(second));
            assert!(found || table.contains(line), "{line}: {table}");
        }
    }
}
