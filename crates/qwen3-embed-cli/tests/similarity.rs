//! The program `qwen3-embed similarity`: texts as arguments and on standard input, the matrix, JSON, and the picture.
// The tests name no model, so that the command uses the bundled one.
#![cfg(feature = "demo-model")]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use qwen3_embed::{Embedder, Source};
use serde_json::Value;

const TEXTS: [&str; 3] = ["今天天气真好", "The weather is great  today", "오늘 날씨가 정말 좋네요"];

fn run(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"));
    command.arg("similarity").args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Writing fails if the child has rejected its arguments and ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn printed(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The cosine similarities that the library computes, with three digits after the point.
fn expected() -> [[String; 3]; 3] {
    let embedder = Embedder::builder(Source::demo()).build().unwrap();
    let vectors = embedder.embed_documents(&TEXTS).unwrap();
    let similarities = vectors.similarity(&vectors).unwrap();
    [0, 1, 2].map(|row| [0, 1, 2].map(|col| format!("{:.3}", similarities.get(row, col))))
}

#[test]
fn prints_the_matrix_with_numbers_or_names() {
    let [[_, ab, ac], [_, _, bc], _] = expected();
    let numbered = format!(
        "        1       2       3
1   1.000   {ab}   {ac}  今天天气真好
2   {ab}   1.000   {bc}  The weather is great today
3   {ac}   {bc}   1.000  오늘 날씨가 정말 좋네요
"
    );
    assert_eq!(printed(&run(&TEXTS, "")), numbered);
    // The names have different widths. A Chinese character has two columns.
    let named = format!(
        "             中文   English       ko
中文        1.000     {ab}    {ac}  今天天气真好
English     {ab}     1.000    {bc}  The weather is great today
ko          {ac}     {bc}    1.000  오늘 날씨가 정말 좋네요
"
    );
    let output = printed(&run(&[&TEXTS[..], &["--names", "中文,English,ko"]].concat(), ""));
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&output), words(&named));
}

#[test]
fn standard_input_has_the_same_texts_as_arguments() {
    let expected = printed(&run(&TEXTS, ""));
    assert_eq!(printed(&run(&[], &TEXTS.join("\n\n"))), expected);
    let json: String = TEXTS.map(|text| format!("{}\n", Value::from(text))).concat();
    assert_eq!(printed(&run(&["--format", "jsonl"], &json)), expected);
}

#[test]
fn json_has_texts_names_and_similarities() {
    let arguments = [&TEXTS[..], &["--json", "--names", "a,b,c"]].concat();
    let value: Value = serde_json::from_str(&printed(&run(&arguments, ""))).unwrap();
    assert_eq!(value["texts"], serde_json::json!(TEXTS));
    assert_eq!(value["names"], serde_json::json!(["a", "b", "c"]));
    let rows: [[f64; 3]; 3] = serde_json::from_value(value["similarities"].clone()).unwrap();
    assert_eq!(rows.map(|row| row.map(|cosine| format!("{cosine:.3}"))), expected());
}

#[test]
fn draws_a_heatmap_beside_the_matrix() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("matrix.svg");
    let arguments = [&TEXTS[..], &["--heatmap", path.to_str().unwrap()]].concat();
    assert_eq!(printed(&run(&arguments, "")), printed(&run(&TEXTS, "")));
    // Nine cells with a number each, three names with a number each, three numbers of columns, and the background.
    let svg = fs::read_to_string(path).unwrap();
    assert_eq!(svg.matches("<path").count(), 9 + 9 + 3 + 3 + 3 + 1);
}

#[test]
fn the_prompt_changes_the_similarities() {
    let plain = printed(&run(&TEXTS, ""));
    for prompt in [&["--query"][..], &["--instruct", "Find texts about food"]] {
        assert_ne!(printed(&run(&[&TEXTS[..], prompt].concat(), "")), plain);
    }
}

#[test]
fn errors_say_what_is_wrong() {
    assert!(error(&run(&[], "\n\n")).contains("expected texts to compare, got none"));
    let names = error(&run(&["a", "b", "--names", "x"], ""));
    assert!(names.contains("expected 2 names, one for each text, got 1"), "{names}");
    let long = error(&run(&["--max-tokens", "2"], "a\nIt is raining today\n"));
    assert!(long.contains("error: line 2 of standard input: text 1 has "), "{long}");
}
