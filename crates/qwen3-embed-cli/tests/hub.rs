//! Models of the hub on the command line, and what the environment says of it.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "the library's tests use more of it")]
#[path = "../../qwen3-embed/tests/hub_server/mod.rs"]
mod hub_server;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use hub_server::{COMMIT, Reply, Server, repository};
use serde_json::Value;

const ID: &str = "owner/model";

fn server() -> Server {
    Server::start(&[(ID, repository("base", &[]))])
}

/// The command in an environment that says nothing but this.
fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"));
    command.args(arguments).env_clear().envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    command(arguments, environment).output().unwrap()
}

/// Standard output of a success, and standard error.
fn succeeded(output: &Output) -> [String; 2] {
    let [out, err] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8(text.clone()).unwrap());
    assert!(output.status.success(), "{err}");
    [out, err]
}

fn failed(output: &Output) -> String {
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn download_prints_the_folder_and_a_line_for_each_file() {
    let (server, home) = (server(), tempfile::tempdir().unwrap());
    let environment = [("HF_ENDPOINT", server.url()), ("HF_HOME", home.path().to_str().unwrap())];
    let [out, err] = succeeded(&run(&["download", ID], &environment));
    let snapshot = home.path().join("hub/models--owner--model/snapshots").join(COMMIT);
    assert_eq!(out, format!("{}\n", snapshot.display()));
    let mut lines: Vec<_> = err.lines().collect();
    lines.sort_unstable();
    let expected = [
        "downloaded config.json, 677 B",
        "downloaded model.safetensors, 456.85 KiB",
        "downloaded tokenizer.json, 24.17 KiB",
    ];
    assert_eq!(lines, expected);
    // What is there is silence.
    let [again, err] = succeeded(&run(&["download", ID], &environment));
    assert_eq!((again, err.as_str()), (out.clone(), ""));
    // Every command takes the id.
    let pinned = format!("{ID}@{COMMIT}");
    for id in [ID, &pinned, out.trim()] {
        let mut child = command(&["embed", "--model", id], &environment);
        let mut child = child.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"{\"text\": \"a\"}\n").unwrap();
        let [line, _] = succeeded(&child.wait_with_output().unwrap());
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["embedding"].as_array().unwrap().len(), 64);
    }
}

#[test]
fn the_server_takes_a_rerankers_revision_behind_its_id() {
    let reranker = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/rerankers/tied");
    let files = ["config.json", "tokenizer.json", "model.safetensors"];
    let files = files.map(|file| (file.to_owned(), fs::read(reranker.join(file)).unwrap()));
    let server = Server::start(&[(ID, files.into())]);
    let home = tempfile::tempdir().unwrap();
    let environment =
        [("HF_ENDPOINT", server.url()), ("HF_HUB_CACHE", home.path().to_str().unwrap())];
    let id = format!("{ID}@{COMMIT}");
    let arguments = ["serve", "--reranker-path", &id, "--port", "0"];
    let mut child = command(&arguments, &environment).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let is_ready = lines.map_while(Result::ok).any(|line| line.contains("ready"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(is_ready);
    let asked = server.requests();
    assert_eq!(asked[0].path, format!("/api/models/owner/model/revision/{COMMIT}"));
}

#[test]
fn the_environment_says_where_the_cache_is() {
    let server = server();
    let root = tempfile::tempdir().unwrap();
    let root = root.path().to_str().unwrap();
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[("HF_HUB_CACHE", "{}/a"), ("HF_HOME", "{}/b")], "a"),
        (&[("HUGGINGFACE_HUB_CACHE", "{}/c")], "c"),
        (&[("HF_HOME", "{}/d"), ("XDG_CACHE_HOME", "{}/e")], "d/hub"),
        (&[("XDG_CACHE_HOME", "{}/f")], "f/huggingface/hub"),
        (&[("HOME", "{}/g")], "g/.cache/huggingface/hub"),
        (&[("HOME", "{}/h"), ("HF_HOME", "~/i"), ("HF_HUB_CACHE", "")], "h/i/hub"),
    ];
    for (variables, cache) in cases {
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| (*name, value.replace("{}", root))).collect();
        let mut environment: Vec<_> =
            variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        environment.push(("HF_ENDPOINT", server.url()));
        let [out, _] = succeeded(&run(&["download", ID], &environment));
        let expected = PathBuf::from(root).join(cache).join("models--owner--model");
        assert!(out.starts_with(expected.to_str().unwrap()), "{out}");
    }
}

