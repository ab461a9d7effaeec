//! The program `qwen3-embed serve`: flags, environment variables and shutdown.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use qwen3_embed::Kernels;
#[cfg(feature = "demo-model")]
use qwen3_embed::{Embedder, Precision, Source};
use qwen3_embed_testing::fixtures;
use serde_json::{Value, json};

fn fixture(name: &str) -> String {
    fixtures::path(name).to_str().unwrap().to_owned()
}

/// A server process. It is killed when the value is dropped.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qwen3-embed"));
    command.arg("serve").args(arguments).env_clear().envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Server {
    fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = command(arguments, environment).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").unwrap().parse().unwrap();
        let server = Self { child, address };
        while server.get("/readyz").0 != 200 {
            thread::sleep(Duration::from_millis(5));
        }
        server
    }

    fn get(&self, path: &str) -> (u16, String) {
        ask(self.address, &format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"))
    }

    fn post(&self, path: &str, body: &Value) -> (u16, String) {
        ask(self.address, &post(path, body))
    }

    /// Waits until texts are in the queue.
    fn wait_for_texts(&self) {
        let none = "waiting_texts{model=\"embedder\"} 0";
        while self.get("/metrics").1.contains(none) {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn signal(&self, name: &str) {
        let mut kill = Command::new("kill");
        kill.args([format!("-{name}"), self.child.id().to_string()]);
        assert!(kill.status().unwrap().success());
    }

    /// Waits for the end of the process. Returns its status and its standard error.
    fn ended(mut self) -> (ExitStatus, String) {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap(), said)
    }
}

fn post(path: &str, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Sends a request on a new connection. Returns the status and the body of the response.
fn ask(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head["HTTP/1.1 ".len()..][..3].parse().unwrap(), body.to_owned())
}

/// A request that keeps the small model busy for some time: long texts without common prefixes.
fn work(n: usize) -> Value {
    let text = |i: usize| (0..100).map(|word| format!("{} ", i * 7919 + word)).collect::<String>();
    json!({ "input": (0..n).map(text).collect::<Vec<_>>(), "encoding_format": "base64" })
}

#[test]
fn logs_warning_about_reranker_that_serves_embeddings() {
    let model = fixture("rerankers/tied");
    let server = Server::start(&["--model-path", &model, "--port", "0"], &[]);
    server.signal("TERM");
    let (status, log) = server.ended();
    let expected = "rerankers/tied may not be an embedding model: its name contains `rerank`";
    assert!(status.success() && log.contains("WARN") && log.contains(expected), "{log}");
}

#[cfg(feature = "demo-model")]
#[test]
fn serves_the_bundled_model_and_says_so() {
    let server = Server::start(&["--port", "0", "--precision", "f32", "--threads", "1"], &[]);
    let (status, body) = server.post("/v1/embeddings", &json!({ "input": "It rains." }));
    assert_eq!(status, 200, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["model"], "qwen3-embed-demo");
    let vector: Vec<f32> = serde_json::from_value(body["data"][0]["embedding"].clone()).unwrap();
    let embedder = Embedder::builder(Source::demo()).precision(Precision::F32).build().unwrap();
    assert_eq!(vector, embedder.embed_document("It rains.").unwrap());
    let info: Value = serde_json::from_str(&server.get("/info").1).unwrap();
    let notice = info["notice"].as_str().unwrap().to_owned();
    assert!(notice.starts_with("qwen3-embed-demo is a small model for demonstrations"), "{notice}");
    assert!(notice.contains("`--model-path Qwen/Qwen3-Embedding-0.6B`"), "{notice}");
    server.signal("TERM");
    let (status, log) = server.ended();
    assert!(status.success() && log.matches(&notice).count() == 1, "{log}");

    // With a reranker alone, there is no embedding model.
    let reranker = fixture("rerankers/tied");
    let server = Server::start(&["--reranker-path", &reranker, "--port", "0"], &[]);
    let info: Value = serde_json::from_str(&server.get("/info").1).unwrap();
    assert!(info["embedder"].is_null() && info["notice"].is_null(), "{info}");
}

#[test]
fn accepts_the_command_line_of_sglang() {
    let server = Server::start(
        &[
            "--model-path",
            &fixture("models/wide"),
            "--served-model-name",
            "Qwen/Qwen3-Embedding-4B",
            "--port",
            "0",
            "--host",
            "127.0.0.1",
            "--is-embedding",
            "--trust-remote-code",
            "--tokenizer-mode",
            "auto",
            "--dtype",
            "float32",
            "--context-length",
            "1000",
            "--threads",
            "2",
        ],
        &[],
    );
    let request = json!({ "model": "Qwen/Qwen3-Embedding-4B", "input": "The weather is great" });
    let (status, body) = server.post("/v1/embeddings", &request);
    assert_eq!(status, 200, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["model"], "Qwen/Qwen3-Embedding-4B");
    assert_eq!(body["data"][0]["embedding"].as_array().unwrap().len(), 256);
    let (_, info) = server.get("/info");
    assert_eq!(serde_json::from_str::<Value>(&info).unwrap()["model_dtype"], "float32");
    server.signal("TERM");
    let (status, said) = server.ended();
    assert!(status.success(), "{said}");
    assert!(said.contains("`--trust-remote-code` has no effect"), "{said}");
    assert!(said.contains("`--tokenizer-mode` has no effect"), "{said}");
    let ready = said.lines().find_map(|line| Some(line.split_once(" ready: ")?.1)).unwrap();
    let name = "Qwen/Qwen3-Embedding-4B, 256 dimensions, f32 on ";
    let rest = ", 2 threads, texts of at most 1000 tokens";
    assert!(ready.starts_with(name) && ready.ends_with(rest), "{ready}");
    assert!(ready.contains(&format!(" on {} kernels, ", Kernels::current().name)), "{ready}");
}

/// Puts a model into a cache folder, in the layout that the hub's own programs use.
fn fill_cache(cache: &Path, id: &str, model: &str) {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = cache.join(format!("models--{}", id.replace('/', "--")));
    let snapshot = repository.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), commit).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(Path::new(&fixture(model)).join(file), snapshot.join(file)).unwrap();
    }
}

