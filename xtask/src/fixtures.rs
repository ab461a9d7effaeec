use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::workspace::{self, root};

/// Generate the fixtures again with fixtures/generate.py, or compare them with their hashes
///
/// The generation needs Python 3.11 or later, and installs the packages of fixtures/requirements.txt in
/// target/fixtures-python.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only compare the fixtures with the hashes in fixtures/SHA256SUMS
    #[arg(long)]
    check: bool,
}

/// Runs `cargo xtask fixtures`.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.check {
        generate()?;
    }
    check()
}

fn generate() -> Result<()> {
    let venv = root().join("target/fixtures-python");
    let python = venv.join("bin/python");
    if !python.is_file() {
        workspace::run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    let folder = root().join("fixtures");
    let requirements = folder.join("requirements.txt");
    workspace::run(Command::new(&python).args(["-m", "pip", "install", "-r"]).arg(requirements))?;
    workspace::run(Command::new(&python).arg(folder.join("generate.py")))
}

/// Compares every fixture with its hash, and checks that every file has a hash.
pub(crate) fn check() -> Result<()> {
    let folder = root().join("fixtures");
    let sums = folder.join("SHA256SUMS");
    let sums = fs::read_to_string(&sums).with_context(|| sums.display().to_string())?;
    for line in sums.lines() {
        let (expected, file) = line
            .split_once("  ")
            .context("fixtures/SHA256SUMS has a line without two spaces between hash and path")?;
        let bytes = fs::read(folder.join(file)).with_context(|| format!("fixtures/{file}"))?;
        let mut got = String::new();
        for byte in Sha256::digest(&bytes) {
            write!(got, "{byte:02x}")?;
        }
        ensure!(got == expected, "fixtures/{file}: expected the hash {expected}, got {got}");
    }
    let listed: BTreeSet<&str> =
        sums.lines().filter_map(|line| Some(line.split_once("  ")?.1)).collect();
    for kind in ["models", "rerankers"] {
        for model in fs::read_dir(folder.join(kind))? {
            for file in fs::read_dir(model?.path())? {
                let path = file?.path();
                let name = path.strip_prefix(&folder)?.to_string_lossy().replace('\\', "/");
                ensure!(
                    listed.contains(name.as_str()),
                    "fixtures/{name} has no hash in SHA256SUMS"
                );
            }
        }
    }
    println!("{} fixtures match their hashes", listed.len());
    Ok(())
}

/// The name of a checkpoint in reports: the name of its folder, or of its GGUF file. GGUF files among the fixtures are
/// all called `model.gguf`, so the name of their folder is used.
pub(crate) fn checkpoint_name(checkpoint: &Path) -> String {
    let is_fixture = checkpoint.ends_with("model.gguf") || checkpoint.ends_with("model");
    let named = if is_fixture { checkpoint.parent() } else { Some(checkpoint) };
    named.and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn fixtures_match_their_hashes() {
        super::check().unwrap();
    }
}
