//! The packages that the program is built from, and the software bill of materials that lists them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::workspace::{cargo_command, root};

/// The name and the version of a package.
pub(crate) type Id = (String, String);

/// A package that the program is built from.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Package {
    /// An SPDX expression.
    pub(crate) license: String,
    /// Whether the code of the package is a part of the program. Otherwise it runs only while the program is built.
    pub(crate) is_linked: bool,
    /// Whether the package is in this repository, and does not come from the registry.
    pub(crate) is_ours: bool,
    depends_on: BTreeSet<Id>,
}

/// The packages that the program is built from for a target. The program itself is one of them.
pub(crate) fn packages(target: &str) -> Result<BTreeMap<Id, Package>> {
    let mut packages = BTreeMap::new();
    add(&mut packages, &tree(target, "normal,build")?, false)?;
    add(&mut packages, &tree(target, "normal,no-proc-macro")?, true)?;
    Ok(packages)
}

/// The software bill of materials in the format CycloneDX 1.5, as JSON. It contains no time and no random number, so
/// the same dependencies always give the same bytes. `program` is the name of the package with the program.
pub(crate) fn bill(packages: &BTreeMap<Id, Package>, program: &str) -> Result<String> {
    let lock = fs::read_to_string(root().join("Cargo.lock"))?;
    let checksums = checksums(&lock);
    let (main, others): (Vec<_>, Vec<_>) =
        packages.iter().partition(|((name, _), _)| name == program);
    let [(id, package)] = &main[..] else { anyhow::bail!("{program} is not one package") };
    let component = |(id, package): (&Id, &Package)| component(id, package, checksums.get(id));
    let mut about = component((id, package));
    about["type"] = "application".into();
    let dependencies = packages.iter().map(|(id, package)| {
        let depends_on: Vec<String> = package.depends_on.iter().map(url).collect();
        json!({ "ref": url(id), "dependsOn": depends_on })
    });
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": about },
        "components": others.into_iter().map(component).collect::<Vec<_>>(),
        "dependencies": dependencies.collect::<Vec<_>>(),
    });
    Ok(serde_json::to_string_pretty(&bill)? + "\n")
}

fn component(id: &Id, package: &Package, checksum: Option<&String>) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": url(id),
        "name": id.0,
        "version": id.1,
        "purl": url(id),
        "scope": if package.is_linked { "required" } else { "excluded" },
        "licenses": [{ "expression": package.license }],
    });
    if let Some(checksum) = checksum {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    component
}

/// The package URL of a package, which identifies it in a bill of materials.
fn url((name, version): &Id) -> String {
    // Of the characters in versions, only the plus sign has a meaning in URLs.
    format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"))
}

/// The tree of dependencies, as `cargo tree` prints it: a line for each package, with its depth.
fn tree(target: &str, edges: &str) -> Result<String> {
    let format = "--format=|{p}|{l}";
    let tree = ["tree", "--locked", "--package=qwen3-embed-cli", "--prefix=depth", format];
    let mut command = cargo_command(&tree);
    let output = command.args(["--edges", edges, "--target", target]).output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Adds the packages of a tree. The dependencies of a package are the lines below it with the next greater depth.
fn add(packages: &mut BTreeMap<Id, Package>, tree: &str, is_linked: bool) -> Result<()> {
    // The package of the last line, and those above it in the tree.
    let mut path: Vec<Id> = Vec::new();
    for line in tree.lines() {
        let (depth, rest) = line.split_once('|').with_context(|| line.to_owned())?;
        let (package, license) = rest.split_once('|').with_context(|| line.to_owned())?;
        let mut words = package.split(' ');
        let name = words.next().unwrap_or_default().to_owned();
        let version = words.next().and_then(|version| version.strip_prefix('v'));
        let id: Id = (name, version.with_context(|| line.to_owned())?.to_owned());
        path.truncate(depth.parse()?);
        if let Some(parent) = path.last() {
            packages.entry(parent.clone()).or_default().depends_on.insert(id.clone());
        }
        let entry = packages.entry(id.clone()).or_default();
        // The license is followed by a mark if the dependencies of the package were printed above. A slash is an old
        // spelling of OR.
        entry.license = license.trim_end_matches(" (*)").replace('/', " OR ");
        entry.is_linked |= is_linked;
        entry.is_ours |= words.any(|word| word.starts_with("(/"));
        path.push(id);
    }
    Ok(())
}

/// The SHA-256 of each package from the registry, from Cargo.lock.
fn checksums(lock: &str) -> BTreeMap<Id, String> {
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""));
        Some(line?.trim_end_matches('"').to_owned())
    };
    let blocks = lock.split("[[package]]").skip(1);
    let entry = |block| {
        Some(((field(block, "name")?, field(block, "version")?), field(block, "checksum")?))
    };
    blocks.filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str, version: &str) -> Id {
        (name.to_owned(), version.to_owned())
    }

    #[test]
    fn bill_lists_dependencies_with_license_and_scope() {
        let built = "0|a v1.0.0 (/here/a)|MIT\n1|b v2.0.0+x|MIT/Apache-2.0\n2|c v3.0.0 (proc-macro)|Zlib\n\
                     1|c v3.0.0 (proc-macro)|Zlib (*)\n";
        let mut packages = BTreeMap::new();
        add(&mut packages, built, false).unwrap();
        add(&mut packages, "0|a v1.0.0 (/here/a)|MIT\n1|b v2.0.0+x|MIT/Apache-2.0\n", true)
            .unwrap();
        let a = &packages[&id("a", "1.0.0")];
        assert!(a.is_ours && a.is_linked);
        assert_eq!(a.depends_on, BTreeSet::from([id("b", "2.0.0+x"), id("c", "3.0.0")]));
        let c = &packages[&id("c", "3.0.0")];
        assert!(!c.is_ours && !c.is_linked && c.license == "Zlib");

        let bill: Value = serde_json::from_str(&bill(&packages, "a").unwrap()).unwrap();
        assert_eq!(bill["metadata"]["component"]["name"], "a");
        let b = &bill["components"][0];
        assert_eq!(b["purl"], "pkg:cargo/b@2.0.0%2Bx");
        assert_eq!(b["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bill["components"][1]["scope"], "excluded");
        assert_eq!(bill["dependencies"][1]["dependsOn"][0], "pkg:cargo/c@3.0.0");
    }

    #[test]
    fn checksums_are_read_from_the_lock_file() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"b\"\n\
                    version = \"2.0.0\"\nsource = \"registry\"\nchecksum = \"00ff\"\n";
        assert_eq!(checksums(lock), BTreeMap::from([(id("b", "2.0.0"), "00ff".to_owned())]));
    }
}
