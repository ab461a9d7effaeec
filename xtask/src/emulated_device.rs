//! A library that emulates a CUDA device on the CPU: see `emulated_device.cpp` of the kernels' crate.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace::{self, root};

/// The names of the libraries that the emulated device replaces. The file has the first one.
const NAMES: [&str; 3] = ["libcuda.so.1", "libcublas.so.13", "libcurand.so.10"];

/// Runs `cargo xtask emulated-device`.
pub(crate) fn run() -> Result<()> {
    println!("export LD_LIBRARY_PATH={}", build()?.display());
    Ok(())
}

/// Builds the library. Returns its folder.
pub(crate) fn build() -> Result<PathBuf> {
    let folder = root().join("target/emulated-device");
    fs::create_dir_all(&folder)?;
    let compiler = env::var_os("CXX").unwrap_or_else(|| OsString::from("c++"));
    let mut command = Command::new(compiler);
    // Some systems check that jumps stay on one stack, but the emulator jumps between stacks. As on a device,
    // multiply-adds are rounded once.
    command.args(["-std=c++17", "-O2", "-U_FORTIFY_SOURCE", "-march=native", "-ffp-contract=fast"]);
    command.args(["-fPIC", "-shared", "-o"]).arg(folder.join(NAMES[0]));
    let source = "crates/qwen3-embed-kernels/src/cuda/kernels/emulated_device.cpp";
    workspace::run(command.arg(root().join(source)))
        .context("the emulated device could not be compiled")?;
    for name in &NAMES[1..] {
        let link = folder.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(NAMES[0], &link)?;
        }
    }
    Ok(folder)
}
