//! Runs the examples with the bundled model, and checks the figures that they print.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{env, fs};

/// The program of an example, which `cargo test` has built.
fn program(name: &str) -> PathBuf {
    let test = env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).unwrap().join("examples");
    folder.join(name).with_extension(env::consts::EXE_EXTENSION)
}

/// Runs an example in `folder`.
fn execute(folder: &Path, name: &str, args: &[&str]) -> Output {
    Command::new(program(name)).args(args).current_dir(folder).output().unwrap()
}

/// Runs an example in `folder`, and returns what it prints.
fn run_in(folder: &Path, name: &str, args: &[&str]) -> String {
    let output = execute(folder, name, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn run(name: &str, args: &[&str]) -> String {
    run_in(&env::temp_dir(), name, args)
}

/// The share in a line such as `the right document is the first: 37 of 40`.
fn share(output: &str, label: &str) -> f64 {
    let (_, rest) = output.split_once(label).unwrap_or_else(|| panic!("{label}: {output}"));
    let mut words = rest.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty());
    let [part, whole] = [(); 2].map(|()| words.next().unwrap().parse::<f64>().unwrap());
    part / whole
}

/// The output in the header of an example: the block with the language `console`.
fn documented(name: &str) -> String {
    let path = format!("{}/examples/{name}.rs", env!("CARGO_MANIFEST_DIR"));
    let source = fs::read_to_string(path).unwrap();
    let header = source.lines().map_while(|line| line.strip_prefix("//!"));
    let header: Vec<&str> = header.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    let block = header.iter().skip_while(|&&line| line != "```console").skip(1);
    let lines: Vec<&str> = block.take_while(|&&line| line != "```").copied().collect();
    assert!(!lines.is_empty(), "{name} has no output in its header");
    lines.join("\n")
}

/// Checks that the header of an example shows its output. Numbers are not compared, because their last digits depend
/// on the instructions of the CPU. `...` in the header stands for lines that are left out.
fn check_header(name: &str, output: &str) {
    let masked = |text: &str| {
        let digits = |c: char| if c.is_ascii_digit() { '0' } else { c };
        text.trim_end().chars().map(digits).collect::<String>()
    };
    let mut lines = output.lines().map(masked);
    for line in documented(name).lines().filter(|&line| line != "...") {
        let expected = masked(line);
        assert!(lines.any(|line| line == expected), "{name} does not print {line:?}:\n{output}");
    }
}

#[test]
fn search_finds_documents_across_languages() {
    let output = run("multilingual_search", &[]);
    assert!(share(&output, "is the first: ") >= 0.85, "{output}");
    check_header("multilingual_search", &output);
}

#[test]
fn search_in_a_database_gives_the_same_documents() {
    let folder = tempfile::tempdir().unwrap();
    let expected = run("multilingual_search", &[]);
    // The second run reads the vectors that the first one has written.
    for _ in 0..2 {
        let output = run_in(folder.path(), "multilingual_search", &["--index", "documents.db"]);
        assert_eq!(output, expected);
    }
    let args = ["--index", "documents.db", "--dimensions", "64"];
    let output = execute(folder.path(), "multilingual_search", &args);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("another number of dimensions"));
}

#[test]
#[ignore = "needs PostgreSQL: cargo xtask postgres cargo test --workspace --test outputs -- --ignored"]
fn search_in_postgresql_with_full_vectors_and_with_bits() {
    let output = run("pgvector_search", &[]);
    assert!(share(&output, "full vectors: the right document is the first: ") >= 0.85, "{output}");
    assert!(share(&output, "bits and 12 full vectors: ") >= 0.85, "{output}");
    check_header("pgvector_search", &output);
    // The second run uses the vectors that the first one has written.
    let again = execute(&env::temp_dir(), "pgvector_search", &[]);
    assert_eq!(String::from_utf8(again.stdout).unwrap(), output);
    assert_eq!(String::from_utf8(again.stderr).unwrap(), "0 documents are new\n");
    let other = execute(&env::temp_dir(), "pgvector_search", &["--dimensions", "64"]);
    let error = String::from_utf8(other.stderr).unwrap();
    assert!(!other.status.success() && error.contains("256 dimensions, expected 64"), "{error}");
}

#[test]
fn recommends_products_across_languages() {
    let output = run("recommend", &[]);
    assert!(share(&output, "product is the first: ") >= 0.45, "{output}");
    assert!(share(&output, "version is the first: ") >= 0.85, "{output}");
    check_header("recommend", &output);
}

