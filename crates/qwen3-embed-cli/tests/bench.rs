//! Tests of `qwen3-embed bench` as a process.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/base");

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"));
    command.args(["bench", "--model", MODEL, "--runs", "3"]).args(arguments);
    command.output().unwrap()
}

#[test]
fn json_report_has_every_workload() {
    let lengths = tempfile::NamedTempFile::new().unwrap();
    fs::write(lengths.path(), "[3, 50, 7]").unwrap();
    let output = bench(&[
        "--json",
        "--shape",
        "2x16,1x300",
        "--queries",
        "5",
        "--threads",
        "1",
        "--precision",
        "bf16",
        "--lengths",
        lengths.path().to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["machine"].as_str().unwrap().contains("GFLOP/s"));
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), 4);
    assert_eq!(results[0]["shape"], "2x16");
    assert_eq!(results[1]["shape"], "1x300");
    assert_eq!(results[3]["shape"], "5 queries");
    for result in results {
        assert_eq!((&result["precision"], &result["threads"]), (&"bf16".into(), &1.into()));
        assert!(result["tokens_per_s"].as_f64().unwrap() > 0.0);
        assert!(result["spread"].as_f64().unwrap() >= 0.0);
        let share = result["peak_share"].as_f64().unwrap();
        assert!(share > 0.0 && share < 1.5, "{share}");
        let queries = result["shape"] == "5 queries";
        assert_eq!(result.get("queries_per_s").is_some(), queries);
        // Queries share their instruction, which the prefix cache keeps from one run to the next.
        let computed = result["computed_share"].as_f64().unwrap();
        assert!(if queries { computed < 0.7 } else { computed == 1.0 }, "{computed}");
    }
    let output = bench(&["--json", "--queries", "5", "--no-sharing"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["results"][0]["computed_share"], 1.0);
}

#[test]
fn table_has_a_line_for_each_workload() {
    let output = bench(&["--shape", "1x8", "--threads", "2"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[2].starts_with("1x8 "), "{text}");
}

#[test]
fn prefix_of_a_shape_is_computed_once() {
    let output = bench(&["--json", "--shape", "4x10", "--prefix", "30"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let result = &report["results"][0];
    assert_eq!((&result["shape"], &result["computed_share"]), (&"4x(30+10)".into(), &0.25.into()));
}

#[test]
fn rejects_invalid_workloads() {
    assert_eq!(bench(&["--shape", "8by128"]).status.code(), Some(2));
    assert_eq!(bench(&["--shape", "0x1"]).status.code(), Some(2));
    for arguments in [&[][..], &["--lengths", "/nowhere.json"], &["--shape", "1x9000"]] {
        let output = bench(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(String::from_utf8(output.stderr).unwrap().starts_with("error: "));
    }
}
