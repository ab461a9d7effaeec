//! Figures of the inner loops of matrix multiplications that depend on the compiler and not on the machine.

mod assembly;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use self::assembly::Function;
use crate::debian;
use crate::workspace::{self, cargo_command, root};

/// Count the instructions of the inner loops of matrix multiplications, and estimate their cycles
///
/// The output is a Markdown table. It shows whether a change made a loop longer, for instruction sets that this machine
/// does not have. The loops are those of tiles with the most rows, in a release build of the kernels, and are written
/// to target/inner-loops. The cycles are estimates of llvm-mca 19 for several CPUs. llvm-mca is unpacked from Debian's
/// packages into target/llvm-19 once, which needs Debian or a distribution with its packages, on x86-64.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// A kernel set.
struct Set {
    name: &'static str,
    /// The name of the function that runs kernels with the instructions of the set.
    function: &'static str,
    /// The types of the kernels that multiply weights of 8 or 16 bits. The set has other kernels, which it uses only in
    /// tests.
    kernels: &'static [&'static str],
    /// CPUs with the instructions, as LLVM names them.
    cpus: &'static [&'static str],
}

/// The types of the kernels that every set uses.
const COMMON: [&str; 4] =
    ["F32Kernel", "BlocksKernel<8, false>", "BlocksKernel<4, false>", "BlocksKernel<4, true>"];

/// All sets of x86-64 but `avx512-amx`, whose loops are written in assembly.
const SETS: [Set; 5] = [
    Set {
        name: "avx2",
        function: "Avx2",
        kernels: &["WidenedKernel", "Int8Kernel"],
        cpus: &["haswell", "znver3"],
    },
    Set {
        name: "avx2-vnni",
        function: "Avx2Vnni",
        kernels: &["WidenedKernel", "BytesKernel<2", "BytesKernel<1"],
        cpus: &["alderlake"],
    },
    Set {
        name: "avx512",
        function: "Avx512",
        kernels: &["WidenedKernel", "Int8Kernel"],
        cpus: &["skylake-avx512", "sapphirerapids", "znver4"],
    },
    Set {
        name: "avx512-vnni",
        function: "Avx512Vnni",
        kernels: &["WidenedKernel", "BytesKernel<2", "BytesKernel<1"],
        cpus: &["sapphirerapids", "znver4"],
    },
    Set {
        name: "avx512-bf16",
        function: "Avx512Bf16",
        kernels: &["Bf16Kernel", "Int8Kernel", "BytesKernel<1"],
        cpus: &["sapphirerapids", "znver4"],
    },
];

/// The matrix multiplication of a weight format.
struct Format {
    weights: &'static str,
    activations: &'static str,
    /// The type of the kernel, a parameter of the function.
    kernel: &'static str,
    /// The beginnings of the names of the instructions that multiply.
    multiplies: &'static [&'static str],
    /// Whether a loop over groups that share a scale is around the inner loop.
    has_groups: bool,
}

const FORMATS: [Format; 9] = [
    Format {
        weights: "f32",
        activations: "f32",
        kernel: "F32Kernel",
        multiplies: &["vfmadd"],
        has_groups: false,
    },
    Format {
        weights: "bf16",
        activations: "f32",
        kernel: "WidenedKernel",
        multiplies: &["vfmadd"],
        has_groups: false,
    },
    Format {
        weights: "bf16",
        activations: "bf16",
        kernel: "Bf16Kernel",
        multiplies: &["vdpbf16ps"],
        has_groups: false,
    },
    Format {
        weights: "8 bits",
        activations: "16 bits, in pairs",
        kernel: "Int8Kernel",
        multiplies: &["vpmaddwd", "vpdpwssd"],
        has_groups: true,
    },
    Format {
        weights: "8 bits",
        activations: "16 bits, as two bytes",
        kernel: "BytesKernel<2",
        multiplies: &["vpdpbusd"],
        has_groups: true,
    },
    Format {
        weights: "8 bits",
        activations: "8 bits",
        kernel: "BytesKernel<1",
        multiplies: &["vpdpbusd"],
        has_groups: true,
    },
    Format {
        weights: "4 bits",
        activations: "8 bits",
        kernel: "BlocksKernel<8, false>",
        multiplies: &["vpdpbusd", "vpmaddubsw"],
        has_groups: true,
    },
    Format {
        weights: "5 bits",
        activations: "8 bits",
        kernel: "BlocksKernel<4, false>",
        multiplies: &["vpdpbusd", "vpmaddubsw"],
        has_groups: true,
    },
    Format {
        weights: "6 bits",
        activations: "8 bits",
        kernel: "BlocksKernel<4, true>",
        multiplies: &["vpdpbusd", "vpmaddubsw"],
        has_groups: true,
    },
];

/// Runs `cargo xtask inner-loops`.
pub(crate) fn run(_: &Args) -> Result<()> {
    let folder = std::path::absolute(root())?.join("target/inner-loops");
    fs::create_dir_all(&folder)?;
    let assembly = compile(&folder)?;
    let llvm = llvm()?;
    let functions = named(Function::all(&assembly), &llvm, &folder)?;
    println!(
        "| kernel set | weights | activations | multiplies | weight loads | activation loads | spills | others | \
         instructions per multiply | around the loop: instructions, spills | cycles per multiply |\n|{}",
        "---|".repeat(11)
    );
    for set in SETS {
        for format in FORMATS {
            if COMMON.iter().chain(set.kernels).any(|kernel| *kernel == format.kernel) {
                println!("{}", row(&functions, &set, &format, &llvm, &folder)?);
            }
        }
    }
    Ok(())
}

