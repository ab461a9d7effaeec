//! Compiles the CUDA kernels if the feature `cuda` is on: each `.cu` file to PTX, which the driver compiles for the GPU
//! of the machine.
//!
//! The environment variable `NVCC` names the compiler. If it is not set, `nvcc` is searched in the `bin` folders of
//! `CUDA_HOME` and `CUDA_PATH`, on the path, and in `/usr/local/cuda/bin`. `CUDA_COMPUTE_CAP` is the lowest compute
//! capability that the compiled kernels support, 80 (that is, 8.0) by default.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The `.cu` files with kernels in `src/cuda/kernels`, without the extension.
const KERNELS: [&str; 3] = ["rows", "attention", "flash"];

/// The lowest compute capability that has the instructions that the kernels use.
const LEAST_CAPABILITY: u32 = 80;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src/cuda/kernels");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP", "NVCC_CCBIN"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Err(message) = compile() {
        println!("cargo::error={message}");
        std::process::exit(1);
    }
}

fn compile() -> Result<(), String> {
    let (nvcc, capability) = (find_nvcc()?, capability()?);
    println!("cargo::rustc-env=QWEN3_EMBED_CUDA_CAPABILITY={capability}");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    for kernels in KERNELS {
        let source = Path::new("src/cuda/kernels").join(kernels).with_extension("cu");
        let mut command = Command::new(&nvcc);
        command.args(["-ptx", "-O3", "-std=c++17"]).arg(format!("-arch=compute_{capability}"));
        command.arg("-o").arg(out_dir.join(kernels).with_extension("ptx")).arg(&source);
        let output = command
            .output()
            .map_err(|e| format!("the feature `cuda` needs nvcc: {}: {e}", nvcc.display()))?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
            return Err(format!("nvcc failed to compile {}: {message}", source.display()));
        }
    }
    Ok(())
}

fn find_nvcc() -> Result<PathBuf, String> {
    let named = env::var_os("NVCC").filter(|nvcc| !nvcc.is_empty()).map(PathBuf::from);
    if let Some(nvcc) = named {
        return Ok(nvcc);
    }
    let program = format!("nvcc{}", env::consts::EXE_SUFFIX);
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let on_path = env::var_os("PATH").unwrap_or_default();
    let folders = homes
        .map(|home| home.join("bin"))
        .chain(env::split_paths(&on_path))
        .chain([PathBuf::from("/usr/local/cuda/bin")]);
    folders.map(|folder| folder.join(&program)).find(|nvcc| nvcc.is_file()).ok_or_else(|| {
        "the feature `cuda` needs nvcc, the compiler of the CUDA toolkit: install the toolkit and set \
         CUDA_HOME to its folder, or NVCC to the compiler; `cargo xtask cuda-toolkit` assembles a \
         toolkit from packages"
            .to_owned()
    })
}

fn capability() -> Result<u32, String> {
    let Some(value) = env::var_os("CUDA_COMPUTE_CAP") else { return Ok(LEAST_CAPABILITY) };
    let value = value.to_string_lossy();
    match value.replace('.', "").parse() {
        Ok(capability) if capability >= LEAST_CAPABILITY => Ok(capability),
        _ => {
            Err(format!("CUDA_COMPUTE_CAP is {value}: the kernels need {LEAST_CAPABILITY} or more"))
        }
    }
}
