//! Programs from Debian's packages, without changes to the machine.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace;

/// The beginning of scripts that download packages: the function `use_release`.
pub(crate) const APT: &str = include_str!("../debian/apt.sh");

/// Unpacks a package of Debian 13, and the packages that it needs, into the subfolder `root` of an absolute path.
/// Packages whose file names match the regular expression `left_out` are left out. `programs` are the paths in `root`
/// of the programs that are run. Needs Debian or a distribution with its packages, on x86-64.
pub(crate) fn unpack(
    folder: &Path,
    package: &str,
    left_out: &str,
    programs: &[&str],
) -> Result<()> {
    ensure!(
        cfg!(all(target_arch = "x86_64", target_os = "linux")),
        "programs from Debian's packages run on Linux on x86-64 only"
    );
    let script = [APT, include_str!("../debian/unpack.sh")].concat();
    let mut unpack = Command::new("sh");
    unpack.args(["-ec", &script, "unpack.sh"]).arg(folder);
    unpack.args([package, left_out]).args(programs);
    workspace::run(&mut unpack).with_context(|| format!("{package} could not be unpacked"))
}
