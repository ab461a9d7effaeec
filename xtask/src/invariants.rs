//! Checks the rules of ARCHITECTURE.md for crates and files.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::workspace::{files, root};
use crate::{cycles, test_names};

/// Each crate and the crates of this workspace that it may depend on.
const LAYERS: [(&str, &[&str]); 13] = [
    // Test support. It depends on no other crate of the workspace, so that the tests of all crates can use it.
    ("qwen3-embed-testing", &[]),
    // The files of the bundled model, which is only data.
    ("qwen3-embed-demo", &[]),
    ("qwen3-embed-kernels", &[]),
    ("qwen3-embed-model", &["qwen3-embed-kernels"]),
    ("qwen3-embed-text", &[]),
    ("qwen3-embed-hub", &[]),
    (
        "qwen3-embed",
        &["qwen3-embed-demo", "qwen3-embed-hub", "qwen3-embed-model", "qwen3-embed-text"],
    ),
    ("qwen3-embed-server", &["qwen3-embed"]),
    ("qwen3-embed-plot", &["qwen3-embed"]),
    ("qwen3-embed-cli", &["qwen3-embed", "qwen3-embed-plot", "qwen3-embed-server"]),
    // What users of the library would write: it knows the facade only, and draws.
    ("qwen3-embed-examples", &["qwen3-embed", "qwen3-embed-plot"]),
    // It calls the code that reads bytes of others, in whichever crate it is.
    (
        "qwen3-embed-fuzz",
        &[
            "qwen3-embed",
            "qwen3-embed-kernels",
            "qwen3-embed-model",
            "qwen3-embed-server",
            "qwen3-embed-testing",
            "qwen3-embed-text",
        ],
    ),
    ("xtask", &["qwen3-embed", "qwen3-embed-model", "qwen3-embed-testing"]),
];

/// Dependencies, and the only crates that may have them.
const OWNERS: [(&str, &[&str]); 15] = [
    // xtask and the fuzz targets write GGUF files with candle-core's quantization.
    (
        "candle-core",
        &[
            "qwen3-embed-kernels",
            "qwen3-embed-model",
            "qwen3-embed-testing",
            "qwen3-embed-fuzz",
            "xtask",
        ],
    ),
    // Only the oracle uses candle-nn, so that the oracle and the model have no layer in common.
    ("candle-nn", &["qwen3-embed-testing"]),
    ("tokenizers", &["qwen3-embed-text"]),
    ("memmap2", &["qwen3-embed-model"]),
    ("reqwest", &[]),
    ("rustls", &[]),
    ("ureq", &["qwen3-embed-hub"]),
    ("hf-hub", &["qwen3-embed-hub"]),
    ("axum", &["qwen3-embed-server", "qwen3-embed-examples", "qwen3-embed-fuzz"]),
    ("hyper", &["qwen3-embed-server"]),
    ("flate2", &["qwen3-embed-server", "qwen3-embed-cli"]),
    ("zstd", &["qwen3-embed-server", "qwen3-embed-cli"]),
    ("csv", &["qwen3-embed-cli"]),
    ("parquet", &["qwen3-embed-cli"]),
    // qwen3-embed-hub needs tokio only for its optional dependency hf-hub.
    (
        "tokio",
        &[
            "qwen3-embed-hub",
            "qwen3-embed-server",
            "qwen3-embed-cli",
            "qwen3-embed-examples",
            "qwen3-embed-fuzz",
        ],
    ),
];

/// Crates that the facade, the crate `qwen3-embed`, must not depend on with its default features: async runtimes,
/// crates whose build needs more than Rust and a C compiler, and the bundled model, which makes a program larger.
const NOT_BELOW: [&str; 7] =
    ["tokio", "native-tls", "openssl-sys", "aws-lc-sys", "cmake", "pkg-config", "qwen3-embed-demo"];

/// Crates that the facade must not depend on without its feature `hub`, because they use the network.
const NOT_WITHOUT_HUB: [&str; 3] = ["ureq", "rustls", "ring"];

/// Words that the code of a folder must not contain: the folder, the word, and the files and folders that may contain
/// it.
const WORDS: [(&str, &str, &[&str]); 20] = [
    // Only the tensor operations, the launches of CUDA kernels, and the error type, which contains candle's error, use
    // candle.
    (
        "crates/qwen3-embed-kernels/src",
        "candle",
        &[
            "ops.rs",
            "ops",
            "cuda/device.rs",
            "cuda/queue.rs",
            "cuda/recording.rs",
            "cuda/tests.rs",
            "measure/cuda.rs",
            "error.rs",
            "lib.rs",
        ],
    ),
    // Only `ops` asks which device a tensor is on. The model names devices where a user chooses one, and never matches
    // on them.
    ("crates/qwen3-embed-model/src", "is_cuda", &[]),
    ("crates/qwen3-embed-model/src", "is_cpu", &[]),
    ("crates/qwen3-embed-model/src", "Cpu =>", &["device.rs"]),
    ("crates/qwen3-embed-model/src", "Cuda(", &["device.rs"]),
    ("crates/qwen3-embed-kernels/src", "feature_detected", &["dispatch.rs"]),
    ("crates/qwen3-embed-model/src", "fs::", &["file.rs"]),
    ("crates/qwen3-embed-model/src", "unsafe", &["file.rs"]),
    ("crates/qwen3-embed-text/src", "fs::", &[]),
    ("crates/qwen3-embed/src", "fs::", &["source"]),
    // Only the hub crate uses the network and the environment, each of them in one file.
    ("crates/qwen3-embed/src", "Agent", &[]),
    ("crates/qwen3-embed/src", "env::var", &[]),
    ("crates/qwen3-embed/src", "std::net", &[]),
    ("crates/qwen3-embed-hub/src", "Agent", &["client.rs"]),
    ("crates/qwen3-embed-hub/src", "env::var", &["environment.rs"]),
    // This file compares addresses with those of `no_proxy`.
    ("crates/qwen3-embed-hub/src", "std::net", &["proxy.rs"]),
    ("crates/qwen3-embed-hub/src", "tokio", &["xet.rs"]),
    ("crates/qwen3-embed-model/src", "std::net", &[]),
    ("crates/qwen3-embed-text/src", "std::net", &[]),
    ("crates/qwen3-embed-server/src", "fs::", &[]),
];

