//! The program `qwen3-embed embed`: standard input, standard output, exit status.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

#[cfg(feature = "demo-model")]
use qwen3_embed::{Embedder, Source};
use qwen3_embed_testing::fixtures;
use qwen3_embed_testing::golden::{self, Vectors};
use qwen3_embed_testing::vectors::max_difference;
use serde_json::{Value, json};

fn command(arguments: &[&str]) -> Command {
    let mut command = without_model(arguments);
    if !arguments.contains(&"--model") {
        command.arg("--model").arg(fixtures::model("base"));
    }
    command
}

fn without_model(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"));
    command.arg("embed").args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str], input: impl AsRef<[u8]>) -> Output {
    finish(command(arguments), input)
}

fn finish(mut command: Command, input: impl AsRef<[u8]>) -> Output {
    let mut child = command.spawn().unwrap();
    // Writing fails if the child has rejected its arguments and ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_ref());
    child.wait_with_output().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.is_empty(), "{errors}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[cfg(feature = "demo-model")]
#[test]
fn embeds_with_the_bundled_model_and_says_so() {
    let input = "{\"text\": \"What is the capital of China?\"}\n";
    let output = finish(without_model(&["--dimensions", "32", "--query"]), input);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    let vector: Vec<f32> = serde_json::from_value(line["embedding"].clone()).unwrap();
    let embedder = Embedder::builder(Source::demo()).dimensions(32).build().unwrap();
    assert_eq!(vector, embedder.embed_query("What is the capital of China?").unwrap());
    assert!(said.starts_with("qwen3-embed-demo is a small model for demonstrations"), "{said}");
    assert!(said.contains("`--model Qwen/Qwen3-Embedding-0.6B`"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");

    // An adapter belongs to a model, which has to be named.
    let output = finish(without_model(&["--adapter", "a/b"]), input);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("--model <PATH or ID>"), "{said}");
}

#[cfg(not(feature = "demo-model"))]
#[test]
fn a_model_must_be_named_if_none_is_bundled() {
    let output = finish(without_model(&[]), "{\"text\": \"a\"}\n");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty(), "{errors}");
    assert!(errors.contains("name a model, for example with `--model Qwen/"), "{errors}");
}

#[test]
fn writes_warnings_to_standard_error() {
    let model = fixtures::model("causal-lm-tied");
    let output = run(&["--model", model.to_str().unwrap()], "{\"text\": \"a\"}\n");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !output.stdout.is_empty(), "{errors}");
    let expected = "models/causal-lm-tied may not be an embedding model: it is a causal language model without";
    assert!(errors.contains("WARN") && errors.contains(expected), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

#[test]
fn embeds_texts_and_tokens_in_order_like_transformers() {
    let path = fixtures::model("base").join("golden.json");
    let golden: Vectors = golden::read(&path).unwrap();
    let (texts, tokens, truth) = (golden.texts, golden.tokens.unwrap(), golden.unit_f64.unwrap());
    let input: String = (texts.iter().zip(&tokens))
        .map(|(text, tokens)| match text {
            None => json!({"tokens": tokens}).to_string() + "\n",
            Some(text) => json!({"text": text, "id": "ignored"}).to_string() + "\n\n",
        })
        .collect();
    let output = run(&["--precision", "f32", "--format", "jsonl"], &input);
    let lines = lines(&output);
    assert_eq!(lines.len(), texts.len());
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line["index"], i);
        assert_eq!(line["n_tokens"], tokens[i].len());
        let row: Vec<f64> = serde_json::from_value(line["embedding"].clone()).unwrap();
        assert!(max_difference(&row, &truth[i]) <= 1e-5, "line {i}");
    }
}

#[test]
fn options_change_the_embeddings() {
    let input = "{\"text\": \"What is the capital of China?<|im_end|>\"}\n";
    let one = |arguments: &[&str]| lines(&run(arguments, input)).remove(0);
    let bare = one(&[]);
    let query = one(&["--query"]);
    let default = one(&[
        "--instruct",
        "Given a web search query, retrieve relevant passages that answer the query",
    ]);
    assert_eq!(query, default);
    assert_ne!(query["embedding"], bare["embedding"]);
    assert_ne!(one(&["--instruct", "Find"])["embedding"], query["embedding"]);
    assert!(one(&["--plain-text"])["n_tokens"].as_u64() > bare["n_tokens"].as_u64());
    assert_eq!(one(&["--dimensions", "7"])["embedding"].as_array().unwrap().len(), 7);
    assert_eq!(one(&["--threads", "1", "--batch-tokens", "1"]), bare);
    let cut = ["--max-tokens", "5", "--overflow"];
    for side in ["truncate-left", "truncate-right"] {
        assert_eq!(one(&[&cut[..], &[side]].concat())["n_tokens"], 5);
    }
    assert_eq!(one(&["--precision", "bf16"])["n_tokens"], bare["n_tokens"]);
}

