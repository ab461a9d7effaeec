//! The licenses of the packages that are a part of the program.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::sbom::{Id, Package};
use crate::workspace::cargo_command;

/// The beginnings of the names of files with licenses and copyright notices, in upper case.
const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// A text with the licenses of the packages from the registry that are a part of the program. Each license is written
/// once, after the names of the packages that contain it.
pub(crate) fn notices(packages: &BTreeMap<Id, Package>) -> Result<String> {
    let folders = folders()?;
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut list = String::new();
    for (id, package) in
        packages.iter().filter(|(_, package)| package.is_linked && !package.is_ours)
    {
        let name = format!("{} {}", id.0, id.1);
        list += &format!("- {name}: {}\n", package.license);
        let folder = folders.get(id).with_context(|| format!("cargo metadata has no {name}"))?;
        for file in files(folder)? {
            let text = fs::read(&file).with_context(|| file.display().to_string())?;
            let text = String::from_utf8_lossy(&text).replace("\r\n", "\n").trim().to_owned();
            texts.entry(text).or_default().insert(name.clone());
        }
    }
    let rule = "=".repeat(100);
    let mut notices =
        format!("Packages that are a part of qwen3-embed, and their licenses:\n\n{list}");
    for (text, names) in texts {
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        notices += &format!("\n{rule}\n{names}\n{rule}\n\n{text}\n");
    }
    Ok(notices)
}

/// The folder with the source code of each package.
fn folders() -> Result<BTreeMap<Id, PathBuf>> {
    let output = cargo_command(&["metadata", "--locked", "--format-version", "1"]).output()?;
    ensure!(output.status.success(), "cargo metadata failed");
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let folder = |package: &Value| {
        let field = |name: &str| Some(package[name].as_str()?.to_owned());
        let manifest = PathBuf::from(field("manifest_path")?);
        Some(((field("name")?, field("version")?), manifest.parent()?.to_owned()))
    };
    Ok(packages.iter().filter_map(folder).collect())
}

/// The files with licenses in a folder and in its subfolders, but not below these. Bundled C code is in a subfolder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in entries(folder)? {
        if path.is_dir() {
            found.extend(entries(&path)?.into_iter().filter(|path| is_license(path)));
        } else if is_license(&path) {
            found.push(path);
        }
    }
    Ok(found)
}

/// The paths in a folder, in the order of their names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn is_license(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
    let is_code =
        [".RS", ".TOML", ".JSON", ".PY"].iter().any(|extension| name.ends_with(extension));
    path.is_file() && !is_code && NAMES.iter().any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_licenses_of_bundled_code() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("zstd")).unwrap();
        for name in ["LICENSE-MIT", "Readme.md", "license.rs", "zstd/COPYING", "zstd/zstd.c"] {
            fs::write(root.join(name), "").unwrap();
        }
        let expected = ["LICENSE-MIT", "zstd/COPYING"].map(|name| root.join(name));
        assert_eq!(files(root).unwrap(), expected);
    }
}