/// The command line contains the model's id, and the request contains only the part after the slash.
#[test]
fn serves_model_from_the_hub_cache_under_its_id_and_short_name() {
    let cache = tempfile::tempdir().unwrap();
    fill_cache(cache.path(), "Qwen/Qwen3-Embedding-4B", "models/wide");
    let environment = [("HF_HUB_CACHE", cache.path().to_str().unwrap()), ("HF_HUB_OFFLINE", "1")];
    let arguments = ["--model-path", "Qwen/Qwen3-Embedding-4B", "--is-embedding"];
    let server = Server::start(
        &[&arguments[..], &["--host", "0.0.0.0", "--port", "0"]].concat(),
        &environment,
    );
    let request = json!({ "model": "Qwen3-Embedding-4B", "input": ["a", "b"] });
    let (status, body) = server.post("/v1/embeddings", &request);
    assert_eq!(status, 200, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["model"], "Qwen/Qwen3-Embedding-4B");
    assert_eq!(body["data"].as_array().unwrap().len(), 2);
}

/// Checks the ids that `/v1/models` lists, and the status of a request with an unknown model name.
fn check_names(arguments: &[&str], environment: &[(&str, &str)], ids: Value, status: u16) {
    let server = Server::start(&[arguments, &["--port", "0"]].concat(), environment);
    let list: Value = serde_json::from_str(&server.get("/v1/models").1).unwrap();
    let listed = list["data"].as_array().unwrap().iter().map(|model| model["id"].clone());
    assert_eq!(listed.collect::<Value>(), ids, "{arguments:?} {environment:?}");
    let path = if arguments.contains(&"--model-path") { "/v1/embeddings" } else { "/v1/score" };
    let request = json!({ "model": "other", "input": "a", "text_1": "a", "text_2": "b" });
    assert_eq!(server.post(path, &request).0, status, "{arguments:?} {environment:?}");
}

