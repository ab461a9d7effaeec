//! Finds dependency cycles between the files of a crate.
//!
//! A file depends on another file if its code, or a `use` that is not a re-export, names an item that the other file
//! defines. Names are followed through imports and re-exports to the file with the definition. The following does not
//! count:
//!
//! - `mod` declarations
//! - re-exports, which are `use` items with a visibility
//! - code under `#[cfg(test)]`
//! - documentation
//! - calls of methods, because the name of a method does not show where the method is defined
//!
//! A cycle is a set of two or more files in which each file depends on all others, directly or through other files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Item, UseTree, Visibility};

/// A path of segments from the crate's root.
type ModulePath = Vec<String>;

/// The modules of one crate.
#[derive(Default)]
struct Crate {
    modules: BTreeMap<ModulePath, Module>,
}

/// The contents of one module.
#[derive(Default)]
struct Module {
    file: PathBuf,
    /// Names of the items that the module defines.
    items: BTreeSet<String>,
    /// Imported and re-exported names, and the paths that they stand for.
    imports: BTreeMap<String, Vec<String>>,
    /// Modules whose names are all imported.
    globs: Vec<Vec<String>>,
    /// The paths that make this module's file depend on other files.
    references: Vec<Vec<String>>,
}

/// The item or module that a path refers to.
enum Target {
    /// An item. The value is the path of the module that defines the item.
    Item(ModulePath),
    Module(ModulePath),
}

/// For each file, the files that it depends on, and one of the names that it uses from each of them.
type Dependencies = BTreeMap<PathBuf, BTreeMap<PathBuf, String>>;

/// Checks that the files of a crate have no dependency cycles. `root` is the crate's `lib.rs` or `main.rs`.
pub(crate) fn check(root: &Path) -> Result<()> {
    let dependencies = dependencies(root)?;
    let folder = root.parent().context("the source file has no parent folder")?;
    let shown = |file: &Path| file.strip_prefix(folder).unwrap_or(file).display().to_string();
    let mut message = String::new();
    for cycle in cycles(&dependencies) {
        message +=
            &format!("\n{} files of {} depend on each other:", cycle.len(), shown_crate(root));
        for from in &cycle {
            for (to, name) in dependencies[*from].iter().filter(|(to, _)| cycle.contains(to)) {
                message += &format!("\n  {} uses `{name}` of {}", shown(from), shown(to));
            }
        }
    }
    ensure!(message.is_empty(), "{}", message.trim_start());
    Ok(())
}

