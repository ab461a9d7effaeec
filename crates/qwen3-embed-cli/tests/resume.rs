//! `qwen3-embed embed --output-dir`: runs that are killed, interrupted or fail, and `--resume`.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use qwen3_embed_testing::fixtures;
use serde_json::{Value, json};
use tempfile::TempDir;

const N_RECORDS: usize = 400;
const SHARD_ROWS: usize = 64;

/// A folder with a file of different texts, in which every hundredth record has no text.
fn input() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let record = |i: usize| match i % 100 {
        99 => json!({"id": i}),
        _ => {
            let text = format!("{} ", i * 7919).repeat(1 + i % 10);
            json!({"id": i, "text": text, "note": "x".repeat(i)})
        }
    };
    let lines: String = (0..N_RECORDS).map(|i| format!("{}\n", record(i))).collect();
    fs::write(dir.path().join("texts.jsonl"), lines).unwrap();
    dir
}

fn command(dir: &TempDir, output: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"));
    command.args(["embed", "texts.jsonl", "--output-dir", output, "--on-error", "skip"]);
    command.args(["--shard-rows", &SHARD_ROWS.to_string()]).args(arguments);
    command.arg("--model").arg(fixtures::model("base")).current_dir(dir.path());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn succeed(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
}

/// The name and the contents of each file in a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect()
}

fn manifest(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap()
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    /// A number below 1.
    fn next(&mut self) -> f64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

/// The environment variable QWEN3_EMBED_TEST_KILLS sets the number of kills for each format.
#[test]
fn killed_runs_resume_to_the_same_bytes() {
    let n_kills = std::env::var("QWEN3_EMBED_TEST_KILLS").map_or(2, |n| n.parse().unwrap());
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    eprintln!("seed {seed}");
    let mut random = Random(seed);
    let dir = input();
    for format in ["parquet", "npy", "jsonl"] {
        let arguments = ["--output-format", format, "--vectors", "int8"];
        let start = Instant::now();
        succeed(command(&dir, "whole", &arguments));
        let duration = start.elapsed();
        let expected = files(&dir.path().join("whole"));
        let state = manifest(&dir.path().join("whole"));
        let n_shards = (N_RECORDS - N_RECORDS / 100).div_ceil(SHARD_ROWS);
        assert_eq!(state["shards"].as_array().unwrap().len(), n_shards, "{state}");
        assert_eq!((&state["n_skipped"], &state["complete"]), (&json!(4), &json!(true)));
        let arguments = [&arguments[..], &["--resume"]].concat();
        for round in 0..n_kills {
            let moment = duration.mul_f64(random.next());
            let mut child = command(&dir, "killed", &arguments).spawn().unwrap();
            sleep(moment);
            child.kill().unwrap();
            child.wait().unwrap();
            let folder = dir.path().join("killed");
            if folder.join("manifest.json").exists() {
                // Every file with a final name is whole.
                for (name, bytes) in files(&folder) {
                    let is_shard = name.starts_with("part") && !name.ends_with(".partial");
                    assert!(!is_shard || bytes == expected[&name], "{name}, round {round}");
                }
            }
            succeed(command(&dir, "killed", &arguments));
            let got = files(&folder);
            let names = |files: &BTreeMap<String, _>| files.keys().cloned().collect::<Vec<_>>();
            assert_eq!(names(&got), names(&expected), "round {round}, killed after {moment:?}");
            for (name, bytes) in &got {
                assert!(*bytes == expected[name], "{name}, round {round}, killed after {moment:?}");
            }
            fs::remove_dir_all(&folder).unwrap();
        }
        fs::remove_dir_all(dir.path().join("whole")).unwrap();
    }
}

#[test]
fn refuses_to_mix_runs_with_different_settings() {
    let dir = input();
    succeed(command(&dir, "out", &[]));
    let refuse = |arguments: &[&str], message: &str| {
        let output = command(&dir, "out", arguments).output().unwrap();
        let errors = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        assert!(errors.contains(message), "{errors}");
    };
    let before = files(&dir.path().join("out"));
    refuse(&[], "out has the files of an earlier run: use --resume");
    for (flags, message) in [
        (&["--dimensions", "32"][..], "expected `dimensions` 64, as in its manifest, got 32"),
        (&["--vectors", "f16"], "expected `vectors` \"f32\", as in its manifest, got \"f16\""),
        (&["--output-format", "npy"], "expected `output_format` \"parquet\""),
        (&["--precision", "f32"], "expected `precision` \"bf16\", as in its manifest, got \"f32\""),
        (
            &["--instruct", "Find"],
            "expected `prompt` \"\", as in its manifest, got \"Instruct: Find",
        ),
        (&["--columns", "id"], "expected `columns` null, as in its manifest, got [\"id\"]"),
        (&["--overflow", "truncate-left"], "expected `overflow` \"error\""),
        (&["--plain-text"], "expected `plain_text` false"),
        (&["--max-tokens", "100"], "expected `max_tokens`"),
    ] {
        refuse(&[&["--resume"], flags].concat(), message);
    }
    // The shards of the first run are there, and nothing is computed.
    let output = command(&dir, "out", &["--resume"]).output().unwrap();
    assert!(output.status.success() && errors(&output).contains("the run is complete"));
    assert_eq!(files(&dir.path().join("out")), before);
    let mut text = fs::read_to_string(dir.path().join("texts.jsonl")).unwrap();
    text.push_str("\"more\"\n");
    fs::write(dir.path().join("texts.jsonl"), text).unwrap();
    refuse(&["--resume"], "expected `input` [{\"bytes\":");
}

#[test]
fn signal_completes_the_file_and_says_how_to_go_on() {
    let dir = input();
    succeed(command(&dir, "whole", &[]));
    // The file is read slowly, so that the signal comes before its end.
    for signal in ["INT", "TERM"] {
        let mut run = command(&dir, signal, &["--batch-tokens", "1", "--threads", "1"]);
        let child = run.spawn().unwrap();
        let first = dir.path().join(signal).join("part-00000.parquet");
        let start = Instant::now();
        while !first.exists() && start.elapsed() < Duration::from_secs(60) {
            sleep(Duration::from_millis(1));
        }
        let id = child.id().to_string();
        assert!(
            Command::new("kill").args([&format!("-{signal}"), &id]).status().unwrap().success()
        );
        let output = child.wait_with_output().unwrap();
        let said = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("run the same command with --resume to go on"), "{said}");
        let got = files(&dir.path().join(signal));
        assert!(got.keys().all(|name| !name.ends_with(".partial")), "{:?}", got.keys());
        let n_shards = manifest(&dir.path().join(signal))["shards"].as_array().unwrap().len();
        assert!((1..7).contains(&n_shards), "{n_shards}");
        succeed(command(&dir, signal, &["--resume"]));
        assert_eq!(files(&dir.path().join(signal)), files(&dir.path().join("whole")));
    }
}