#[test]
fn served_names_come_from_flags_and_environment() {
    let (wide, tied) = (fixture("models/wide"), fixture("rerankers/tied"));
    let embedder = |names: &[&'static str]| [&["--model-path", wide.as_str()], names].concat();
    let reranker = |names: &[&'static str]| [&["--reranker-path", tied.as_str()], names].concat();
    let model_names = "QWEN3_EMBED_SERVED_MODEL_NAME";
    let reranker_names = "QWEN3_EMBED_SERVED_RERANKER_NAME";
    let strict = "--strict-model-names";

    check_names(&embedder(&[]), &[], json!([wide]), 200);
    let twice = ["--served-model-name", "A", "--served-model-name", "B/C", strict];
    check_names(&embedder(&twice), &[], json!(["A", "B/C"]), 404);
    let spaces = embedder(&["--served-model-name", "A", "B", "A"]);
    check_names(&spaces, &[], json!(["A", "B"]), 200);
    let commas = embedder(&["--served-model-name", "A, B,C"]);
    check_names(&commas, &[], json!(["A", "B", "C"]), 200);
    let environment = [(model_names, "A,B"), ("QWEN3_EMBED_STRICT_MODEL_NAMES", "true")];
    check_names(&embedder(&[]), &environment, json!(["A", "B"]), 404);

    let alone = reranker(&["--served-model-name", "A", "B"]);
    check_names(&alone, &[], json!(["A", "B"]), 200);
    let environment = [(reranker_names, "A,B"), (model_names, "C")];
    check_names(&reranker(&[]), &environment, json!(["A", "B"]), 200);
    let both = ["--served-reranker-name", "C", "D", "--served-model-name", "A"];
    let both = [embedder(&both), reranker(&[])].concat();
    check_names(&both, &[(model_names, "B")], json!(["A", "C", "D"]), 200);
}

/// The port on which the server listens or fails to listen, and its standard error.
fn port_of(environment: &[(&str, &str)]) -> (String, String) {
    // The server listens before it loads the model, and ends because there is no model.
    let output = command(&["--model-path", "/no/such"], environment).output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    let listening = out.trim().strip_prefix("listening on http://127.0.0.1:");
    let taken = || err.split_once("error: 127.0.0.1:").map(|(_, rest)| rest.split(':').next());
    let port = listening.or_else(|| taken().flatten());
    (port.unwrap_or_default().to_owned(), err)
}

#[test]
fn ignores_kubernetes_service_address_in_the_port_variable() {
    for (protocol, format) in [("tcp", "text"), ("udp", "json"), ("sctp", "text")] {
        let address = format!("{protocol}://10.96.0.7:8123");
        let environment = [
            ("QWEN3_EMBED_PORT", address.as_str()),
            ("QWEN3_EMBED_SERVICE_HOST", "10.96.0.7"),
            ("QWEN3_EMBED_SERVICE_PORT", "8123"),
            ("QWEN3_EMBED_PORT_8123_TCP", address.as_str()),
            ("QWEN3_EMBED_LOG_FORMAT", format),
        ];
        let (port, said) = port_of(&environment);
        assert_eq!(port, "30000", "{said}");
        let warning = format!("QWEN3_EMBED_PORT={address} is ignored");
        assert_eq!(said.matches(&warning).count(), 1, "{said}");
    }
    let (port, said) = port_of(&[("QWEN3_EMBED_PORT", "8123")]);
    assert!(port == "8123" && !said.contains("ignored"), "{said}");
    for wrong in ["x", "http://10.96.0.7:8123", "70000"] {
        let (port, said) = port_of(&[("QWEN3_EMBED_PORT", wrong)]);
        assert!(port.is_empty() && said.contains("invalid value"), "{said}");
    }
}

#[test]
fn dockerfile_health_check_uses_the_servers_port() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let file = fs::read_to_string(root.join("Dockerfile")).unwrap().replace("\\\n", "");
    let check = file.lines().find(|line| line.starts_with("HEALTHCHECK")).unwrap();
    let check: Vec<String> = serde_json::from_str(&check[check.find('[').unwrap()..]).unwrap();
    let server = Server::start(&["--model-path", &fixture("models/wide"), "--port", "0"], &[]);
    let port = server.address.port().to_string();
    let is_healthy = |default: &str, variable: Option<&str>| {
        let script = check[2].replace("30000", default);
        let mut bash = Command::new(&check[0]);
        bash.args([&check[1], &script]).env_remove("QWEN3_EMBED_PORT").stderr(Stdio::null());
        bash.envs(variable.map(|value| ("QWEN3_EMBED_PORT", value)));
        bash.status().unwrap().success()
    };
    assert_eq!(check[2].matches("30000").count(), 2);
    for variable in [None, Some(""), Some("tcp://10.96.0.7:1"), Some("udp://10.96.0.7:1")] {
        assert!(is_healthy(&port, variable), "{variable:?}");
    }
    assert!(is_healthy("1", Some(&port)));
    assert!(!is_healthy(&port, Some("1")) && !is_healthy("1", None));
}

#[test]
fn reads_all_settings_from_the_environment() {
    let wide = fixture("models/wide");
    let reranker = fixture("rerankers/tied");
    let environment = [
        ("QWEN3_EMBED_MODEL_PATH", wide.as_str()),
        ("QWEN3_EMBED_RERANKER_PATH", reranker.as_str()),
        ("QWEN3_EMBED_PORT", "0"),
        // A key that is read from a file may end with a line feed.
        ("QWEN3_EMBED_API_KEY", "secret\n"),
        ("QWEN3_EMBED_LOG_FORMAT", "json"),
        ("QWEN3_EMBED_TRUNCATE", "1"),
        ("QWEN3_EMBED_PLAIN_TEXT", "yes"),
        ("QWEN3_EMBED_CORS_ALLOW_ORIGIN", "https://a.org,chrome-extension://b"),
        ("QWEN3_EMBED_PUBLIC_METRICS", "1"),
        ("QWEN3_EMBED_KEEP_ALIVE_TIMEOUT", "620"),
        // Empty values have the same effect as no values.
        ("QWEN3_EMBED_ADAPTER", ""),
        ("QWEN3_EMBED_REVISION", ""),
        ("QWEN3_EMBED_PRECISION", ""),
        ("QWEN3_EMBED_DTYPE", ""),
        ("QWEN3_EMBED_MAX_LENGTH", ""),
        ("QWEN3_EMBED_DEFAULT_INSTRUCT", ""),
    ];
    let server = Server::start(&[], &environment);
    let (status, body) = server.post("/v1/embeddings", &json!({ "input": "a" }));
    assert_eq!(status, 401, "{body}");
    assert_eq!(server.get("/metrics").0, 200);
    let authorized = post("/v1/rerank", &json!({ "query": "a", "documents": ["b"] }))
        .replace("host: a", "host: a\r\nauthorization: Bearer secret");
    let (status, body) = ask(server.address, &authorized);
    assert_eq!(status, 200, "{body}");
    let tokenize =
        post("/tokenize", &json!({ "inputs": "<|im_end|>", "add_special_tokens": false }))
            .replace("host: a", "host: a\r\nauthorization: Bearer secret");
    let (_, pieces) = ask(server.address, &tokenize);
    let pieces: Value = serde_json::from_str(&pieces).unwrap();
    assert!(pieces[0].as_array().unwrap().len() > 1, "{pieces}");
    server.signal("INT");
    let (status, said) = server.ended();
    assert!(status.success(), "{said}");
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let answered = lines.iter().find(|line| line["span"]["path"] == "/v1/rerank").unwrap();
    assert_eq!((&answered["message"], &answered["status"]), (&json!("answered"), &json!(200)));
    assert!(answered["span"]["id"].is_string() && answered["latency_ms"].is_number(), "{answered}");
    assert!(!said.contains("secret"));
}

/// Thread pools with a thread for each core would waste memory.
#[cfg(target_os = "linux")]
#[test]
fn starts_as_many_threads_as_requested() {
    let model = fixture("models/base");
    let server = Server::start(&["--model-path", &model, "--port", "0", "--threads", "1"], &[]);
    let body = json!({ "input": ["a", "b"] });
    assert_eq!(server.post("/v1/embeddings", &body).0, 200);
    let threads = fs::read_dir(format!("/proc/{}/task", server.child.id())).unwrap();
    let mut names: Vec<_> = threads
        .map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")).unwrap())
        .filter(|name| !name.starts_with("tokio"))
        .map(|name| name.trim().to_owned())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["compute", "model-0", "qwen3-embed", "tokenize-0"]);
}

