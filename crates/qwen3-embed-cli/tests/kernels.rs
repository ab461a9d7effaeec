//! The kernel set that the environment variable `QWEN3_EMBED_KERNELS` selects.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use qwen3_embed::{Kernels, cosine};
use qwen3_embed_testing::fixtures;
use serde_json::Value;

fn model() -> String {
    fixtures::model("wide").to_str().unwrap().to_owned()
}

fn run(kernels: &str, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"));
    command.args(arguments).env(Kernels::VARIABLE, kernels);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Writing fails if the child has ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn every_kernel_set_of_this_cpu_gives_similar_vectors() {
    let embed = |kernels: &str, precision: &str| -> Vec<f32> {
        let arguments = ["embed", "--model", &model(), "--precision", precision];
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
    // An empty value has the same effect as no value.
    assert_eq!(embed("", "f32"), embed(Kernels::current().name, "f32"));
}

#[test]
fn bench_prints_the_kernel_set() {
    let output =
        run("portable", &["bench", "--model", &model(), "--shape", "1x4", "--runs", "1"], "");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.lines().next().unwrap().contains(", portable kernels, "), "{table}");
}

#[test]
fn rejects_unknown_kernel_set_and_lists_the_known_ones() {
    let serve = ["serve", "--model-path", &model(), "--port", "0"];
    for arguments in [&["embed", "--model", &model()][..], &serve] {
        let output = run("avx1024", arguments, "{\"text\": \"a\"}\n");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(error.contains("QWEN3_EMBED_KERNELS is `avx1024`"), "{error}");
        assert!(Kernels::all().all(|kernels| error.contains(kernels.name)), "{error}");
    }
}
