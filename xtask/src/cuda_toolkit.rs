use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::workspace::{self, root};

/// Assemble a CUDA toolkit from packages, on a machine with or without a CUDA device
///
/// The toolkit contains nvcc 13.0 and link libraries. The link libraries open CUDA's libraries at the first call, so
/// programs start on machines without CUDA. This task needs Linux on x86-64, Python with pip, and a C compiler. It
/// prints the environment variables for a build.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the toolkit [default: target/cuda-toolkit]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// The libraries that candle links with: the name, the module of the crate cudarc that declares the functions, the file
/// name, and the error code that the functions return if the library is not installed.
const LIBRARIES: [(&str, &str, &str, u32); 5] = [
    // CUDA_ERROR_STUB_LIBRARY, CUBLAS_STATUS_NOT_INITIALIZED twice, CURAND_STATUS_INITIALIZATION_FAILED,
    // NVRTC_ERROR_INTERNAL_ERROR.
    ("cuda", "driver", "libcuda.so.1", 34),
    ("cublas", "cublas", "libcublas.so.13", 1),
    ("cublasLt", "cublaslt", "libcublasLt.so.13", 1),
    ("curand", "curand", "libcurand.so.10", 203),
    ("nvrtc", "nvrtc", "libnvrtc.so.13", 11),
];

/// A CUDA toolkit in a folder.
pub(crate) struct Toolkit {
    folder: PathBuf,
}

/// Runs `cargo xtask cuda-toolkit`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = args.out.clone().unwrap_or_else(|| root().join("target/cuda-toolkit"));
    let toolkit = Toolkit::assemble(&folder)?;
    println!("export CUDA_HOME={}", toolkit.home().display());
    println!("export PATH=\"$CUDA_HOME/bin:$PATH\" CUDA_COMPUTE_CAP=80");
    Ok(())
}

impl Toolkit {
    /// Assembles the toolkit in a folder, unless the folder already contains it.
    pub(crate) fn assemble(folder: &Path) -> Result<Self> {
        ensure!(
            cfg!(all(target_arch = "x86_64", target_os = "linux")),
            "the toolkit can be assembled on Linux on x86-64 only"
        );
        let toolkit = Self { folder: std::path::absolute(folder)? };
        // This file is written after all others. It contains the source files from which the toolkit was made.
        let stamp = toolkit.folder.join("assembled");
        let inputs = inputs();
        if fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == inputs) {
            return Ok(toolkit);
        }
        fs::create_dir_all(&toolkit.folder)?;
        toolkit.install()?;
        toolkit.make_libraries()?;
        let stand_in = toolkit.stand_in().join("nvcc");
        fs::create_dir_all(toolkit.stand_in())?;
        fs::write(&stand_in, include_str!("../cuda/nvcc.sh"))?;
        workspace::run(Command::new("chmod").arg("+x").arg(&stand_in))?;
        fs::write(&stamp, inputs)?;
        Ok(toolkit)
    }

    /// The value for `CUDA_HOME`.
    pub(crate) fn home(&self) -> PathBuf {
        self.folder.join("packages/nvidia/cu13")
    }

    /// The folder of a replacement for nvcc that compiles candle's kernels to empty files.
    fn stand_in(&self) -> PathBuf {
        self.folder.join("stand-in")
    }

    /// Sets the environment of a command so that it builds with the toolkit, with or without candle's kernels.
    pub(crate) fn set(&self, command: &mut Command, with_candles_kernels: bool) -> Result<()> {
        let first = if with_candles_kernels { self.home().join("bin") } else { self.stand_in() };
        let path = env::var_os("PATH").unwrap_or_default();
        let path: OsString = env::join_paths([first].into_iter().chain(env::split_paths(&path)))?;
        command.env("PATH", path).env("CUDA_HOME", self.home()).env("CUDA_PATH", self.home());
        command.env("CUDA_COMPUTE_CAP", "80").env_remove("NVCC");
        // The number of compilers that run in parallel for candle's kernels. The default would be half of the cores.
        let n_threads = std::thread::available_parallelism()?.to_string();
        command.env("CUDAFORGE_THREADS", n_threads);
        Ok(())
    }

    fn install(&self) -> Result<()> {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]);
        pip.args(["--upgrade", "--disable-pip-version-check", "--root-user-action=ignore"]);
        pip.arg("--target").arg(self.folder.join("packages"));
        pip.arg("--requirement").arg(root().join("xtask/cuda/requirements.txt"));
        workspace::run(&mut pip).context("the CUDA compiler could not be installed")?;
        let lib = self.home().join("lib");
        // nvcc looks for libraries in `lib64`.
        let lib64 = self.home().join("lib64");
        if !lib64.exists() {
            std::os::unix::fs::symlink("lib", lib64)?;
        }
        // candle's kernels link with `cudart`, but the package has only `libcudart_static.a`.
        fs::copy(lib.join("libcudart_static.a"), lib.join("libcudart.a"))?;
        Ok(())
    }

    /// Builds the link libraries.
    fn make_libraries(&self) -> Result<()> {
        let cudarc = cudarc_sources()?;
        let stubs = self.home().join("lib/stubs");
        fs::create_dir_all(&stubs)?;
        for (name, module, file, absent) in LIBRARIES {
            let declarations = cudarc.join(module).join("sys/mod.rs");
            let declarations = fs::read_to_string(&declarations)
                .with_context(|| declarations.display().to_string())?;
            let functions = functions(&declarations);
            ensure!(
                functions.len() > 10,
                "expected more than 10 functions of {name} in cudarc, got {functions:?}"
            );
            let assembly = stubs.join(format!("{name}.s"));
            fs::write(&assembly, trampolines(name, &functions))?;
            let objects = ["calls", "find"].map(|part| stubs.join(format!("{name}_{part}.o")));
            let compile = |source: &Path, object: &Path| {
                let mut cc = Command::new("cc");
                cc.args(["-O2", "-fPIC", "-c", "-o"]).arg(object).arg(source);
                cc.arg(format!("-DLIBRARY=\"{file}\"")).arg(format!("-DABSENT={absent}"));
                cc.arg(format!("-DNAME(x)=qwen3_embed_{name}_##x"));
                workspace::run(&mut cc)
            };
            compile(&assembly, &objects[0])?;
            compile(&root().join("xtask/cuda/library.c"), &objects[1])?;
            let archive = stubs.join(format!("lib{name}.a"));
            workspace::run(Command::new("ar").arg("rcs").arg(archive).args(&objects))?;
        }
        Ok(())
    }
}

