//! The layering of the crates that ARCHITECTURE.md describes, checked.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::root;

/// Each crate and the crates of this workspace that it may depend on.
const LAYERS: [(&str, &[&str]); 7] = [
    ("qwen3-embed-kernels", &[]),
    ("qwen3-embed-model", &["qwen3-embed-kernels"]),
    ("qwen3-embed-text", &[]),
    ("qwen3-embed", &["qwen3-embed-model", "qwen3-embed-text"]),
    ("qwen3-embed-server", &["qwen3-embed"]),
    ("qwen3-embed-cli", &["qwen3-embed", "qwen3-embed-server"]),
    ("xtask", &["qwen3-embed", "qwen3-embed-model"]),
];

/// Dependencies and the only crates that may have them.
const OWNERS: [(&str, &[&str]); 9] = [
    ("candle-core", &["qwen3-embed-kernels", "qwen3-embed-model"]),
    ("tokenizers", &["qwen3-embed-text"]),
    ("memmap2", &["qwen3-embed-model"]),
    ("hf-hub", &["qwen3-embed"]),
    ("reqwest", &["qwen3-embed"]),
    ("ureq", &["qwen3-embed"]),
    ("axum", &["qwen3-embed-server"]),
    ("hyper", &["qwen3-embed-server"]),
    ("tokio", &["qwen3-embed-server", "qwen3-embed-cli"]),
];

/// Library code and what it must not mention, with the files that may.
const WORDS: [(&str, &str, &[&str]); 9] = [
    // Only `ops`, what launches on a card, and the error that carries candle's, know tensors.
    ("crates/qwen3-embed-kernels/src/cpu", "candle", &[]),
    (
        "crates/qwen3-embed-kernels/src",
        "candle",
        &["ops.rs", "on_cuda.rs", "device.rs", "tests.rs", "error.rs", "lib.rs"],
    ),
    ("crates/qwen3-embed-model/src", "is_cuda", &[]),
    ("crates/qwen3-embed-kernels/src", "feature_detected", &["dispatch.rs"]),
    ("crates/qwen3-embed-model/src", "fs::", &["weights.rs"]),
    ("crates/qwen3-embed-model/src", "unsafe", &["weights.rs"]),
    ("crates/qwen3-embed-text/src", "fs::", &[]),
    ("crates/qwen3-embed/src", "fs::", &["source.rs"]),
    ("crates/qwen3-embed-server/src", "fs::", &[]),
];

/// Crates without unsafe code.
const SAFE: [&str; 5] = [
    "crates/qwen3-embed-text/src/lib.rs",
    "crates/qwen3-embed/src/lib.rs",
    "crates/qwen3-embed-server/src/lib.rs",
    "crates/qwen3-embed-cli/src/main.rs",
    "xtask/src/main.rs",
];

/// Checks every invariant.
pub(crate) fn check() -> Result<()> {
    check_dependencies()?;
    for (folder, word, allowed) in WORDS {
        for file in rust_files(&root().join(folder))? {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let text = fs::read_to_string(&file)?;
            let mention = allowed.contains(&&*name) || !code(&text).any(|line| line.contains(word));
            ensure!(mention, "{} mentions `{word}`", file.display());
        }
    }
    for file in SAFE {
        let text = fs::read_to_string(root().join(file)).with_context(|| file.to_owned())?;
        ensure!(text.contains("#![forbid(unsafe_code)]"), "{file} does not forbid unsafe code");
    }
    println!("the layers hold");
    Ok(())
}

fn check_dependencies() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .current_dir(root())
        .output()?;
    ensure!(output.status.success(), "cargo metadata failed");
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let names: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    ensure!(names == LAYERS.iter().map(|(name, _)| *name).collect(), "crates are {names:?}");
    for package in packages {
        let name = package["name"].as_str().context("a package without a name")?;
        for dependency in normal_dependencies(package) {
            let layer = LAYERS.iter().find(|(layer, _)| *layer == name);
            let below = layer.map_or(&[][..], |(_, below)| below);
            let known = !names.contains(dependency) || below.contains(&dependency);
            ensure!(known, "{name} depends on {dependency}, which is not below it");
            let owner = OWNERS.iter().find(|(owned, _)| *owned == dependency);
            let owned = owner.is_none_or(|(_, owners)| owners.contains(&name));
            ensure!(owned, "{name} depends on {dependency}, which belongs to {owner:?}");
        }
    }
    Ok(())
}

/// The dependencies that a package's users build, without those of its tests.
fn normal_dependencies(package: &Value) -> impl Iterator<Item = &str> {
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    dependencies.filter(|d| d["kind"].is_null()).filter_map(|d| d["name"].as_str())
}

/// Lines that are no comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}
