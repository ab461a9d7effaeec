//! Tests of the command with models on the hub, and with the environment variables for the hub.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "the library's tests use more of it")]
#[path = "../../qwen3-embed-hub/tests/hub_server/mod.rs"]
mod hub_server;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hub_server::{COMMIT, Reply, Server, repository};
use qwen3_embed_testing::fixtures;
use serde_json::Value;

const ID: &str = "owner/model";

fn server() -> Server {
    Server::start(&[(ID, repository("base", &[]))])
}

/// The command with only these environment variables.
fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"));
    command.args(arguments).env_clear().envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    command(arguments, environment).output().unwrap()
}

/// Standard output and standard error of a process that succeeded.
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
    // Nothing is printed for files that are in the cache.
    let [again, err] = succeeded(&run(&["download", ID], &environment));
    assert_eq!((again, err.as_str()), (out.clone(), ""));
    // `embed` accepts the id, the id with a commit, and the printed folder.
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
fn serve_accepts_the_revision_of_a_reranker_after_its_id() {
    let reranker = fixtures::reranker("tied");
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
fn environment_variables_set_the_cache_folder() {
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
fn environment_variables_set_the_token() {
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
        // A slash at the end of the endpoint is ignored.
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
fn environment_variables_turn_on_offline_mode() {
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
fn cached_model_is_used_with_a_warning_if_the_hub_fails() {
    let (server, home) = (server(), tempfile::tempdir().unwrap());
    let environment =
        [("HF_ENDPOINT", server.url()), ("HF_HUB_CACHE", home.path().to_str().unwrap())];
    let embed = || succeeded(&embed(command(&["embed", "--model", ID], &environment)));
    let [expected, _] = embed();
    assert_eq!(embed(), [expected.clone(), String::new()]);
    for status in [401, 403, 404, 200] {
        server.change(move |_, reply| {
            *reply = Reply { body: b"<html>".to_vec(), ..Reply::status(status) };
        });
        let [vectors, err] = embed();
        assert_eq!(vectors, expected, "{status}");
        assert!(err.contains("WARN") && err.contains(&format!("status {status}")), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

/// Another program has downloaded the model, and the user has no write permission in the cache.
#[cfg(unix)]
#[test]
fn reads_a_read_only_cache() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;

    let (server, home) = (server(), tempfile::tempdir().unwrap());
    let cache = home.path().join("hub");
    let of_cache = ("HF_HUB_CACHE", cache.to_str().unwrap());
    let environment = [("HF_ENDPOINT", server.url()), of_cache];
    let [folder, _] = succeeded(&run(&["download", ID], &environment));
    // Other programs do not record missing files in `.no_exist`.
    fs::remove_dir_all(cache.join("models--owner--model/.no_exist")).unwrap();
    fs::remove_dir_all(cache.join(".locks")).unwrap();
    // The program is copied to a folder that another user can read. Root can write to every folder, so the command runs
    // as the user `nobody` if the test runs as root.
    let program = home.path().join("qwen3-embed");
    fs::copy(env!("CARGO_BIN_EXE_qwen3-embed"), &program).unwrap();
    let is_root = fs::metadata(home.path()).unwrap().uid() == 0;
    let set_modes = |modes: [u32; 2]| {
        for path in below(home.path()) {
            let mode = modes[usize::from(path.is_dir() || path == program)];
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    set_modes([0o444, 0o555]);
    let before = below(home.path());
    let pinned = format!("{ID}@{COMMIT}");
    let down = [("HF_ENDPOINT", "http://127.0.0.1:9"), of_cache];
    let offline = [environment[0], of_cache, ("HF_HUB_OFFLINE", "1")];
    for (environment, n_warnings) in [(&environment[..], 0), (&down, 1), (&offline, 0)] {
        for arguments in [
            &["embed", "--model", ID][..],
            &["embed", "--model", &pinned],
            &["download", ID],
            &["info", ID],
        ] {
            let mut command = Command::new(&program);
            command.args(arguments).env_clear().envs(environment.iter().copied());
            command.current_dir("/").stdin(Stdio::piped());
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            if is_root {
                command.uid(65534).gid(65534);
            }
            let [out, err] = succeeded(&embed(command));
            assert!(arguments[0] != "download" || out == folder, "{out}");
            assert_eq!(err.lines().count(), n_warnings, "{environment:?}, {arguments:?}: {err}");
        }
    }
    assert_eq!(below(home.path()), before);
    // The hub has a newer commit, which cannot be written to the cache.
    server.change(|request, reply| {
        if request.path.starts_with("/api/") {
            let body = String::from_utf8_lossy(&reply.body).replace(COMMIT, &"f".repeat(40));
            reply.body = body.into();
        } else {
            *reply = Reply { body: b"{}".to_vec(), ..Reply::status(200) }.with("ETag", "new");
        }
    });
    if is_root {
        let mut command = Command::new(&program);
        command.args(["download", ID]).env_clear().envs(environment.iter().copied());
        let output = command.current_dir("/").uid(65534).gid(65534).output().unwrap();
        let [out, err] = succeeded(&output);
        assert_eq!(out, folder);
        assert!(err.contains("cannot use ") && err.contains("Permission denied"), "{err}");
    }
    assert_eq!(below(home.path()), before);
    set_modes([0o644, 0o755]);
}

/// A folder and everything in it, recursively.
#[cfg(unix)]
fn below(path: &Path) -> Vec<PathBuf> {
    let is_dir = path.is_dir() && !path.is_symlink();
    let mut entries: Vec<_> = match is_dir {
        true => path.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect(),
        false => Vec::new(),
    };
    entries.sort();
    let below = entries.iter().flat_map(|entry| below(entry));
    [path.to_path_buf()].into_iter().chain(below).collect()
}

/// Runs a command with one text on its standard input, which `embed` reads.
fn embed(mut command: Command) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    // Writing fails if the process does not read and has ended.
    let _ = child.stdin.take().unwrap().write_all(b"{\"text\": \"a\"}\n");
    child.wait_with_output().unwrap()
}

/// The environment variables that desktop proxy programs set.
#[test]
fn proxy_of_the_scheme_comes_before_all_proxy() {
    let (server, home) = (server(), tempfile::tempdir().unwrap());
    let environment = [
        ("HF_HUB_CACHE", home.path().to_str().unwrap()),
        ("HF_ENDPOINT", "http://hub.invalid"),
        ("no_proxy", "localhost,127.0.0.1"),
        ("http_proxy", server.url()),
        ("https_proxy", server.url()),
        ("all_proxy", "socks5://127.0.0.1:9"),
    ];
    let error = failed(&run(&["download", ID], &environment));
    assert!(error.contains(&format!("`http_proxy={}`", server.url())), "{error}");
    let [request] = server.requests().try_into().unwrap();
    assert_eq!((request.method.as_str(), request.path.as_str()), ("CONNECT", "hub.invalid:80"));
    // Hosts in `no_proxy` are reached directly, even if the proxy is invalid.
    let direct = environment.map(|(name, value)| match name {
        "HF_ENDPOINT" => (name, server.url()),
        "http_proxy" => (name, "nonsense://127.0.0.1"),
        _ => (name, value),
    });
    succeeded(&run(&["download", ID], &direct));
}

#[test]
fn socks_proxy_is_used_or_named_by_the_error() {
    let (server, home) = (server(), tempfile::tempdir().unwrap());
    let (socks, hosts) = socks_proxy(server.url().strip_prefix("http://").unwrap());
    let run = |all_proxy: &str, folder: &str| {
        let cache = home.path().join(folder);
        let environment = [
            ("HF_HUB_CACHE", cache.to_str().unwrap()),
            ("HF_ENDPOINT", "http://hub.invalid"),
            // The server of large files, which is reached without the proxy.
            ("no_proxy", "127.0.0.1"),
            ("all_proxy", all_proxy),
        ];
        run(&["download", ID], &environment)
    };
    succeeded(&run(&format!("socks5h://{socks}"), "a"));
    let hosts = hosts.lock().unwrap().clone();
    assert!(!hosts.is_empty() && hosts.iter().all(|host| host == "hub.invalid"), "{hosts:?}");
    for (all_proxy, expected) in [
        ("socks5h://user:secret@127.0.0.1:9", "the proxy of `all_proxy=socks5h://127.0.0.1:9`"),
        (
            "socks9://127.0.0.1:1080",
            "`all_proxy` is `socks9://127.0.0.1:1080`, which is not a proxy URL",
        ),
    ] {
        let error = failed(&run(all_proxy, "b"));
        assert!(error.contains(expected) && !error.contains("secret"), "{error}");
    }
}

/// A SOCKS5 proxy that connects every request to `address`, and the list of the requested hosts.
fn socks_proxy(address: &str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (own, hosts, address) =
        (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default(), address.to_owned());
    let asked = hosts.clone();
    thread::spawn(move || {
        for mut client in listener.incoming().map(Result::unwrap) {
            let bytes = |mut client: &TcpStream, n: usize| {
                let mut bytes = vec![0; n];
                client.read_exact(&mut bytes).unwrap();
                bytes
            };
            let n_methods = bytes(&client, 2)[1];
            bytes(&client, n_methods.into());
            client.write_all(&[5, 0]).unwrap();
            // The version, the command CONNECT, a zero, the address type, and the length of the host name.
            let head = bytes(&client, 5);
            assert_eq!(head[..4], [5, 1, 0, 3]);
            let host = bytes(&client, usize::from(head[4]) + 2);
            let host = &host[..host.len() - 2];
            asked.lock().unwrap().push(String::from_utf8(host.to_vec()).unwrap());
            client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
            let mut server = TcpStream::connect(&address).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from, &mut to));
            thread::spawn(move || {
                let _ = std::io::copy(&mut server, &mut client);
                client.shutdown(Shutdown::Both)
            });
        }
    });
    (own, hosts)
}

#[test]
fn environment_variables_set_the_proxy() {
    let (server, home) = (server(), tempfile::tempdir().unwrap());
    let cache = home.path().to_str().unwrap();
    let mut environment = vec![("HF_HUB_CACHE", cache), ("HTTP_PROXY", server.url())];
    // This host does not exist: the proxy has to resolve it, and fails.
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
fn concurrent_processes_download_once() {
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
    assert!(error.contains("there is no such folder") && error.contains("HF_TOKEN"));
    let error = failed(&run(&["embed", "--model", "./models/mine"], &environment));
    assert!(error.starts_with("error: there is no model at `./models/mine`"), "{error}");
}

#[test]
fn info_shows_shape_size_and_memory() {
    let prompts = r#"{"prompts": {"query": "Query:\n", "document": ""}}"#;
    let files = repository("base", &[("config_sentence_transformers.json", prompts)]);
    let server = Server::start(&[(ID, files)]);
    let home = tempfile::tempdir().unwrap();
    let environment =
        [("HF_ENDPOINT", server.url()), ("HF_HUB_CACHE", home.path().to_str().unwrap())];
    let [json, _] = succeeded(&run(&["info", ID, "--json"], &environment));
    let json: Value = serde_json::from_str(&json).unwrap();
    let fixture = fixtures::model("base");
    let config = fixtures::read_json(&fixture.join("config.json"));
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
    let weights = fs::metadata(fixture.join("model.safetensors")).unwrap().len();
    assert_eq!(json["file_bytes"], weights);
    let memory = &json["memory"];
    assert!(memory["f32"]["weights"].as_u64() > memory["bf16"]["weights"].as_u64());
    assert!(memory["bf16"]["weights"].as_u64() > memory["int8"]["weights"].as_u64());
    let [text, _] = succeeded(&run(&["info", fixture.to_str().unwrap()], &environment));
    assert!(text.starts_with("architecture  qwen3\n"), "{text}");
    assert_eq!(json["default"], "bf16");
    assert!(text.ends_with("\nthe default precision is bf16\n"), "{text}");
    assert!(text.contains("\ndimensions    1 to 64\n") && text.contains("\nint8"), "{text}");
    let longest = "\nlongest text  8192 tokens by default\n";
    assert!(text.contains(longest) && text.contains("with longest text\n"), "{text}");
    assert_eq!(json["max_tokens"], 8192);
    for precision in ["f32", "bf16", "int8"] {
        // The maximum length of a text is twice the batch budget.
        let memory = |field: &str| json["memory"][precision][field].as_u64().unwrap();
        let expected = memory("total") + memory("workspace");
        assert_eq!(memory("total_longest_text"), expected, "{precision}");
    }
}

#[cfg(feature = "demo-model")]
#[test]
fn only_some_commands_have_a_default_model() {
    let [json, said] = succeeded(&run(&["info", "--json"], &[]));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["hidden_size"], 256);
    assert!(said.starts_with("qwen3-embed-demo is a small model for demonstrations"), "{said}");
    for (arguments, missing) in [
        (&["rerank", "--query", "a"][..], "--model <PATH or ID>"),
        (&["bench"], "--model <PATH or ID>"),
        (&["download"], "<ID>"),
    ] {
        let said = failed(&run(arguments, &[]));
        assert!(said.contains("not provided") && said.contains(missing), "{said}");
    }
}