#[test]
fn answers_accepted_request_after_sigterm() {
    let arguments = ["--model-path", &fixture("models/wide"), "--port", "0"];
    let slowly = ["--max-batch-tokens", "1", "--drain-timeout", "600"];
    let server = Server::start(&[&arguments[..], &slowly].concat(), &[]);
    let address = server.address;
    let asked = thread::spawn(move || ask(address, &post("/v1/embeddings", &work(30))));
    server.wait_for_texts();
    server.signal("TERM");
    let (status, body) = asked.join().unwrap();
    assert_eq!(status, 200, "{body:.300}");
    assert!(body.contains("\"index\":29"));
    let (status, said) = server.ended();
    assert!(status.success(), "{said}");
}

#[test]
fn second_signal_or_drain_timeout_ends_the_server() {
    for (timeout, signals, code) in [("600", 2, 130), ("0.05", 1, 1)] {
        let model = fixture("models/wide");
        let arguments = ["--model-path", &model, "--port", "0", "--max-batch-tokens", "1"];
        let arguments = [&arguments[..], &["--drain-timeout", timeout]].concat();
        let server = Server::start(&arguments, &[]);
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(post("/v1/embeddings", &work(200)).as_bytes()).unwrap();
        server.wait_for_texts();
        server.signal("TERM");
        if signals == 2 {
            // Waits until the first signal has been handled, because two pending signals are delivered as one.
            while TcpStream::connect(server.address).is_ok() {
                thread::sleep(Duration::from_millis(1));
            }
            server.signal("TERM");
        }
        let (status, said) = server.ended();
        assert_eq!(status.code(), Some(code), "{said}");
        assert_eq!(said.contains("requests were not finished within 50ms"), signals == 1, "{said}");
    }
}

