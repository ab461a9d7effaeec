use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::cuda_toolkit::Toolkit;
use crate::fixtures::succeed;
use crate::root;

/// Check everything that runs on a CUDA device, on a machine that has one and need not have Rust
///
/// With --out: make an archive to take there and unpack, programs, fixtures and a script, `run.sh`. The script
/// runs this task with --run: the kernels against their references, compute-sanitizer's memcheck and racecheck over
/// them where it is installed, the fixtures against transformers, and a benchmark. It writes gpu-check.json
/// and a table, gpu-check.txt.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the archive, gpu-check.tar.xz
    #[arg(long, value_name = "DIR", required_unless_present = "run")]
    out: Option<PathBuf>,
    /// Folder that the archive has, whose checks are to run on this machine's first CUDA device
    #[arg(long, value_name = "DIR", conflicts_with = "out")]
    run: Option<PathBuf>,
}

/// The most bytes that the archive may have.
const MOST_BYTES: u64 = 60 << 20;

/// Programs of tests, by what they test, in the order in which they run.
const TESTS: [(&str, &str, &str); 3] = [
    ("kernels", "qwen3-embed-kernels", "lib"),
    ("operations", "qwen3-embed-kernels", "cuda"),
    ("model", "qwen3-embed-model", "cuda"),
];

const SCRIPT: &str = r#"#!/bin/sh
# Checks this machine's first CUDA device, and writes gpu-check.json and gpu-check.txt in the current folder.
here=$(cd "$(dirname "$0")" && pwd)
# Where Python packages have brought CUDA's libraries.
packages=$(python3 -c '
import importlib.util as util, os
found = util.find_spec("nvidia")
print(":".join(os.path.join(folder, "cu13/lib") for folder in (found.submodule_search_locations if found else [])))
' 2>/dev/null)
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/usr/local/cuda/lib64${packages:+:$packages}"
exec "$here/bin/xtask" gpu-check --run "$here"
"#;

/// Runs `cargo xtask gpu-check`.
pub(crate) fn run(args: &Args) -> Result<()> {
    match (&args.out, &args.run) {
        (Some(out), _) => bundle(out),
        (None, Some(folder)) => check(folder),
        (None, None) => bail!("--out or --run"),
    }
}

/// Builds the programs and packs them, with the fixtures.
fn bundle(out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    let archive = std::path::absolute(out)?.join("gpu-check.tar.xz");
    let toolkit = Toolkit::assemble(&root().join("target/cuda-toolkit"))?;
    // Nothing that was built with another compiler may be taken for what is built here.
    let target = root().join("target/gpu-check");
    let cargo = |args: &[&str]| -> Result<Command> {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(args).current_dir(root()).env("CARGO_TARGET_DIR", &target);
        command.args(["--release", "--config=profile.release.strip='symbols'"]);
        toolkit.set(&mut command, true)?;
        Ok(command)
    };
    let folder = target.join("gpu-check");
    if folder.is_dir() {
        fs::remove_dir_all(&folder)?;
    }
    let bin = folder.join("bin");
    fs::create_dir_all(&bin)?;
    let features = "--features=qwen3-embed-cli/cuda,xtask/cuda";
    succeed(&mut cargo(&["build", "--package=qwen3-embed-cli", "--package=xtask", features])?)?;
    for program in ["qwen3-embed", "xtask"] {
        fs::copy(target.join("release").join(program), bin.join(program))?;
    }
    for (name, package, test) in TESTS {
        let which = if test == "lib" { "--lib".to_owned() } else { format!("--test={test}") };
        let package = format!("--package={package}");
        let arguments = ["test", "--no-run", &package, &which, "--features=cuda"];
        let mut command = cargo(&arguments)?;
        let output = command.arg("--message-format=json").stderr(std::process::Stdio::inherit());
        let output = output.output()?;
        ensure!(output.status.success(), "{command:?} failed");
        fs::copy(executable(&output.stdout)?, bin.join(format!("test-{name}")))?;
    }
    copy_folder(&root().join("fixtures"), &folder.join("fixtures"))?;
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT)?;
    succeed(Command::new("chmod").arg("+x").arg(&script))?;
    // Every program has candle's kernels, 30 MB of text: this compressor looks back far enough to see that.
    let mut tar = Command::new("tar");
    tar.args(["--create", "--use-compress-program=xz -9", "--file"]).arg(&archive);
    succeed(tar.arg("--directory").arg(&target).arg("gpu-check"))?;
    let n_bytes = fs::metadata(&archive)?.len();
    ensure!(n_bytes <= MOST_BYTES, "{} has {n_bytes} bytes", archive.display());
    println!("{}: {} MiB; unpack it and start run.sh", archive.display(), n_bytes >> 20);
    Ok(())
}

