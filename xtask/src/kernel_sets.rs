use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use qwen3_embed::Kernels;

use crate::executables;
use crate::workspace::{self, cargo_command, root};

/// The packages whose tests run with each kernel set.
const PACKAGES: [&str; 3] = [KERNELS, "qwen3-embed-model", "qwen3-embed"];

/// The tests of this package use every kernel set in any case, except for one, which checks the choice of the set.
const KERNELS: &str = "qwen3-embed-kernels";
const CHOICE: &str = "current_kernel_set";

/// The set of most CPUs. All tests run with it.
const COMMON: &str = "avx2";

/// The tests that run with the other sets: the comparisons with transformers, and the bit-for-bit invariants. What the
/// other tests check does not depend on the set, or the tests of the kernels check it with every set.
const OF_NUMBERS: [&str; 2] = ["transformers", "bit_for_bit"];

/// Runs tests of [`PACKAGES`] with each kernel set that this CPU supports, including the sets that emulate the
/// arithmetic of AVX-512 BF16, VNNI and AMX. The default set is skipped, because `cargo test` uses the default set.
pub(crate) fn test() -> Result<()> {
    // The whole workspace is built, as by `cargo test --workspace`. If fewer packages were built, dependencies would
    // have other features and would be built again.
    let mut build = cargo_command(&["test", "--workspace", "--no-run", "--message-format=json"]);
    let mut programs = executables::build(&mut build)?;
    programs.retain(|program| program.is_test && PACKAGES.contains(&program.package.as_str()));
    ensure!(
        programs.len() > PACKAGES.len(),
        "expected more than {} test executables, got {programs:?}",
        PACKAGES.len()
    );
    for kernels in Kernels::all().filter(|kernels| kernels.name != Kernels::current().name) {
        let start = Instant::now();
        for program in &programs {
            let mut command = Command::new(&program.path);
            command.current_dir(root().join("crates").join(&program.package));
            command.env(Kernels::VARIABLE, kernels.name).arg("--quiet");
            if program.package == KERNELS {
                command.arg(CHOICE);
            } else if kernels.name != COMMON {
                command.args(OF_NUMBERS);
            }
            workspace::run(&mut command)?;
        }
        let (name, seconds) = (kernels.name, start.elapsed().as_secs_f64());
        println!("{} test executables with {name}: {seconds:.0} s", programs.len());
    }
    Ok(())
}
