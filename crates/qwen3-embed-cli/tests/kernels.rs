//! Tests of the environment variable that chooses the kernel set.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use qwen3_embed::{Kernels, cosine};
use serde_json::Value;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/wide");

fn run(kernels: &str, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"));
    command.args(arguments).env(Kernels::VARIABLE, kernels);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Writing fails if the process has ended before it reads.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn every_kernel_set_of_this_cpu_runs() {
    let embed = |kernels: &str, precision: &str| -> Vec<f32> {
        let arguments = ["embed", "--model", MODEL, "--precision", precision];
        let output = run(kernels, &arguments, "{\"text\": \"The weather is great today\"}\n");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let line: Value = serde_json::from_slice(&output.stdout).unwrap();
        serde_json::from_value(line["embedding"].clone()).unwrap()
    };
    let expected = embed("portable", "f32");
    for kernels in Kernels::all() {
        for (precision, least) in [("f32", 0.999_999), ("bf16", 0.9995), ("int8", 0.998)] {
            let similarity = cosine(&embed(kernels.name, precision), &expected).unwrap();
            assert!(similarity >= least, "{}, {precision}: {similarity}", kernels.name);
        }
    }
    // An empty variable is treated as not set.
    assert_eq!(embed("", "f32"), embed(Kernels::current().name, "f32"));
}

#[test]
fn bench_shows_the_kernel_set() {
    let output = run("portable", &["bench", "--model", MODEL, "--shape", "1x4", "--runs", "1"], "");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.lines().next().unwrap().contains(", portable kernels, "), "{table}");
}

#[test]
fn unknown_kernel_set_is_an_error_that_lists_the_known_ones() {
    let serve = ["serve", "--model-path", MODEL, "--port", "0"];
    for arguments in [&["embed", "--model", MODEL][..], &serve] {
        let output = run("avx1024", arguments, "{\"text\": \"a\"}\n");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(error.contains("QWEN3_EMBED_KERNELS is `avx1024`"), "{error}");
        assert!(Kernels::all().all(|kernels| error.contains(kernels.name)), "{error}");
    }
}