/// The source files that the toolkit is made from. If one of them changes, the toolkit is assembled again.
fn inputs() -> String {
    [
        include_str!("../cuda/requirements.txt"),
        include_str!("../cuda/library.c"),
        include_str!("../cuda/nvcc.sh"),
        include_str!("cuda_toolkit.rs"),
    ]
    .concat()
}

/// The source folder of cudarc, the crate through which candle calls CUDA's libraries.
fn cudarc_sources() -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--all-features", "--locked"])
        .current_dir(root())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let mut packages = metadata["packages"].as_array().into_iter().flatten();
    let package = packages.find(|package| package["name"] == "cudarc");
    let manifest = package.and_then(|package| package["manifest_path"].as_str());
    let manifest = PathBuf::from(manifest.context("`cargo metadata` lists no package `cudarc`")?);
    Ok(manifest.parent().context("the manifest of cudarc has no parent folder")?.join("src"))
}

/// The names of the functions that are declared in blocks of `extern "C"`, sorted and without duplicates.
fn functions(declarations: &str) -> Vec<&str> {
    let mut functions: Vec<&str> = declarations
        .lines()
        .filter_map(|line| {
            // Functions inside the blocks have this indentation. Other functions have less.
            let name = line.strip_prefix("            fn ")?.split('(').next()?;
            name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_').then_some(name)
        })
        .collect();
    functions.sort_unstable();
    functions.dedup();
    functions
}

/// Assembly source with a function for each name. Each function jumps to the function of the real library. The real
/// function is looked up at the first call. During the lookup, all registers that may contain arguments are saved on
/// the stack.
fn trampolines(library: &str, functions: &[&str]) -> String {
    const REGISTERS: [&str; 7] = ["rdi", "rsi", "rdx", "rcx", "r8", "r9", "rax"];
    let prefix = format!("qwen3_embed_{library}");
    let mut s = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| _ = writeln!(s, "{text}");
    line(format_args!(".intel_syntax noprefix\n.text\n{prefix}_go:"));
    REGISTERS.iter().for_each(|register| line(format_args!("push {register}")));
    // The function has pushed its number before the seven registers of 8 bytes, so the number is at `rsp + 56`.
    // Subtracting 136 makes room for eight registers of 16 bytes and aligns the stack to 16 bytes.
    line(format_args!("mov rdi, [rsp + 56]\nsub rsp, 136"));
    (0..8).for_each(|i| line(format_args!("movups [rsp + {}], xmm{i}", 16 * i)));
    line(format_args!("call {prefix}_find\nmov r11, rax"));
    (0..8).for_each(|i| line(format_args!("movups xmm{i}, [rsp + {}]", 16 * i)));
    line(format_args!("add rsp, 136"));
    REGISTERS.iter().rev().for_each(|register| line(format_args!("pop {register}")));
    line(format_args!("add rsp, 8\njmp r11"));
    for (number, function) in functions.iter().enumerate() {
        line(format_args!(".globl {function}\n.type {function}, @function\n{function}:"));
        line(format_args!("mov r11, [rip + {prefix}_functions + {}]", 8 * number));
        line(format_args!("test r11, r11\njz 1f\njmp r11"));
        line(format_args!("1: push {number}\njmp {prefix}_go"));
    }
    let hidden = |table: &str| format!(".globl {prefix}_{table}\n.hidden {prefix}_{table}");
    line(format_args!(".bss\n.balign 8\n{}\n{prefix}_functions:", hidden("functions")));
    line(format_args!(".zero {}", 8 * functions.len()));
    line(format_args!(".section .data.rel.ro, \"aw\"\n.balign 8"));
    line(format_args!("{}\n{prefix}_names:", hidden("names")));
    (0..functions.len()).for_each(|number| line(format_args!(".quad {prefix}_name_{number}")));
    line(format_args!(".section .rodata"));
    for (number, function) in functions.iter().enumerate() {
        line(format_args!("{prefix}_name_{number}: .asciz \"{function}\""));
    }
    line(format_args!(".section .note.GNU-stack, \"\", @progbits"));
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_functions_in_declarations() {
        let declarations = "\
pub fn helper() {}
mod loaded {
    extern \"C\" {
            fn cuInit(flags: u32) -> i32;
            fn cuMemAlloc_v2(a: *mut u64, b: usize) -> i32;
            fn cuInit(flags: u32) -> i32;
    }
}
        fn elsewhere() {}
";
        assert_eq!(functions(declarations), ["cuInit", "cuMemAlloc_v2"]);
    }
}