/// A limit of the size of files has the same effect as a full disk.
#[test]
fn full_disk_keeps_the_complete_files() {
    let dir = input();
    let arguments = ["--output-format", "jsonl"];
    succeed(command(&dir, "whole", &arguments));
    let expected = files(&dir.path().join("whole"));
    let sizes: Vec<usize> = (0..7)
        .filter_map(|shard| expected.get(&format!("part-{shard:05}.jsonl")).map(Vec::len))
        .collect();
    // The limit is in blocks of 512 bytes, and a later shard is larger than the first shard.
    let largest = sizes.iter().max().unwrap();
    assert!(sizes[0] < *largest - 1024, "{sizes:?}");
    let limit = (largest - 512) / 512;
    let inner = command(&dir, "out", &arguments);
    let mut limited = Command::new("sh");
    limited.args(["-c", &format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\"")]);
    limited.arg(inner.get_program()).args(inner.get_args()).current_dir(dir.path());
    let output = limited.stdin(Stdio::null()).output().unwrap();
    let said = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: cannot write out/part-0000"), "{said}");
    assert!(said.contains("File too large"), "{said}");
    let got = files(&dir.path().join("out"));
    assert!(got.contains_key("part-00000.jsonl"), "{:?}", got.keys());
    assert!(got.keys().all(|name| !name.ends_with(".partial")), "{:?}", got.keys());
    succeed(command(&dir, "out", &[&arguments[..], &["--resume"]].concat()));
    assert_eq!(files(&dir.path().join("out")), expected);
}

#[test]
fn parts_share_a_folder() {
    let dir = input();
    for part in ["1/2", "2/2"] {
        succeed(command(&dir, "out", &["--shard", part]));
    }
    let names: Vec<String> = files(&dir.path().join("out")).into_keys().collect();
    for name in ["manifest-1-of-2.json", "manifest-2-of-2.json", "errors-1-of-2.jsonl"] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
    assert!(names.iter().any(|name| name == "part-1-of-2-00006.parquet"), "{names:?}");
}

/// The first process is stopped while it writes, so that the second one finds it running.
#[test]
fn a_second_process_does_not_write_to_the_same_folder() {
    let dir = input();
    let mut first = command(&dir, "out", &[]).spawn().unwrap();
    while !dir.path().join("out/manifest.json").exists() {
        assert!(first.try_wait().unwrap().is_none(), "the first process has ended");
        sleep(Duration::from_millis(1));
    }
    let pid = first.id().to_string();
    let signal = |name: &str| Command::new("kill").args([name, &pid]).status().unwrap();
    signal("-STOP");
    let output = command(&dir, "out", &["--resume"]).output().unwrap();
    // Another part of the input has a run of its own.
    let part = command(&dir, "out", &["--shard", "2/2"]).output().unwrap();
    signal("-CONT");
    assert!(first.wait().unwrap().success());
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("another process is writing to out"), "{}", errors(&output));
    assert!(part.status.success(), "{}", errors(&part));
    succeed(command(&dir, "out", &["--resume"]));
}
