//! The flags of `qwen3-embed-ballista` and `qwen3-embed-sql` in the guide.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Runs the shell commands of the page with programs that check their flags and do nothing else, because of `--help` at
/// the end.
#[test]
fn shell_commands_have_flags_that_exist() {
    let folder = tempfile::tempdir().unwrap();
    let make_program = |name: &str, script: &str| {
        let path = folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    // Both programs are built before the tests of the workspace run.
    let programs = Path::new(env!("CARGO_BIN_EXE_qwen3-embed-ballista")).parent().unwrap();
    for name in ["qwen3-embed-ballista", "qwen3-embed-sql"] {
        let program = programs.join(name);
        let script = format!("echo {name} >> calls\nexec '{}' \"$@\" --help", program.display());
        make_program(name, &script);
    }
    make_program("cargo", "exit 0");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../docs/sql.md");
    let page = fs::read_to_string(page).unwrap();
    let mut blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let run = |block: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-e", "-u", "-c", block]).current_dir(folder.path());
        shell.env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()));
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{block}\n{}", String::from_utf8_lossy(&output.stderr));
    };
    blocks.by_ref().for_each(run);
    let calls = fs::read_to_string(folder.path().join("calls")).unwrap();
    assert!(calls.contains("ballista") && calls.contains("sql"), "{calls}");
}