/// Compiles the kernels with optimizations, and returns their assembly.
fn compile(folder: &Path) -> Result<String> {
    let path = folder.join("kernels.s");
    let emit = format!("--emit=asm={}", path.display());
    // These symbols have the types of generic functions.
    let symbols = "-Csymbol-mangling-version=v0";
    let package = ["--package=qwen3-embed-kernels", "--lib", "--release"];
    let arguments = [&["rustc"], &package[..], &["--", &emit, symbols]].concat();
    workspace::run(&mut cargo_command(&arguments))?;
    // cargo does not compile again if only this file was deleted.
    fs::read_to_string(&path).with_context(|| {
        format!("{}: run `cargo clean --release --package qwen3-embed-kernels`", path.display())
    })
}

/// The folder of LLVM's programs, of which [`PROGRAMS`] can be run.
fn llvm() -> Result<PathBuf> {
    // The programs need no Python and no Perl, and link no objects.
    const LEFT_OUT: &str = r"_all\.deb$|^(perl|libperl|python|libpython|llvm-19-linker)";
    let folder = std::path::absolute(root())?.join("target/llvm-19");
    let programs = PROGRAMS.map(|name| format!("{BIN}/{name}"));
    // `unpack` has renamed the programs.
    let is_unpacked = |program| folder.join(format!("root/{program}.real")).exists();
    if !programs.iter().all(is_unpacked) {
        let programs = programs.each_ref().map(String::as_str);
        debian::unpack(&folder, "llvm-19", LEFT_OUT, &programs)?;
    }
    Ok(folder.join("root").join(BIN))
}

/// LLVM's programs in its package.
const BIN: &str = "usr/lib/llvm-19/bin";

/// The programs that are run.
const PROGRAMS: [&str; 2] = ["llvm-cxxfilt", "llvm-mca"];

/// Functions with their names.
fn named<'a>(
    functions: Vec<Function<'a>>,
    llvm: &Path,
    folder: &Path,
) -> Result<Vec<(String, Function<'a>)>> {
    let path = folder.join("symbols");
    let symbols: String = functions.iter().map(|f| format!("{}\n", f.symbol)).collect();
    fs::write(&path, symbols)?;
    let names = output_of(Command::new(llvm.join("llvm-cxxfilt")).stdin(File::open(&path)?))?;
    Ok(names.lines().map(str::to_owned).zip(functions).collect())
}

/// A row of the table.
fn row(
    functions: &[(String, Function<'_>)],
    set: &Set,
    format: &Format,
    llvm: &Path,
    folder: &Path,
) -> Result<String> {
    let Format { weights, activations, .. } = format;
    let name = format!("{}, {weights} × {activations}", set.name);
    let is_of_set = format!("::InstructionSet>::run::{}::<", set.function);
    let mut found = functions.iter().filter(|(function, _)| {
        let is_multiplication = ["::gemm::MultiplyPanels<", "::MultiplyBlocks<"]
            .iter()
            .any(|part| function.contains(part));
        is_multiplication && function.contains(&is_of_set) && function.contains(format.kernel)
    });
    let (_, function) = found.next().with_context(|| format!("no function of {name} was found"))?;
    ensure!(found.next().is_none(), "several functions of {name} were found");
    let inner = function.inner_loop(format.multiplies);
    let inner = inner.with_context(|| format!("{name} has no loop"))?;

    let path = folder.join(format!("{}-{weights}-{activations}.s", set.name).replace(' ', ""));
    fs::write(&path, inner.text())?;
    let counts = inner.counts();
    ensure!(counts.multiplies > 0, "no loop of {name} multiplies");
    let mut cycles = Vec::new();
    for cpu in set.cpus {
        let cycles_per_multiply = cycles_of(llvm, cpu, &path)? / counts.multiplies as f64;
        cycles.push(format!("{cpu} {cycles_per_multiply:.2}"));
    }
    let around = if format.has_groups {
        let [before, after] = inner.counts_around();
        format!("{}, {}", before.all + after.all, before.spills + after.spills)
    } else {
        "–".to_owned()
    };
    Ok(format!(
        "| {} | {weights} | {activations} | {} | {} | {} | {} | {} | {:.2} | {around} | {} |",
        set.name,
        counts.multiplies,
        counts.vectors,
        counts.broadcasts,
        counts.spills,
        counts.others,
        counts.all as f64 / counts.multiplies as f64,
        cycles.join(", ")
    ))
}

/// The cycles of an iteration of the loop in a file, as llvm-mca estimates them.
fn cycles_of(llvm: &Path, cpu: &str, path: &Path) -> Result<f64> {
    const ITERATIONS: u32 = 1000;
    let mut command = Command::new(llvm.join("llvm-mca"));
    command.arg(format!("-mcpu={cpu}")).arg(format!("-iterations={ITERATIONS}")).arg(path);
    let report = output_of(&mut command)?;
    let cycles = report.lines().find_map(|line| line.strip_prefix("Total Cycles:"));
    let cycles: f64 = cycles.context("the output of llvm-mca has no cycles")?.trim().parse()?;
    Ok(cycles / f64::from(ITERATIONS))
}

/// Runs a command and returns its standard output.
fn output_of(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {error}");
    Ok(String::from_utf8(output.stdout)?)
}