#[test]
fn deduplicates_news_across_languages() {
    let output = run("deduplicate", &[]);
    let (_, rest) = output.split_once("on the other").unwrap();
    let figures = rest.lines().nth(1).unwrap().split_whitespace();
    let figures: Vec<f64> = figures.map(|figure| figure.parse().unwrap()).collect();
    let [precision, recall, f1] = figures[..] else { panic!("{output}") };
    assert!(precision >= 0.7 && recall >= 0.7 && f1 >= 0.72, "{output}");
    check_header("deduplicate", &output);
}

#[test]
fn clusters_feedback_by_topic() {
    let folder = tempfile::tempdir().unwrap();
    let output = run_in(folder.path(), "cluster", &["--plot", "plot.svg"]);
    let (_, rest) = output.split_once("known topics: ").unwrap();
    let agreement: f64 = rest.split(' ').next().unwrap().parse().unwrap();
    assert!(agreement >= 0.65, "{output}");
    check_header("cluster", &output);
    check_svg(&folder.path().join("plot.svg"), 72);
}

#[test]
fn draws_a_heatmap_as_svg_and_png() {
    let folder = tempfile::tempdir().unwrap();
    run_in(folder.path(), "similarity_heatmap", &[]);
    // 16 cells, and the glyphs of their numbers and of the names.
    check_svg(&folder.path().join("similarity.svg"), 16);
    let png = fs::read(folder.path().join("similarity.png")).unwrap();
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
}

/// Checks that a picture contains at least `n` shapes, and its text as paths.
fn check_svg(path: &Path, n: usize) {
    let svg = fs::read_to_string(path).unwrap();
    assert!(!svg.contains("<text"), "text depends on the fonts of the viewer");
    assert!(svg.matches("<path").count() > n, "{}", svg.len());
}

#[test]
fn finds_the_passage_of_a_long_document() {
    let output = run("long_document", &[]);
    assert!(share(&output, "answer is the first: ") >= 0.65, "{output}");
    check_header("long_document", &output);
}

#[test]
fn embeds_a_document_of_32_000_tokens_whole_and_in_chunks() {
    let folder = tempfile::tempdir().unwrap();
    let handbook = include_str!("../../data/handbook.txt");
    let passage = "The minimum wage will rise 4 percent next year. Unions say that the rise is too small. \
        Employers say that it is too large. The new minimum wage applies from January. Wages of young workers \
        rise by the same share, and the minimum wage of apprentices rises as well.";
    let pages = format!("{handbook}\n").repeat(13);
    let document = format!("{pages}\n\n{passage}\n\n{pages}");
    fs::write(folder.path().join("report.txt"), &document).unwrap();
    let query = ["--query", "最低賃金は来年いくら上がりますか"];
    let args = [&["--document", "report.txt"], &query[..]].concat();
    let output = run_in(folder.path(), "long_document", &args);
    let number = |label: &str| -> usize {
        let (_, rest) = output.split_once(label).unwrap_or_else(|| panic!("{label}: {output}"));
        let digits = rest.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty());
        digits.unwrap().parse().unwrap()
    };
    assert!((31_000..32_768).contains(&number("the document: ")), "{output}");
    assert!(output.contains("the whole document"), "{output}");
    let (start, end) = (number("bytes "), number(".."));
    assert!(document[start..end].contains("minimum wage"), "{output}");
}

#[test]
fn serves_similarities() {
    let mut server = Command::new(program("embed_in_axum"))
        .args(["--address", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on http://").unwrap().to_owned();
    let body = r#"{"a": "今天天气真好", "b": "The weather is great today"}"#;
    let answer = request(
        &address,
        &format!(
            "POST /similarity HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {}",
            body.len(),
        ),
        body,
    );
    let (_, cosine) = answer.split_once("\"cosine\":").unwrap_or_else(|| panic!("{answer}"));
    let cosine: f32 = cosine.trim_end_matches('}').parse().unwrap();
    assert!((0.6..=1.0).contains(&cosine), "{cosine}");
    let metrics = request(&address, "GET /metrics HTTP/1.1", "");
    assert!(metrics.contains("similarity_seconds_count 1"), "{metrics}");
    server.kill().unwrap();
    server.wait().unwrap();
}

/// Sends an HTTP request, and returns the whole response.
fn request(address: &str, head: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{head}\r\nhost: localhost\r\nconnection: close\r\n\r\n{body}").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}