/// The name of the crate's folder. `root` is the crate's `lib.rs` or `main.rs`.
fn shown_crate(root: &Path) -> String {
    let folder = root.parent().and_then(Path::parent).and_then(Path::file_name);
    folder.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn dependencies(root: &Path) -> Result<Dependencies> {
    let mut parsed = Crate::default();
    let folder = root.parent().context("the source file has no parent folder")?;
    parsed.read_file(root, folder, Vec::new())?;
    let mut dependencies = Dependencies::new();
    for (path, module) in &parsed.modules {
        let from = dependencies.entry(module.file.clone()).or_default();
        for reference in &module.references {
            let target = parsed.resolve(path, reference, 0);
            if let Some(Target::Item(defined_in)) = target {
                let file = &parsed.modules[&defined_in].file;
                if *file != module.file {
                    from.entry(file.clone()).or_insert_with(|| reference.join("::"));
                }
            }
        }
    }
    Ok(dependencies)
}

impl Crate {
    /// Reads a file and the files of its modules. `folder` is the folder that contains the files of its modules.
    fn read_file(&mut self, file: &Path, folder: &Path, path: ModulePath) -> Result<()> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let parsed = syn::parse_file(&text).with_context(|| file.display().to_string())?;
        self.read_items(parsed.items, file, folder, path)
    }

    fn read_items(
        &mut self,
        items: Vec<Item>,
        file: &Path,
        folder: &Path,
        path: ModulePath,
    ) -> Result<()> {
        let mut module = Module { file: file.to_path_buf(), ..Module::default() };
        for item in items {
            if is_test(attributes(&item)) {
                continue;
            }
            match item {
                Item::Mod(child) => {
                    let name = child.ident.to_string();
                    let (path, folder) = (joined(&path, &name), folder.join(&name));
                    match child.content {
                        Some((_, items)) => self.read_items(items, file, &folder, path)?,
                        None => {
                            let single = folder.with_extension("rs");
                            let nested = folder.join("mod.rs");
                            let file = if single.is_file() { &single } else { &nested };
                            self.read_file(file, &folder, path)?;
                        }
                    }
                }
                Item::Use(item) => {
                    let is_reexport = !matches!(item.vis, Visibility::Inherited);
                    module.read_use(&item.tree, &mut Vec::new(), is_reexport);
                }
                item => {
                    module.items.extend(defined_name(&item));
                    read_paths(item.to_token_stream(), &mut module.references);
                }
            }
        }
        self.modules.insert(path, module);
        Ok(())
    }

    /// The item or module that the path `segments` refers to in the module `from`.
    fn resolve(&self, from: &ModulePath, segments: &[String], depth: usize) -> Option<Target> {
        // Glob imports may refer to each other in a cycle, so the depth is limited.
        if depth > 16 {
            return None;
        }
        let mut at = from.clone();
        for (i, segment) in segments.iter().enumerate() {
            let module = self.modules.get(&at)?;
            let rest = &segments[i + 1..];
            match segment.as_str() {
                "self" => continue,
                "crate" => at = Vec::new(),
                "super" => {
                    at.pop()?;
                }
                name if self.modules.contains_key(&joined(&at, name)) => at.push(name.to_owned()),
                name if module.items.contains(name) => return Some(Target::Item(at)),
                name => {
                    let import = module.imports.get(name).cloned();
                    let in_globs = module.globs.iter().map(|glob| joined(glob, name));
                    let mut paths = import.into_iter().chain(in_globs);
                    let target = paths.find_map(|path| self.resolve(&at, &path, depth + 1))?;
                    return match target {
                        Target::Module(module) => self.resolve(&module, rest, depth + 1),
                        item @ Target::Item(_) => Some(item),
                    };
                }
            }
        }
        Some(Target::Module(at))
    }
}

impl Module {
    fn read_use(&mut self, tree: &UseTree, prefix: &mut Vec<String>, is_reexport: bool) {
        let mut import = |name: String, path: Vec<String>| {
            if !is_reexport {
                self.references.push(path.clone());
            }
            self.imports.insert(name, path);
        };
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.read_use(&path.tree, prefix, is_reexport);
                prefix.pop();
            }
            UseTree::Name(name) if name.ident == "self" => {
                import(prefix.last().cloned().unwrap_or_default(), prefix.clone());
            }
            UseTree::Name(name) => {
                import(name.ident.to_string(), joined(prefix, &name.ident.to_string()));
            }
            UseTree::Rename(rename) => {
                import(rename.rename.to_string(), joined(prefix, &rename.ident.to_string()));
            }
            UseTree::Glob(_) => self.globs.push(prefix.clone()),
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.read_use(tree, prefix, is_reexport));
            }
        }
    }
}

