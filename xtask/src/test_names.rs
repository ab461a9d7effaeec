//! Checks that the tests that the documentation names exist.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::workspace::{files, root};

/// Checks the tables of tests in ARCHITECTURE.md and in `docs/`. A table of tests is a table whose last column is
/// called `test` or `tests`. A name in backticks in this column is the name of a function, such as
/// `rejects_truncated_header`, of a file of a crate, such as `model/tests/parity.rs`, or of a module, such as
/// `kernels::cuda::tests`.
pub(crate) fn check() -> Result<()> {
    let mut code = String::new();
    for folder in ["crates", "xtask/src"] {
        for file in files(&root().join(folder), "rs")? {
            code += &fs::read_to_string(file)?;
        }
    }
    let mut n_names = 0;
    for document in documents()? {
        let text = fs::read_to_string(&document)?;
        for name in names(&text) {
            ensure!(
                exists(name, &code),
                "{} names the test `{name}`, which does not exist",
                document.display()
            );
            n_names += 1;
        }
    }
    ensure!(n_names > 0, "no document has a table of tests");
    Ok(())
}

/// ARCHITECTURE.md and the Markdown files below `docs/`.
fn documents() -> Result<Vec<PathBuf>> {
    let mut documents = vec![root().join("ARCHITECTURE.md")];
    let mut folders = vec![root().join("docs")];
    while let Some(folder) = folders.pop().filter(|folder| folder.is_dir()) {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                documents.push(path);
            }
        }
    }
    Ok(documents)
}

/// The names in backticks in the last column of the tables of tests.
fn names(markdown: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_table_of_tests = None;
    for line in markdown.lines() {
        let Some(row) = line.trim().strip_prefix('|').and_then(|row| row.strip_suffix('|')) else {
            is_table_of_tests = None;
            continue;
        };
        // A pipe in a cell is escaped.
        let cell = row.rsplit(" | ").next().unwrap_or_default();
        match is_table_of_tests {
            None => {
                let heading = cell.trim().to_lowercase();
                is_table_of_tests = Some(heading == "test" || heading == "tests");
            }
            Some(true) => names.extend(cell.split('`').skip(1).step_by(2)),
            Some(false) => (),
        }
    }
    names
}

/// Whether there is a function, file or module with this name. Also true for other names, such as names of fixtures,
/// because they are not checked.
fn exists(name: &str, code: &str) -> bool {
    let is_identifier = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if let Some((krate, module)) = name.split_once("::") {
        let module = module.replace("::", "/");
        let files = [format!("src/{module}.rs"), format!("src/{module}/mod.rs")];
        return files.iter().any(|file| has_file(krate, file));
    }
    if let Some((krate, file)) = name.split_once('/') {
        return has_file(krate, file);
    }
    !name.chars().all(is_identifier) || code.contains(&format!("fn {name}("))
}

/// Whether a crate has a file. The crate's name may be given without `qwen3-embed-`.
fn has_file(krate: &str, file: &str) -> bool {
    let crates = root().join("crates");
    let folders = [crates.join(format!("qwen3-embed-{krate}")), crates.join(krate)];
    folders.iter().any(|folder| folder.join(file).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_tests_exist() {
        check().unwrap();
    }

    #[test]
    fn names_come_from_the_last_column_of_tables_of_tests() {
        let markdown = "| crate | what |\n|---|---|\n| `a` | `b` |\n\n| Mistake | Test |\n|---|---|\n\
                        | `<\\|x\\|>` | `first`; `second`, the fixture `c-d` |\n| x | `e/f.rs` |\n\n`g`\n";
        assert_eq!(names(markdown), ["first", "second", "c-d", "e/f.rs"]);
    }

    #[test]
    fn named_functions_files_and_modules_must_exist() {
        let code = "fn rejects_truncated_header() {";
        for name in
            ["rejects_truncated_header", "model/Cargo.toml", "kernels::cpu::dispatch", "c-d"]
        {
            assert!(exists(name, code), "{name}");
        }
        for name in ["rejects_truncated", "model/tests/none.rs", "kernels::cpu::none"] {
            assert!(!exists(name, code), "{name}");
        }
    }
}
