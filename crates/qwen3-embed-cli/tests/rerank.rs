//! The program `qwen3-embed rerank`: standard input, standard output, exit status.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use qwen3_embed_testing::fixtures;
use qwen3_embed_testing::golden::{self, Case, Scores};
use serde_json::{Value, json};

fn run(arguments: &[&str], input: impl AsRef<[u8]>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"));
    command.args(["rerank", "--model"]).arg(fixtures::reranker("untied")).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Writing fails if the child has rejected its arguments and ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_ref());
    child.wait_with_output().unwrap()
}

/// The index and the score of each line of standard output.
fn lines(output: &Output) -> Vec<(usize, f64)> {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.is_empty(), "{errors}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let values = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let values = values.map(|line| {
        assert_eq!(line.as_object().unwrap().len(), 2, "{line}");
        (line["index"].as_u64().unwrap() as usize, line["score"].as_f64().unwrap())
    });
    values.collect()
}

/// The golden cases of one query and instruction, and their documents as the input of the program.
fn golden(query: &str, instruction: Option<&str>) -> (Vec<Case>, String) {
    let path = fixtures::reranker("untied").join("golden.json");
    let mut cases = golden::read::<Scores>(&path).unwrap().cases;
    cases.retain(|case| {
        let same = case.query == query && case.instruction.as_deref() == instruction;
        same && case.max_tokens == 8192
    });
    let documents = cases.iter().map(|case| {
        let line = json!({"text": case.document, "id": "ignored"});
        format!("{line}\n\n")
    });
    let documents = documents.collect();
    (cases, documents)
}

#[test]
fn ranks_best_document_first_with_the_scores_of_transformers() {
    let (cases, input) = golden("What is the capital of China?", None);
    assert!(cases.len() >= 4);
    let score: fn(&Case) -> f64 = |case| case.score;
    let logit: fn(&Case) -> f64 = |case| case.logit;
    for (arguments, number) in [(&[][..], score), (&["--raw"][..], logit)] {
        let query = ["--query", "What is the capital of China?"];
        let settings = ["--precision", "f32", "--format", "jsonl"];
        let lines = lines(&run(&[&query[..], &settings, arguments].concat(), &input));
        assert_eq!(lines.len(), cases.len());
        assert!(lines.windows(2).all(|pair| pair[0].1 >= pair[1].1));
        for (index, score) in lines {
            let expected = number(&cases[index]);
            assert!((score - expected).abs() <= 2e-5, "{index}: {score} for {expected}");
        }
    }
}

#[test]
fn options_change_the_ranking() {
    let query = ["--query", "法国首都是哪里？"];
    let card = "Given a web search query, retrieve relevant passages that answer the query.";
    let (cases, input) = golden(query[1], Some(card));
    assert_eq!(cases.len(), 3);
    let exact = ["--precision", "f32"];
    let with = |arguments: &[&str]| lines(&run(&[&query, &exact, arguments].concat(), &input));
    let all = with(&["--instruct", card]);
    for &(index, score) in &all {
        assert!((score - cases[index].score).abs() <= 1e-5);
    }
    assert_ne!(with(&[]), all);
    assert_eq!(with(&["--instruct", card, "--top-n", "2"]), all[..2]);
    assert_eq!(with(&["--instruct", card, "--top-n", "0"]), []);
    assert_eq!(with(&["--instruct", card, "--threads", "1", "--batch-tokens", "1"]), all);
    assert_ne!(with(&["--instruct", card, "--max-tokens", "165"]), all);
    let by_default = lines(&run(&[&query[..], &["--instruct", card]].concat(), &input));
    let bf16 = ["--precision", "bf16", "--instruct", card];
    assert_eq!(by_default, lines(&run(&[&query[..], &bf16].concat(), &input)));
    assert_eq!(lines(&run(&query, "\n\n")), []);
}

#[test]
fn invalid_unicode_fails_unless_it_is_replaced() {
    let query = ["--query", "a"];
    let replaced = lines(&run(&query, "{\"text\": \"b \u{fffd}\"}\n"));
    for bad in [&b"{\"text\": \"b \\ud83d\"}\n"[..], b"{\"text\": \"b \xff\"}\n"] {
        let output = run(&query, bad);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(errors.starts_with("error: line 1 of standard input: "), "{errors}");
        assert_eq!(lines(&run(&["--query", "a", "--replace-invalid"], bad)), replaced);
    }
}

#[test]
fn invalid_input_fails_and_names_the_line() {
    // The prompt adds a space before the document.
    let white_space = json!({"text": " ".repeat(500_001)}).to_string();
    let after_others = format!("{{\"text\": \"a\"}}\n\n\n{white_space}\n");
    let cases: [(&[&str], &str, &str); 8] = [
        (&[], "[\"x\"]\n", "line 1 of standard input: expected an object"),
        (&[], "{\"text\": \"a\n", "input: EOF while parsing a string at column 11\n"),
        (&[], "{\"text\": \"fine\"}\nnonsense\n", "line 2 of standard input: expected an object"),
        (&[], "\n\n{}\n", "line 3 of standard input: missing field `text`"),
        (&[], "{\"text\": 7}\n", "line 1 of standard input: invalid type"),
        (&[], &after_others, "line 4 of standard input: text 1 has 500002 white-space characters"),
        (&["--max-tokens", "0"], "", "`max_tokens` is 0, expected 1 to 8192"),
        (&["--max-tokens", "9"], "{\"text\": \"a\"}\n", "tokens without query and document"),
    ];
    for (arguments, input, message) in cases {
        let output = run(&[&["--query", "a"], arguments].concat(), input);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        assert!(errors.starts_with("error: ") && errors.contains(message), "{errors}");
        assert!(output.stdout.is_empty());
    }
    assert_eq!(run(&[], "").status.code(), Some(2), "a query is needed");
}