/// Unlike the server, the command accepts an empty string and embeds its end-of-text token.
#[test]
fn lines_are_objects_strings_or_plain_texts() {
    let json = "{\"text\": \"你好\"}\n\n\"say \\\"hi\\\"\"\n";
    let plain = "\u{feff}你好\r\n \r\nsay \"hi\"";
    let expected = lines(&run(&[], json));
    assert_eq!(expected.len(), 2);
    assert_eq!(lines(&run(&["--format", "text"], plain)), expected);
    // Spaces belong to a plain text, and braces do not make it an object.
    let text = "{\"text\": \"  {}\"}\n";
    assert_eq!(lines(&run(&["--format", "text"], "  {}\n")), lines(&run(&[], text)));
    let arguments = ["--format", "text", "--replace-invalid"];
    let replaced = lines(&run(&arguments, b"a\xff\\ud83d\n"));
    assert_eq!(replaced, lines(&run(&[], "{\"text\": \"a\\ufffd\\\\ud83d\"}")));
}

#[test]
fn embeds_empty_text() {
    let lines = lines(&run(&[], "{\"text\": \"\"}\n{\"text\": \"a\"}\n{\"text\": \" \"}\n"));
    let n_tokens: Vec<u64> = lines.iter().map(|line| line["n_tokens"].as_u64().unwrap()).collect();
    assert_eq!(n_tokens, [1, 2, 2]);
}

#[test]
fn invalid_input_fails_and_names_the_line() {
    let cases: [(&[&str], &str, &str); 13] = [
        (&[], "{\"text\": \"fine\"}\nnonsense\n", "line 2 of standard input: expected an object"),
        (&[], "[\"x\", null]\n", "line 1 of standard input: expected an object"),
        (&[], "null\n", "line 1 of standard input: expected an object"),
        (&[], "\"x\" \"y\"\n", "line 1 of standard input: trailing characters at column 5"),
        (&["--format", "text", "--max-tokens", "1"], "\nx\n", "line 2 of standard input: text 0"),
        (
            &[],
            "\n{\"text\": \"a\n",
            "line 2 of standard input: EOF while parsing a string at column 11",
        ),
        (&[], "{}\n", "line 1 of standard input: expected `text` or `tokens`, got neither"),
        (&[], "{\"text\": \"a\", \"tokens\": [1]}", "got both"),
        (&[], "\n\n{\"tokens\": [-1]}\n", "line 3 of standard input: invalid value"),
        (
            &[],
            "{\"text\": \"a\"}\n\n\n{\"tokens\": []}\n",
            "error: line 4 of standard input: text 1 has no tokens",
        ),
        (&[], "{\"tokens\": [9999]}\n", "input: text 0: token id 9999 at position 0"),
        (&["--max-tokens", "2"], "{\"text\": \"a\"}\n{\"text\": \"a b c d\"}\n", "text 1 has"),
        (&["--dimensions", "0"], "", "`dimensions` is 0, expected 1 to 64"),
    ];
    for (arguments, input, message) in cases {
        let output = run(arguments, input);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{input}: {errors}");
        assert!(errors.starts_with("error: ") && errors.contains(message), "{input}: {errors}");
    }
    let output = run(&["--precision", "int3"], "");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn error_has_the_index_in_the_whole_input() {
    let input = "{\"tokens\": [1]}\n".repeat(3000) + "{\"tokens\": [9999]}\n";
    let output = run(&[], &input);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("line 3001 of standard input: text 3000: token id 9999"), "{errors}");
}

#[test]
fn writes_the_lines_before_an_invalid_line() {
    let bad = [
        "nonsense",
        "{\"tokens\": [9999]}",
        "{\"text\": \"a b c d e f g\"}",
        "{\"text\": \"b \\ud83d\"}",
    ];
    for bad in bad {
        let good = "{\"text\": \"a\"}\n\n";
        let input = [good, good, bad, "\n", good, "{\"tokens\": []}\n"].concat();
        let output = run(&["--max-tokens", "4"], &input);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.starts_with("error: line 5 of standard input: "), "{errors}");
        assert_eq!(output.stdout.iter().filter(|&&byte| byte == b'\n').count(), 2, "{bad}");
    }
}

#[test]
fn invalid_unicode_fails_unless_it_is_replaced() {
    let replaced = lines(&run(&[], "{\"text\": \"b \u{fffd}\"}\n")).remove(0);
    for (bad, message) in [
        (
            &b"{\"text\": \"b \\ud83d\"}\n"[..],
            "line 2 of standard input: unexpected end of hex escape at column 19",
        ),
        (
            b"{\"text\": \"b \xff\"}\n",
            "line 2 of standard input: stream did not contain valid UTF-8",
        ),
    ] {
        let input = [b"{\"text\": \"a\"}\n", bad, b"{\"text\": \"c\"}\n"].concat();
        let output = run(&[], &input);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(errors.contains(message), "{errors}");
        assert_eq!(output.stdout.iter().filter(|&&byte| byte == b'\n').count(), 1);
        let lines = lines(&run(&["--replace-invalid"], &input));
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1]["embedding"], replaced["embedding"]);
    }
}

#[test]
fn empty_input_gives_no_output() {
    assert!(lines(&run(&[], "")).is_empty());
    assert!(lines(&run(&[], "\n \n")).is_empty());
}

#[test]
fn writes_each_line_before_reading_the_next() {
    let mut child = command(&[]).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for i in 0..3 {
        input.write_all(b"{\"text\": \"hello\"}\n").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert!(line.starts_with(&format!("{{\"index\":{i},")), "{line}");
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn closed_standard_output_is_not_an_error() {
    let mut child = command(&[]).spawn().unwrap();
    drop(child.stdout.take());
    let _ = child.stdin.take().unwrap().write_all(b"{\"text\": \"hello\"}\n");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
}