#[test]
fn startup_errors_name_the_cause() {
    let wide = fixture("models/wide");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let tied = fixture("rerankers/tied");
    let cases: [(&[&str], &str); 5] = [
        (
            &[
                "--model-path",
                &wide,
                "--served-model-name",
                "a",
                "b",
                "--reranker-path",
                &tied,
                "--served-reranker-name",
                "c",
                "b",
                "--port",
                "0",
            ],
            "both models would have the name b",
        ),
        (
            &["--model-path", "/no/such/folder", "--port", "0"],
            "there is no model at `/no/such/folder`",
        ),
        (&["--model-path", &wide, "--port", &port], "Address already in use"),
        (&["--model-path", &wide, "--port", "0", "--host", "no such host"], "no such host:0"),
        (&["--model-path", &wide, "--port", "0", "--revision", "main"], "`--revision` is for ids"),
    ];
    for (arguments, expected) in cases {
        let output = command(arguments, &[]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(expected), "{arguments:?}: {said}");
    }
}

#[test]
fn rejects_invalid_settings_before_loading_a_model() {
    let needs_model = "not provided:\n  --model-path <PATH or ID>";
    let cases: [(&[&str], &str); 20] = [
        (&["--adapter", "a/b"], needs_model),
        (&["--revision", "main"], needs_model),
        (&["--reranker-path", "/no/such", "--adapter", "a/b"], needs_model),
        (&["--reranker-path", "/no/such", "--revision", "main"], needs_model),
        (&["--model-path", "/no/such", "--dtype", "half"], "float16 is not supported"),
        (&["--model-path", "/no/such", "--drain-timeout=-1"], "--drain-timeout"),
        (&["--model-path", "/no/such", "--drain-timeout=x"], "expected a number, got `x`"),
        (&["--model-path", "/no/such", "--keep-alive-timeout=-1"], "--keep-alive-timeout"),
        (&["--model-path", "/no/such", "--keep-alive-timeout=nan"], "--keep-alive-timeout"),
        (&["--model-path", "/no/such", "--keep-alive-timeout=0"], "expected more than 0 seconds"),
        (
            &["--model-path", "/no/such", "--served-model-name", ""],
            "expected a name, got an empty one",
        ),
        (
            &["--model-path", "/no/such", "--served-model-name", "a,,b"],
            "expected a name, got an empty one",
        ),
        (&["--model-path", "/no/such", "--max-batch-tokens", "0"], "-tokens <N>': 0 is not in"),
        (&["--model-path", "/no/such", "--max-queued-texts", "0"], "-texts <N>': 0 is not in"),
        (&["--model-path", "/no/such", "--max-client-batch-size", "0"], "<N>': 0 is not in"),
        (&["--model-path", "/no/such", "--cors-allow-origin", "https://a.org/"], "without a path"),
        (&["--model-path", "/no/such", "--cors-allow-origin", "*,https://a/b"], "without a path"),
        (&["--model-path", "/no/such", "--cors-allow-origin", "https://ä.org"], "without a path"),
        (&["--model-path", "/no/such", "--cors-allow-origin", "https://A.org"], "in lower case"),
        (
            &["--model-path", "/no/such", "--cors-allow-origin", "a.org"],
            "expected `*`, or an origin",
        ),
    ];
    for (arguments, expected) in cases {
        let output = command(&[arguments, &["--port", "0"]].concat(), &[]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(expected), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}
