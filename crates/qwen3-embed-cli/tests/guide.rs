//! The shell commands in README.md and in the guide: their syntax, and the flags of `qwen3-embed`.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs of the guide that these tests do not run.
const OTHERS: [&str; 9] = [
    "cargo",
    "curl",
    "docker",
    "kubectl",
    "openssl",
    "python",
    "qwen3-embed-ballista",
    "qwen3-embed-sql",
    "systemctl",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// README.md and the pages of the guide.
fn pages() -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join("docs")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut pages: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    pages.push(root().join("README.md"));
    pages
}

/// The contents of the code blocks of a language.
fn blocks(page: &Path, language: &str) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let start = format!("```{language}");
    let mut lines = text.lines();
    let mut blocks = Vec::new();
    while lines.by_ref().any(|line| line.trim_start() == start) {
        let block = lines.by_ref().take_while(|line| line.trim_start() != "```");
        blocks.push(block.map(|line| format!("{line}\n")).collect());
    }
    blocks
}

/// Makes a program in `folder` that runs a line of shell.
fn make_program(folder: &Path, name: &str, line: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn shell_commands_have_flags_that_exist() {
    let folder = tempfile::tempdir().unwrap();
    let calls = folder.path().join("calls");
    // With `--help` at the end, the program checks the flags before it and does nothing else.
    let call = format!(
        "echo \"$1\" >> '{}'\nexec '{}' \"$@\" --help",
        calls.display(),
        env!("CARGO_BIN_EXE_qwen3-embed")
    );
    make_program(folder.path(), "qwen3-embed", &call);
    OTHERS.iter().for_each(|name| make_program(folder.path(), name, "exit 0"));
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    for page in pages() {
        for block in blocks(&page, "sh") {
            let output = Command::new("sh")
                .args(["-e", "-u", "-c", &block])
                .env("PATH", &path)
                .current_dir(folder.path())
                .output()
                .unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}:\n{block}\n{errors}", page.display());
        }
    }
    let calls = fs::read_to_string(calls).unwrap();
    for command in ["bench", "embed", "rerank", "search", "serve", "similarity"] {
        assert!(calls.lines().any(|call| call == command), "the guide does not show {command}");
    }
}

#[test]
fn environment_variables_exist() {
    let help = Command::new(env!("CARGO_BIN_EXE_qwen3-embed")).args(["serve", "--help"]).output();
    let help = String::from_utf8(help.unwrap().stdout).unwrap();
    let manifest = root().join("docs/kubernetes.yaml");
    for page in pages().into_iter().chain([manifest]) {
        let text = fs::read_to_string(&page).unwrap();
        for (start, _) in text.match_indices("QWEN3_EMBED_") {
            let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
            let name: String = text[start..].chars().take_while(|&c| is_name(c)).collect();
            // The library reads the variable for kernels.
            let is_flag = ["=", "]"].iter().any(|end| help.contains(&format!("[env: {name}{end}")));
            let exists = is_flag || name == "QWEN3_EMBED_KERNELS";
            assert!(exists, "{}: {name}", page.display());
        }
    }
}

#[test]
fn flags_that_do_not_exist_are_found() {
    let output = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"))
        .args(["serve", "--no-such-flag", "--help"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}