/// Crates without unsafe code.
const SAFE: [&str; 10] = [
    "crates/qwen3-embed-demo/src/lib.rs",
    "crates/qwen3-embed-testing/src/lib.rs",
    "crates/qwen3-embed-text/src/lib.rs",
    "crates/qwen3-embed-hub/src/lib.rs",
    "crates/qwen3-embed/src/lib.rs",
    "crates/qwen3-embed-plot/src/lib.rs",
    "crates/qwen3-embed-server/src/lib.rs",
    "crates/qwen3-embed-cli/src/main.rs",
    "fuzz/src/lib.rs",
    "xtask/src/main.rs",
];

/// Checks every invariant.
pub(crate) fn check() -> Result<()> {
    check_dependencies()?;
    check_facade(&[], &NOT_BELOW)?;
    check_facade(&["--no-default-features"], &NOT_WITHOUT_HUB)?;
    for (folder, word, allowed) in WORDS {
        let folder = root().join(folder);
        for file in files(&folder, "rs")? {
            let path = file.strip_prefix(&folder)?;
            let is_allowed =
                allowed.iter().any(|place| path.starts_with(place) || path.ends_with(place));
            let text = fs::read_to_string(&file)?;
            let mentions = code(&text).any(|line| line.contains(word));
            ensure!(is_allowed || !mentions, "{} must not contain `{word}`", file.display());
        }
    }
    for file in SAFE {
        let text = fs::read_to_string(root().join(file)).with_context(|| file.to_owned())?;
        ensure!(text.contains("#![forbid(unsafe_code)]"), "{file} does not forbid unsafe code");
    }
    check_cycles()?;
    test_names::check()?;
    println!("the invariants hold");
    Ok(())
}

/// Checks that the files of no crate have dependency cycles.
fn check_cycles() -> Result<()> {
    let mut problems = Vec::new();
    for (name, _) in LAYERS {
        let folder = match name {
            "xtask" => "xtask".to_owned(),
            "qwen3-embed-examples" => "examples/applications".to_owned(),
            "qwen3-embed-fuzz" => "fuzz".to_owned(),
            name => format!("crates/{name}"),
        };
        let src = root().join(folder).join("src");
        let (library, binary) = (src.join("lib.rs"), src.join("main.rs"));
        let root = if library.is_file() { library } else { binary };
        problems.extend(cycles::check(&root).err().map(|error| format!("{error:#}")));
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// Checks that the facade does not depend on an unwanted crate, directly or indirectly. `arguments` are cargo arguments
/// that choose features.
fn check_facade(arguments: &[&str], unwanted: &[&str]) -> Result<()> {
    let tree = ["tree", "--package", "qwen3-embed", "--edges", "normal,build", "--prefix", "none"];
    let tree = String::from_utf8(cargo(&[&tree, arguments].concat())?)?;
    let mut names = tree.lines().filter_map(|line| line.split(' ').next());
    let found = names.find(|name| unwanted.contains(name));
    ensure!(
        found.is_none(),
        "`qwen3-embed` must not depend on {found:?} (cargo arguments: {arguments:?})"
    );
    Ok(())
}

/// Runs cargo and returns its standard output.
fn cargo(arguments: &[&str]) -> Result<Vec<u8>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(arguments).current_dir(root()).output()?;
    ensure!(output.status.success(), "cargo {arguments:?} failed");
    Ok(output.stdout)
}

fn check_dependencies() -> Result<()> {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1"])?;
    let metadata: Value = serde_json::from_slice(&metadata)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let names: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    ensure!(
        names == LAYERS.iter().map(|(name, _)| *name).collect(),
        "the crates of the workspace are not those of `LAYERS`: {names:?}"
    );
    for package in packages {
        let name = package["name"].as_str().context("a package without a name")?;
        for dependency in normal_dependencies(package) {
            let layer = LAYERS.iter().find(|(layer, _)| *layer == name);
            let below = layer.map_or(&[][..], |(_, below)| below);
            let known = !names.contains(dependency) || below.contains(&dependency);
            ensure!(known, "{name} depends on {dependency}, which `LAYERS` does not allow");
            let owner = OWNERS.iter().find(|(owned, _)| *owned == dependency);
            let owned = owner.is_none_or(|(_, owners)| owners.contains(&name));
            ensure!(
                owned,
                "{name} depends on {dependency}, which `OWNERS` does not allow: {owner:?}"
            );
        }
    }
    Ok(())
}

/// The names of a package's dependencies, except for dev-dependencies and build dependencies.
fn normal_dependencies(package: &Value) -> impl Iterator<Item = &str> {
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    dependencies.filter(|d| d["kind"].is_null()).filter_map(|d| d["name"].as_str())
}

/// The lines of a source file without comments and without its module `tests`, which is at the end.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().take_while(|line| !line.starts_with("mod tests {"));
    lines.filter(|line| !line.trim_start().starts_with("//"))
}
