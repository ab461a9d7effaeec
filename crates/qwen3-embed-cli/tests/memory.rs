//! The memory that a process uses, compared with the prediction of `info` and with limits.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use qwen3_embed_testing::checkpoint::RandomCheckpoint;
use qwen3_embed_testing::fixtures::{self, Dtype};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The maximum length of a text, in tokens.
const MAX_TOKENS: usize = 8192;

const VOCAB_SIZE: usize = 1026;

/// A model whose activations are far larger than its weights. It has two layers, because the last layer is computed
/// only for the last token of each text.
fn write_model() -> TempDir {
    let model = RandomCheckpoint {
        hidden_size: 512,
        intermediate_size: 2048,
        vocab_size: VOCAB_SIZE,
        head_dim: 64,
        num_attention_heads: 8,
        num_key_value_heads: 4,
        max_position_embeddings: MAX_TOKENS,
        dtype: Dtype::F32,
        ..RandomCheckpoint::default()
    };
    let dir = model.write(1);
    fixtures::copy_file(&fixtures::path("tokenizer.json"), &dir.path().join("tokenizer.json"));
    dir
}

/// The peak resident memory of a process, in bytes.
fn peak(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// Without the check, the allocation would succeed, because the system grants memory that it does not have, and the
/// process would be ended when it uses the memory.
#[test]
fn text_whose_activations_do_not_fit_in_memory_is_an_error() {
    let dir = write_model();
    let input = dir.path().join("input.jsonl");
    let tokens: Vec<usize> = (0..MAX_TOKENS).map(|i| i * 31 % 1000).collect();
    fs::write(&input, json!({ "tokens": tokens }).to_string()).unwrap();
    // How much address space the process needs depends on the machine. With too little, the weights do not fit, or memory
    // for something else is missing and the process is aborted.
    let outputs = (2..64).map(|limit| {
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("ulimit -v {}; exec \"$0\" \"$@\"", limit * (64 << 10))]);
        limited.arg(env!("CARGO_BIN_EXE_qwen3-embed")).args(["embed", "--threads", "1", "--model"]);
        limited.arg(dir.path()).arg(&input).output().unwrap()
    });
    let ended = outputs.filter(|output| output.status.code().is_some());
    let (codes, said): (Vec<_>, Vec<_>) = ended
        .map(|output| (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
        .take_while(|(code, _)| *code == Some(1))
        .unzip();
    assert!(said.iter().all(|said| said.contains("MiB are left")), "{codes:?}: {said:?}");
    let is_about_text = |said: &String| said.contains("a batch of 8192 tokens needs about");
    assert!(said.last().is_some_and(is_about_text), "{codes:?}: {said:?}");
}

#[test]
fn longest_text_uses_the_memory_that_info_predicts() {
    let dir = write_model();
    let command = |name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"));
        command.arg(name);
        command
    };
    let info = command("info").arg(dir.path()).arg("--json").output().unwrap();
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["max_tokens"], MAX_TOKENS);
    let mut child = command("embed");
    child.arg("--model").arg(dir.path()).args(["--precision", "f32", "--preload"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut lines) =
        (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    let mut peak_with = |n_tokens: usize, child: &Child| {
        let mut tokens: Vec<usize> = (0..n_tokens).map(|i| i * 31 % 1000).collect();
        tokens[n_tokens - 1] = VOCAB_SIZE - 1;
        writeln!(input, "{}", json!({ "tokens": tokens })).unwrap();
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["n_tokens"], n_tokens);
        peak(child)
    };
    let [short, long] = [16, MAX_TOKENS].map(|n_tokens| peak_with(n_tokens, &child));
    child.kill().unwrap();
    child.wait().unwrap();
    let bytes = |field: &str| info["memory"]["f32"][field].as_u64().unwrap();
    let predicted = bytes("total_longest_text") - bytes("weights") - bytes("embeddings");
    assert!(predicted > bytes("workspace") && predicted > 100 << 20, "{predicted}");
    let ratio = (long - short) as f64 / predicted as f64;
    assert!((0.8..1.1).contains(&ratio), "{short} to {long}, {predicted} predicted");
}
