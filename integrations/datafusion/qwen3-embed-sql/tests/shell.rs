//! The program, with statements from flags, files and standard input.

#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed-sql"));
    command.current_dir(dir).env_remove("RUST_BACKTRACE");
    command.args(["--quiet", "--format=csv"]);
    command
}

fn run(dir: &Path, arguments: &[&str]) -> Output {
    command(dir).args(arguments).output().unwrap()
}

/// The standard output of statements that succeed.
fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn statements_come_from_flags_files_and_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let sql = "SELECT arrow_typeof(embed('It rains.')) AS type";
    let file = dir.path().join("statements.sql");
    std::fs::write(&file, format!("-- A comment.\nSET qwen3.dimensions = 32;\n{sql};\n")).unwrap();
    assert!(stdout(run(dir.path(), &["--command", sql])).contains("256 x non-null Float32"));
    assert!(stdout(run(dir.path(), &["--dimensions=64", "-c", sql])).contains("64 x non-null"));
    assert!(stdout(run(dir.path(), &["--file", "statements.sql"])).contains("32 x non-null"));

    let mut shell = command(dir.path());
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    writeln!(shell.stdin.take().unwrap(), "{sql};").unwrap();
    assert!(stdout(shell.wait_with_output().unwrap()).contains("256 x non-null"));
}

#[test]
fn the_first_error_ends_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let failing = "SELECT embed(7); SELECT 'not reached'";
    std::fs::write(dir.path().join("failing.sql"), failing).unwrap();
    for arguments in [["--command", failing], ["--file", "failing.sql"]] {
        let output = run(dir.path(), &arguments);
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("'embed' expects String but received Int64"), "{stderr}");
        assert!(!String::from_utf8(output.stdout).unwrap().contains("not reached"));
    }
    let output = run(dir.path(), &["--file", "missing.sql"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("missing.sql"));
}

/// The example job, with fewer documents.
#[test]
fn the_example_removes_texts_that_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let job = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/deduplicate.sql");
    let documents = "COPY (SELECT column1 AS id, column2 AS block, column3 AS text FROM (VALUES
        (1, 1, 'It is sunny in Berlin.'), (2, 1, 'The violin is an instrument.'),
        (3, 1, 'It is sunny in Berlin.'), (4, 2, 'It is sunny in Berlin.'))) TO 'documents/one.parquet'";
    stdout(run(dir.path(), &["--command", documents]));
    stdout(run(dir.path(), &["--file", job]));
    let rest = "SELECT id FROM 'distinct/' ORDER BY id";
    assert_eq!(stdout(run(dir.path(), &["--command", rest])), "id\n1\n2\n4\n");
}
