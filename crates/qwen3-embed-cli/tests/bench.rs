//! The program `qwen3-embed bench`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::{Command, Output};

use qwen3_embed::Kernels;
use qwen3_embed_testing::fixtures;
use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"));
    command.args(["bench", "--runs", "3", "--model"]).arg(fixtures::model("base")).args(arguments);
    command.output().unwrap()
}

#[test]
fn reports_every_workload_as_json() {
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
        // Queries share their instruction, which is cached from run to run.
        let computed = result["computed_share"].as_f64().unwrap();
        assert!(if queries { computed < 0.7 } else { computed == 1.0 }, "{computed}");
    }
    let output = bench(&["--json", "--queries", "5", "--no-sharing"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["results"][0]["computed_share"], 1.0);
}

#[test]
fn prints_a_table_with_a_line_for_each_workload() {
    let output = bench(&["--shape", "1x8", "--threads", "2"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[2].starts_with("1x8 "), "{text}");
}

#[test]
fn computes_a_common_prefix_once_for_all_texts() {
    let output = bench(&["--json", "--shape", "4x10", "--prefix", "30"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let result = &report["results"][0];
    assert_eq!((&result["shape"], &result["computed_share"]), (&"4x(30+10)".into(), &0.25.into()));
}

#[test]
fn kernels_of_a_missing_device_are_not_measured() {
    let output = bench_kernels(&["--device", "cuda:9999"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.to_lowercase().contains("cuda"), "{error}");
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

/// Runs `bench --kernels` with the shapes of a fixture whose rows are whole blocks.
fn bench_kernels(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"));
    command.args(["bench", "--kernels", "--model"]).arg(fixtures::model("wide"));
    command.args(arguments).output().unwrap()
}

#[test]
fn measures_every_kernel_at_the_shapes_of_a_model() {
    let output = bench_kernels(&["--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["kernels"], Kernels::current().name);
    assert_eq!((&report["hidden_size"], &report["threads"]), (&256.into(), &1.into()));
    let mut found = Vec::new();
    for result in report["results"].as_array().unwrap() {
        let text = |field: &str| result[field].as_str().unwrap_or_default();
        let operands = ["kernel", "precision", "weights", "activations", "layer"].map(text);
        let size = result["n_in"].as_u64();
        assert!(!found.contains(&(operands, size)), "{result}");
        found.push((operands, size));
        let is_limited = ["linear", "attention"].contains(&operands[0]);
        assert_eq!(result["peak_operations_per_s"].as_f64().is_some_and(is_positive), is_limited);
        let rows = if operands[0] == "attention" { [128, 512, 2048] } else { [1, 32, 192] };
        let rates = result["rates"].as_array().unwrap();
        assert_eq!(rates.len(), rows.len());
        for (rate, rows) in rates.iter().zip(rows) {
            assert_eq!(rate["rows"], rows);
            let fields: &[&str] =
                if is_limited { &["operations_per_s", "peak_share"] } else { &["values_per_s"] };
            assert!(fields.iter().all(|field| rate[field].as_f64().is_some_and(is_positive)));
        }
    }
    for (weights, activations) in [
        ("f32", "f32"),
        ("bf16", "f32"),
        ("bf16", "bf16"),
        ("8 bits", "16 bits"),
        ("8 bits", "8 bits"),
        ("4 bits", "8 bits, blocks"),
        ("5 bits", "8 bits, blocks"),
        ("6 bits", "8 bits, blocks"),
    ] {
        for (layer, n_in) in
            [("qkv_proj", 256), ("o_proj", 512), ("gate_up_proj", 256), ("down_proj", 512)]
        {
            let expected = (["linear", "", weights, activations, layer], Some(n_in));
            assert!(found.contains(&expected), "{expected:?}");
        }
    }
    for precision in ["f32", "bf16"] {
        assert!(found.contains(&(["attention", precision, "", "", ""], None)), "{precision}");
    }
    for activations in ["16 bits", "8 bits", "8 bits, rotated", "8 bits, blocks"] {
        for n_in in [256, 512] {
            let expected = (["quantize", "", "", activations, ""], Some(n_in));
            assert!(found.contains(&expected), "{expected:?}");
        }
    }
    for kernel in ["rms_norm", "qk_norm_rope"] {
        assert!(found.contains(&([kernel, "", "", "", ""], None)), "{kernel}");
    }
    assert_eq!(found.len(), 8 * 4 + 2 + 4 * 2 + 2);
}

fn is_positive(number: f64) -> bool {
    number.is_finite() && number > 0.0
}

#[test]
fn table_of_kernels_begins_with_the_machine() {
    let output = bench_kernels(&[]);
    let table = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    let begins = ["program ", "CPU ", "instructions ", "kernel set ", "shapes "];
    for (line, begin) in lines.iter().zip(begins) {
        assert!(line.starts_with(begin) && line.len() > 14, "{table}");
    }
    assert!(lines[3].contains(Kernels::current().name), "{table}");
    // Header, three sections with an empty line and two lines of titles, and a line for each kernel.
    assert_eq!(lines.len(), 5 + 3 * 3 + 44, "{table}");
    let widths: Vec<usize> =
        lines.iter().filter(|line| line.ends_with('%')).map(|line| line.chars().count()).collect();
    assert_eq!(widths, [widths[0]; 34], "{table}");
}

#[test]
fn kernels_are_measured_without_the_settings_of_a_workload() {
    let flags =
        [["--shape", "1x8"], ["--threads", "2"], ["--precision", "bf16"], ["--max-tokens", "9"]];
    for arguments in flags {
        let output = bench_kernels(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}