/// Collects the paths in the tokens. Paths of one segment are included, because a glob import may provide the name.
fn read_paths(tokens: TokenStream, paths: &mut Vec<Vec<String>>) {
    let mut path: Vec<String> = Vec::new();
    let (mut colons, mut is_attribute) = (0, false);
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => {
                if colons != 2 {
                    paths.extend((!path.is_empty()).then(|| std::mem::take(&mut path)));
                }
                path.push(ident.to_string());
                colons = 0;
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
            TokenTree::Group(group) => {
                paths.extend((!path.is_empty()).then(|| std::mem::take(&mut path)));
                colons = 0;
                if !is_attribute {
                    read_paths(group.stream(), paths);
                }
            }
            TokenTree::Punct(punct) => {
                paths.extend((!path.is_empty()).then(|| std::mem::take(&mut path)));
                colons = 0;
                is_attribute = punct.as_char() == '#';
                continue;
            }
            TokenTree::Literal(_) => {
                paths.extend((!path.is_empty()).then(|| std::mem::take(&mut path)));
                colons = 0;
            }
        }
        is_attribute = false;
    }
    paths.extend((!path.is_empty()).then_some(path));
}

/// The name that an item defines.
fn defined_name(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether an item is compiled for tests only.
fn is_test(attributes: &[Attribute]) -> bool {
    let is_test = |attribute: &Attribute| {
        let condition = attribute.to_token_stream().to_string();
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg") && condition.contains("(test")
    };
    attributes.iter().any(is_test)
}

fn joined(path: &[String], name: &str) -> Vec<String> {
    path.iter().cloned().chain([name.to_owned()]).collect()
}

/// The strongly connected sets of two or more files.
fn cycles(dependencies: &Dependencies) -> Vec<BTreeSet<&PathBuf>> {
    let reachable: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> =
        dependencies.keys().map(|file| (file, reachable_from(file, dependencies))).collect();
    let mut cycles = Vec::new();
    let mut seen = BTreeSet::new();
    for (&file, others) in &reachable {
        let cycle: BTreeSet<&PathBuf> =
            others.iter().filter(|other| reachable[*other].contains(file)).copied().collect();
        if cycle.contains(file) && seen.insert(file) {
            seen.extend(&cycle);
            cycles.push(cycle);
        }
    }
    cycles
}

/// The files that a file depends on, directly or through other files.
fn reachable_from<'a>(file: &PathBuf, dependencies: &'a Dependencies) -> BTreeSet<&'a PathBuf> {
    let mut reachable = BTreeSet::new();
    let mut pending: Vec<&PathBuf> = dependencies[file].keys().collect();
    while let Some(next) = pending.pop() {
        if reachable.insert(next) {
            pending.extend(dependencies[next].keys());
        }
    }
    reachable
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a crate's files and checks it.
    fn check_files(files: &[(&str, &str)]) -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        check(&folder.path().join("lib.rs"))
    }

    #[test]
    fn finds_cycles_through_reexports_globs_and_inline_paths() {
        let lib = ("lib.rs", "mod a; mod b; mod c; pub use a::A;");
        for (a, b) in [
            ("use crate::b::B; pub struct A;", "use crate::A; pub struct B;"),
            ("pub fn a() { crate::b::b() } pub struct A;", "use super::*; pub fn b(_: A) {}"),
            ("use crate::b; pub struct A(b::B);", "pub type B = Vec<super::a::A>;"),
            ("pub struct A; fn f() { vec![crate::b::B] }", "use crate::{A as X}; pub struct B;"),
        ] {
            let error = check_files(&[lib, ("a.rs", a), ("b.rs", b), ("c.rs", "")]).unwrap_err();
            let message = error.to_string();
            assert!(message.starts_with("2 files of "), "{message}");
            assert!(message.contains("a.rs uses `") && !message.contains("c.rs"), "{message}");
        }
    }

    #[test]
    fn accepts_reexports_module_declarations_and_tests() {
        check_files(&[
            (
                "lib.rs",
                "mod folder; pub use folder::Child; pub struct Root; pub const N: usize = 1;",
            ),
            (
                "folder/mod.rs",
                "mod child; pub use child::Child; pub struct Shared;
                 #[cfg(test)] mod tests { fn f() { super::child::Child; } }",
            ),
            (
                "folder/child.rs",
                "use super::Shared; use crate::Root; pub struct Child(Shared, Root);",
            ),
        ])
        .unwrap();
    }
}