#[test]
fn the_environment_says_which_token_is_sent() {
    let server = server();
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("another");
    fs::write(home.path().join("token"), "hf_of_home\n").unwrap();
    fs::write(&file, "hf_of_path").unwrap();
    let cases: [(&[(&str, &str)], &str); 4] = [
        (&[], "hf_of_home"),
        (&[("HF_TOKEN_PATH", file.to_str().unwrap())], "hf_of_path"),
        (&[("HF_TOKEN", "hf_of_variable")], "hf_of_variable"),
        (&[("HUGGING_FACE_HUB_TOKEN", "hf_old")], "hf_old"),
    ];
    server.change(|_, reply| *reply = Reply::status(403));
    for (variables, token) in cases {
        let mut environment = variables.to_vec();
        // A slash at the end does no harm.
        let endpoint = format!("{}/", server.url());
        environment
            .extend([("HF_ENDPOINT", &*endpoint), ("HF_HOME", home.path().to_str().unwrap())]);
        let error = failed(&run(&["download", ID], &environment));
        assert!(error.contains("forbidden") && !error.contains(token), "{error}");
        let asked = server.requests();
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].header("authorization"), Some(format!("Bearer {token}").as_str()));
        assert_eq!(asked[0].path, "/api/models/owner/model/revision/main");
    }
}

#[test]
fn the_environment_can_forbid_the_network() {
    let (server, home) = (server(), tempfile::tempdir().unwrap());
    for variable in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        for (value, is_offline) in [("1", true), ("true", true), ("ON", true), ("0", false)] {
            let cache = home.path().join(variable).join(value);
            let environment = [
                ("HF_ENDPOINT", server.url()),
                ("HF_HUB_CACHE", cache.to_str().unwrap()),
                (variable, value),
            ];
            let output = run(&["download", ID], &environment);
            assert_eq!(output.status.success(), !is_offline, "{variable}={value}");
            if is_offline {
                let error = failed(&output);
                assert!(error.starts_with("error: owner/model: not in the cache at"), "{error}");
                assert_eq!(server.requests().len(), 0);
            }
            server.requests();
        }
    }
}

#[test]
fn the_environment_says_which_proxy_is_used() {
    let (server, home) = (server(), tempfile::tempdir().unwrap());
    let cache = home.path().to_str().unwrap();
    let mut environment = vec![("HF_HUB_CACHE", cache), ("HTTP_PROXY", server.url())];
    // Nobody knows this host: the proxy is to find it, and refuses to.
    environment.push(("HF_ENDPOINT", "http://hub.invalid"));
    let error = failed(&run(&["download", ID], &environment));
    assert!(error.contains("cannot reach the hub"), "{error}");
    let [request] = server.requests().try_into().unwrap();
    assert_eq!((request.method.as_str(), request.path.as_str()), ("CONNECT", "hub.invalid:80"));
    environment.extend([("HF_ENDPOINT", server.url()), ("NO_PROXY", "127.0.0.1")]);
    succeeded(&run(&["download", ID], &environment));
    assert!(server.requests().iter().all(|request| request.method != "CONNECT"));
}

