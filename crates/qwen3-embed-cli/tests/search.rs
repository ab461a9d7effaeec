//! The program `qwen3-embed search`: files and standard input, the results, JSON, and the reranker.
// The tests name no model, so that the command uses the bundled one.
#![cfg(feature = "demo-model")]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use qwen3_embed::{EmbedOptions, Embedder, Prompt, Reranker, Source};
use qwen3_embed_testing::fixtures;
use serde_json::Value;

const NOTES: [&str; 3] =
    ["图书馆每天开到晚上八点。", "Cats sleep most of the day.", "今日は雨が降っています。"];
const RECIPES: [&str; 2] = ["Wash the rice twice, then boil it.", "김치는 배추로 만듭니다."];

/// Runs the program in `folder`, which contains the files of [`folder`].
fn run(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"));
    command.current_dir(folder).arg("search").args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Writing fails if the child has rejected its arguments and ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    // A byte order mark, empty lines, and line ends of Windows.
    let notes = format!("\u{feff}{}\r\n\r\n{}\r\n{}", NOTES[0], NOTES[1], NOTES[2]);
    fs::write(folder.path().join("notes.txt"), notes).unwrap();
    fs::write(folder.path().join("recipes.txt"), RECIPES.join("\n")).unwrap();
    fs::write(folder.path().join("long.txt"), format!("short\n{}", "long ".repeat(99))).unwrap();
    fs::write(folder.path().join("bad.txt"), b"good\n\xff\n").unwrap();
    folder
}

fn printed(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn error(output: &Output) -> String {
    assert!(!output.status.success() && output.stdout.is_empty());
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The documents in the order of their similarity to a query, as the library computes it.
fn ranked(query: &str, documents: &[&str], prompt: Prompt) -> Vec<(usize, f32)> {
    let embedder = Embedder::builder(Source::demo()).build().unwrap();
    let query = embedder.embed_with([query], &EmbedOptions::new().prompt(prompt)).unwrap();
    let vectors = embedder.embed_documents(documents).unwrap();
    let hits = vectors.top_k(query.row(0), documents.len()).unwrap();
    hits.iter().map(|hit| (hit.index, hit.score)).collect()
}

#[test]
fn results_have_score_file_line_and_text() {
    let folder = folder();
    let places = ["notes.txt:1", "notes.txt:3", "notes.txt:4", "recipes.txt:1", "recipes.txt:2"];
    let documents = [&NOTES[..], &RECIPES].concat();
    let line =
        |(idx, score): (usize, f32)| format!("{score:6.3}  {}  {}\n", places[idx], documents[idx]);
    let lines = |query, prompt, n| -> String {
        ranked(query, &documents, prompt).into_iter().take(n).map(line).collect()
    };
    let query = "図書館は何時まで開いていますか";
    let files = ["notes.txt", "recipes.txt"];
    let output = run(folder.path(), &[&["--query", query], &files[..]].concat(), "");
    assert_eq!(printed(&output), lines(query, Prompt::Query, 5));
    assert!(printed(&output).contains("notes.txt:1  图书馆"), "{output:?}");

    let instruction = Prompt::Instruction("Find recipes".to_owned());
    let arguments = ["--query", query, "--query", "cook", "--instruct", "Find recipes"];
    let output = run(folder.path(), &[&arguments[..], &["--top-k", "2"], &files].concat(), "");
    let [first, second] = [query, "cook"].map(|query| lines(query, instruction.clone(), 2));
    assert_eq!(printed(&output), format!("{query}\n{first}\ncook\n{second}"));
}

#[test]
fn standard_input_is_searched_like_a_file() {
    let folder = folder();
    let input = RECIPES.map(|text| format!("{}\n", Value::from(text))).concat();
    let arguments = ["--query", "rice", "--format", "jsonl", "--json", "--top-k", "1"];
    let [(idx, score), ..] = ranked("rice", &RECIPES, Prompt::Query)[..] else { panic!() };
    for files in [&[][..], &["-"]] {
        let output = run(folder.path(), &[&arguments[..], files].concat(), &input);
        let mut value: Value = serde_json::from_str(&printed(&output)).unwrap();
        assert_eq!(value["score"].take().as_f64().unwrap() as f32, score);
        let expected = serde_json::json!({
            "query": "rice", "score": null, "file": null, "line": idx + 1, "text": RECIPES[idx],
        });
        assert_eq!(value, expected);
    }
    let output = run(folder.path(), &["--query", "rice", "--top-k", "1"], &RECIPES.join("\n"));
    assert_eq!(printed(&output), format!("{score:6.3}  {}  {}\n", idx + 1, RECIPES[idx]));
}

#[test]
fn a_reranker_sorts_the_candidates_again() {
    let folder = folder();
    let model = fixtures::reranker("untied");
    let candidates: Vec<_> = ranked("rain", &NOTES, Prompt::Query);
    let reranker = Reranker::builder(model.as_path()).build().unwrap();
    for n in [2, 3] {
        let texts: Vec<&str> = candidates[..n].iter().map(|&(idx, _)| NOTES[idx]).collect();
        let ranked = reranker.rank("rain", &texts).unwrap();
        let best = &ranked[0];
        let expected = format!("{:6.3}  ", best.score);
        let number = n.to_string();
        let reranked = ["--rerank", model.to_str().unwrap(), "--candidates", &number];
        let arguments = [&["--query", "rain", "--top-k", "1", "notes.txt"], &reranked[..]].concat();
        let output = printed(&run(folder.path(), &arguments, ""));
        assert!(output.starts_with(&expected) && output.contains(texts[best.index]), "{output}");
        assert_eq!(output.lines().count(), 1);
    }
}

#[test]
fn errors_name_the_file_and_the_line() {
    let folder = folder();
    let error = |arguments: &[&str]| error(&run(folder.path(), arguments, ""));
    for (arguments, expected) in [
        (&["--query", "a", "missing.txt"][..], "error: cannot open missing.txt: "),
        (&["--query", "a", "bad.txt"], "error: line 2 of bad.txt: stream did not contain valid"),
        (&["--query", "a", "notes.txt", "--format", "jsonl"], "line 1 of notes.txt: expected an"),
        (&["--query", "a"], "error: expected lines to search, got none"),
        (&["--query", "a", "long.txt", "--max-tokens", "40"], "line 2 of long.txt: text 1 has"),
        (&["--query", "a", "notes.txt", "--max-tokens", "9"], "error: query 1: text 0 has"),
        (&["notes.txt"], "--query <TEXT>"),
        (&["--query", "a", "--candidates", "3", "notes.txt"], "--rerank <PATH or ID>"),
    ] {
        let error = error(arguments);
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    let replaced = run(folder.path(), &["--query", "a", "bad.txt", "--replace-invalid"], "");
    assert!(printed(&replaced).contains("bad.txt:2  \u{fffd}"));
}
