//! Compares the memory that `info` estimates with the memory that a process uses.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Map, Value, json};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/base");

/// The maximum length of a text for this model, in tokens.
const MAX_TOKENS: usize = 8192;

const HIDDEN_SIZE: usize = 512;
const INTERMEDIATE_SIZE: usize = 2048;
const VOCAB_SIZE: usize = 1026;
const HEAD_DIM: usize = 64;
const N_HEADS: usize = 8;
const N_KEY_VALUE_HEADS: usize = 4;

/// Writes a model whose activations are far larger than its weights. It has two layers, because the last layer is only
/// computed for the last token.
fn write_model(dir: &Path) {
    let mut config: Value =
        serde_json::from_slice(&fs::read(format!("{FIXTURE}/config.json")).unwrap()).unwrap();
    for (field, value) in [
        ("hidden_size", HIDDEN_SIZE),
        ("intermediate_size", INTERMEDIATE_SIZE),
        ("vocab_size", VOCAB_SIZE),
        ("head_dim", HEAD_DIM),
        ("num_attention_heads", N_HEADS),
        ("num_key_value_heads", N_KEY_VALUE_HEADS),
        ("num_hidden_layers", 2),
        ("max_position_embeddings", MAX_TOKENS),
    ] {
        config[field] = value.into();
    }
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::copy(format!("{FIXTURE}/tokenizer.json"), dir.join("tokenizer.json")).unwrap();
    let (q, kv) = (N_HEADS * HEAD_DIM, N_KEY_VALUE_HEADS * HEAD_DIM);
    let of_layer = |layer: &str| {
        let tensors = [
            ("input_layernorm", vec![HIDDEN_SIZE]),
            ("post_attention_layernorm", vec![HIDDEN_SIZE]),
            ("self_attn.q_norm", vec![HEAD_DIM]),
            ("self_attn.k_norm", vec![HEAD_DIM]),
            ("self_attn.q_proj", vec![q, HIDDEN_SIZE]),
            ("self_attn.k_proj", vec![kv, HIDDEN_SIZE]),
            ("self_attn.v_proj", vec![kv, HIDDEN_SIZE]),
            ("self_attn.o_proj", vec![HIDDEN_SIZE, q]),
            ("mlp.gate_proj", vec![INTERMEDIATE_SIZE, HIDDEN_SIZE]),
            ("mlp.up_proj", vec![INTERMEDIATE_SIZE, HIDDEN_SIZE]),
            ("mlp.down_proj", vec![HIDDEN_SIZE, INTERMEDIATE_SIZE]),
        ];
        tensors.map(|(name, shape)| (format!("{layer}.{name}"), shape))
    };
    let embeddings = ("embed_tokens".to_owned(), vec![VOCAB_SIZE, HIDDEN_SIZE]);
    let norm = ("norm".to_owned(), vec![HIDDEN_SIZE]);
    let layers = ["layers.0", "layers.1"].into_iter().flat_map(of_layer);
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, shape) in [embeddings, norm].into_iter().chain(layers) {
        let start = data.len();
        for i in 0..shape.iter().product() {
            // Arbitrary numbers between -0.05 and 0.05.
            data.extend(((i * 7919 % 101) as f32 * 0.001 - 0.05).to_le_bytes());
        }
        let offsets = [start, data.len()];
        let tensor = json!({"dtype": "F32", "shape": shape, "data_offsets": offsets});
        header.insert(format!("{name}.weight"), tensor);
    }
    let header = Value::from(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    let file = [&length[..], header.as_bytes(), &data].concat();
    fs::write(dir.join("model.safetensors"), file).unwrap();
}

/// The peak resident memory of a process, in bytes.
fn peak(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn longest_text_uses_the_memory_that_info_estimates() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
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
    let announced = bytes("total_longest_text") - bytes("weights") - bytes("embeddings");
    assert!(announced > bytes("workspace") && announced > 100 << 20, "{announced}");
    let ratio = (long - short) as f64 / announced as f64;
    assert!((0.8..1.1).contains(&ratio), "{short} to {long}, {announced} announced");
}