#[test]
fn processes_that_come_at_the_same_time_download_once() {
    let (server, home) = (server(), tempfile::tempdir().unwrap());
    server.change(|_, reply| reply.silence = Duration::from_millis(50));
    let environment =
        [("HF_ENDPOINT", server.url()), ("HF_HUB_CACHE", home.path().to_str().unwrap())];
    let children: Vec<_> =
        (0..4).map(|_| command(&["download", ID], &environment).spawn().unwrap()).collect();
    let folders = children.into_iter().map(|child| child.wait_with_output().unwrap());
    let folders: Vec<_> = folders.map(|output| succeeded(&output)[0].clone()).collect();
    assert!(folders.iter().all(|folder| *folder == folders[0]));
    let weights = server.requests().into_iter().filter(|request| request.to_cdn);
    assert_eq!(weights.count(), 1);
    let fixture = repository("base", &[]);
    for (name, contents) in fixture {
        assert_eq!(fs::read(PathBuf::from(folders[0].trim()).join(name)).unwrap(), contents);
    }
}

#[test]
fn errors_name_the_model_and_what_to_do() {
    let (server, home) = (server(), tempfile::tempdir().unwrap());
    let environment =
        [("HF_ENDPOINT", server.url()), ("HF_HUB_CACHE", home.path().to_str().unwrap())];
    let error = failed(&run(&["info", "models/mine"], &environment));
    assert!(error.starts_with("error: models/mine (from http://127.0.0.1:"), "{error}");
    assert!(error.contains("neither is there such a folder") && error.contains("HF_TOKEN"));
    let error = failed(&run(&["embed", "--model", "./models/mine"], &environment));
    assert!(error.starts_with("error: there is no model at `./models/mine`"), "{error}");
}

#[test]
fn info_shows_what_a_model_is() {
    let prompts = r#"{"prompts": {"query": "Query:\n", "document": ""}}"#;
    let files = repository("base", &[("config_sentence_transformers.json", prompts)]);
    let server = Server::start(&[(ID, files)]);
    let home = tempfile::tempdir().unwrap();
    let environment =
        [("HF_ENDPOINT", server.url()), ("HF_HUB_CACHE", home.path().to_str().unwrap())];
    let [json, _] = succeeded(&run(&["info", ID, "--json"], &environment));
    let json: Value = serde_json::from_str(&json).unwrap();
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/models/base");
    let config: Value =
        serde_json::from_slice(&fs::read(format!("{fixture}/config.json")).unwrap()).unwrap();
    for (ours, theirs) in [
        ("layers", "num_hidden_layers"),
        ("hidden_size", "hidden_size"),
        ("intermediate_size", "intermediate_size"),
        ("query_heads", "num_attention_heads"),
        ("key_value_heads", "num_key_value_heads"),
        ("head_dim", "head_dim"),
        ("vocabulary", "vocab_size"),
        ("context", "max_position_embeddings"),
    ] {
        assert_eq!(json[ours], config[theirs], "{ours}");
    }
    assert_eq!(json["architecture"], "qwen3");
    assert_eq!(json["dimensions"], serde_json::json!([1, 64]));
    assert_eq!(json["prompts"]["query"], "Query:\n");
    let weights = fs::metadata(format!("{fixture}/model.safetensors")).unwrap().len();
    assert_eq!(json["file_bytes"], weights);
    let memory = &json["memory"];
    let auto = json["auto"].as_str().unwrap();
    assert!(["bf16", "int8"].contains(&auto), "{auto}");
    assert!(memory["f32"]["weights"].as_u64() > memory["bf16"]["weights"].as_u64());
    assert!(memory["bf16"]["weights"].as_u64() > memory["int8"]["weights"].as_u64());
    let [text, _] = succeeded(&run(&["info", fixture], &environment));
    assert!(text.starts_with("architecture  qwen3\n"), "{text}");
    assert_eq!(json["default"], "bf16");
    let last = format!("\nthe default is bf16; auto is {auto} on this CPU\n");
    assert!(text.ends_with(&last), "{text}");
    assert!(text.contains("\ndimensions    1 to 64\n") && text.contains("\nint8"), "{text}");
}
