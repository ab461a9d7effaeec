use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};
use qwen3_embed::Kernels;

use crate::ci::cargo_command;
use crate::executables::executables;
use crate::{fixtures, root};

/// The packages whose tests run once with each kernel set.
const PACKAGES: [&str; 3] = ["qwen3-embed-kernels", "qwen3-embed-model", "qwen3-embed"];

/// Runs the tests of kernels, model and facade once with each kernel set that this CPU has, and once with the
/// emulated set, whose arithmetic is that of AVX-512 BF16 and VNNI. `cargo test` alone runs them with the
/// set that is used by default, which is left out.
pub(crate) fn test() -> Result<()> {
    // The programs of `cargo test --workspace`: with fewer packages, dependencies would be built anew.
    let mut build = cargo_command(&["test", "--workspace", "--no-run", "--message-format=json"]);
    let output = build.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{build:?} failed");
    let mut programs = executables(&output.stdout)?;
    programs.retain(|program| program.is_test && PACKAGES.contains(&program.package.as_str()));
    ensure!(programs.len() > PACKAGES.len(), "cargo has built {programs:?}");
    for kernels in Kernels::all().filter(|kernels| kernels.name != Kernels::current().name) {
        let start = Instant::now();
        for program in &programs {
            let mut command = Command::new(&program.path);
            command.current_dir(root().join("crates").join(&program.package));
            command.env(Kernels::VARIABLE, kernels.name).arg("--quiet");
            fixtures::succeed(&mut command)?;
        }
        let (name, seconds) = (kernels.name, start.elapsed().as_secs_f64());
        println!("{} programs of tests with {name}: {seconds:.0} s", programs.len());
    }
    Ok(())
}