/// The program of tests that cargo's messages name.
fn executable(messages: &[u8]) -> Result<PathBuf> {
    for message in messages.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let message: Value = serde_json::from_slice(message)?;
        let is_test = message["profile"]["test"] == true;
        if let (true, Some(program)) = (is_test, message["executable"].as_str()) {
            return Ok(program.into());
        }
    }
    bail!("cargo has built no tests")
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        if path.is_dir() {
            copy_folder(&path, &to.join(name))?;
        } else {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// What was found out about a device.
#[derive(Serialize)]
struct Report {
    /// Its name and its driver's version, as nvidia-smi says.
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
    /// What it needs is not there.
    NotRun,
}

/// Runs all checks, whatever becomes of those before, and fails if one did.
fn check(folder: &Path) -> Result<()> {
    let folder = folder.canonicalize()?;
    let program = |name: &str| folder.join("bin").join(name);
    let device =
        said_by("nvidia-smi", &["--query-gpu=name,driver_version", "--format=csv,noheader"]);
    let date = said_by("date", &["-u", "+%Y-%m-%d"]);
    let mut report = Report { device, date, checks: Vec::new() };
    for (name, _, _) in TESTS {
        let mut command = Command::new(program(&format!("test-{name}")));
        command.env("QWEN3_EMBED_FIXTURES", folder.join("fixtures"));
        command.args(["--ignored", "--test-threads=1"]);
        report.run(name, &mut command)?;
    }
    for tool in ["memcheck", "racecheck"] {
        let mut command = Command::new("compute-sanitizer");
        command.args(["--tool", tool, "--error-exitcode", "1"]).arg(program("test-kernels"));
        report.run(tool, command.args(["--ignored", "--test-threads=1"]))?;
    }
    for (name, precision) in [("parity f32", None), ("parity bf16", Some("--bf16"))] {
        let mut command = Command::new(program("xtask"));
        command.args(["parity", "--device=cuda", "--fixtures"]).arg(folder.join("fixtures"));
        report.run(name, command.args(precision))?;
    }
    let model = env::temp_dir().join(format!("qwen3-embed-0.6b-{}", std::process::id()));
    let mut command = Command::new(program("xtask"));
    command.args(["random-checkpoint", "--size=0.6b", "--tokenizer"]);
    command.arg(folder.join("fixtures/tokenizer.json")).arg("--out").arg(&model);
    report.run("random weights of 0.6B", &mut command)?;
    for precision in ["bf16", "f32"] {
        let mut command = Command::new(program("qwen3-embed"));
        command.args(["bench", "--device=cuda", "--shape=1x32,32x128,32x512,4x4096"]);
        command.args(["--queries=64", "--precision", precision, "--model"]).arg(&model);
        report.run(&format!("bench {precision}"), &mut command)?;
    }
    if model.is_dir() {
        fs::remove_dir_all(&model)?;
    }
    fs::write("gpu-check.json", serde_json::to_string_pretty(&report)?)?;
    let table = report.table();
    fs::write("gpu-check.txt", &table)?;
    println!("{table}");
    let failed = report.checks.iter().filter(|check| check.outcome == Outcome::Failed).count();
    ensure!(failed == 0, "{failed} checks failed: see gpu-check.json");
    Ok(())
}

/// The first line of what a program says, or that it says nothing.
fn said_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = said.ok().and_then(|said| said.lines().next().map(str::to_owned));
    line.unwrap_or_else(|| format!("unknown: {program} says nothing"))
}

impl Report {
    /// Runs a program; one that is not there is a check that was not run.
    fn run(&mut self, name: &str, command: &mut Command) -> Result<()> {
        println!("{name} …");
        command.env("RUST_BACKTRACE", "0");
        let start = Instant::now();
        let (outcome, output) = match command.output() {
            Ok(output) => {
                let both = [output.stdout, output.stderr].concat();
                let success = output.status.success();
                let outcome = if success { Outcome::Passed } else { Outcome::Failed };
                (outcome, String::from_utf8_lossy(&both).into_owned())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                (Outcome::NotRun, format!("{} is not there", command.get_program().display()))
            }
            Err(error) => return Err(error).with_context(|| name.to_owned()),
        };
        let seconds = start.elapsed().as_secs_f64();
        self.checks.push(Check { name: name.to_owned(), outcome, seconds, output });
        Ok(())
    }

    /// Everything that a reader wants to see, line by line.
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
    fn a_check_has_passed_or_failed_or_was_not_run() {
        let (device, date) = Default::default();
        let mut report = Report { device, date, checks: Vec::new() };
        report.run("a", Command::new("sh").args(["-c", "echo fine"])).unwrap();
        report.run("b", Command::new("sh").args(["-c", "echo oh >&2; exit 3"])).unwrap();
        report.run("c", &mut Command::new("/there/is/no/such/program")).unwrap();
        let table = report.table();
        for line in ["a .* passed", "fine", "b .* FAILED", "oh", "c .* not run", "is not there"] {
            let mut parts = line.split(" .* ");
            let (first, second) = (parts.next().unwrap(), parts.next().unwrap_or_default());
            let found =
                table.lines().any(|l| l.trim_start().starts_with(first) && l.contains(second));
            assert!(found || table.contains(line), "{line}: {table}");
        }
    }

    #[test]
    fn the_program_of_tests_is_found_among_cargos_messages() {
        let messages = b"{\"reason\":\"compiler-artifact\",\"profile\":{\"test\":false},\"executable\":null}\n\
            {\"reason\":\"compiler-artifact\",\"profile\":{\"test\":true},\"executable\":\"/a/test\"}\n";
        assert_eq!(executable(messages).unwrap(), PathBuf::from("/a/test"));
        assert!(executable(b"").is_err());
    }
}
