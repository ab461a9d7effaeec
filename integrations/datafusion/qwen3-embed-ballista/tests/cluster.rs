//! A scheduler and executors as processes on this machine.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionContext;
use qwen3_embed_datafusion::{Functions, ModelSettings, Models};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_qwen3-embed-ballista");

/// How long a process or a query may take, with a lot of room.
const PATIENCE: Duration = Duration::from_secs(120);

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that no one uses.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

struct Cluster {
    dir: TempDir,
    port: u16,
    _scheduler: Process,
    executors: Vec<(Process, u16)>,
}

impl Cluster {
    /// Starts a scheduler and executors of one thread, each with these flags.
    fn start(n_executors: usize, flags: &[&str]) -> Self {
        let (dir, port, http) = (tempfile::tempdir().unwrap(), free_port(), free_port());
        let scheduler = start(&dir, "scheduler", |command| {
            // A lost executor is noticed after seconds.
            let timeouts = [
                "--executor-timeout-seconds=4",
                "--expire-dead-executor-interval-seconds=1",
                "--executor-termination-grace-period=1",
                "--no-executors-grace-period-seconds=30",
            ];
            command.args(timeouts).arg(format!("--bind-port={port}"));
            command.arg(format!("--http-port={http}")).arg("scheduler")
        });
        await_ok(http, "/livez");
        let executors = (0..n_executors).map(|index| {
            let health = free_port();
            let process = start(&dir, &format!("executor{index}"), |command| {
                let ports = [("--bind-port", free_port()), ("--bind-grpc-port", free_port())];
                command.args(ports.map(|(flag, port)| format!("{flag}={port}")));
                command.arg(format!("--bind-health-port={health}"));
                command.arg(format!("--scheduler-port={port}"));
                command
                    .args(["--executor-heartbeat-interval-seconds=1", "--external-host=127.0.0.1"]);
                command.args([
                    "--scheduler-connect-timeout-seconds=60",
                    "--threads=1",
                    "--vcores=1",
                ]);
                command.args(flags).arg("executor")
            });
            (process, health)
        });
        let executors: Vec<_> = executors.collect();
        let cluster = Self { dir, port, _scheduler: scheduler, executors };
        for (_, health) in &cluster.executors {
            await_ok(*health, "/readyz");
        }
        cluster
    }

    /// Starts a statement.
    fn begin(&self, sql: &str) -> Child {
        let mut command = Command::new(PROGRAM);
        command.arg("sql").arg(format!("--scheduler=df://127.0.0.1:{}", self.port));
        command.args(["--dimensions=64", "--format=csv", "--quiet", "--command", sql]);
        command.env_remove("RUST_BACKTRACE").stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    fn run(&self, sql: &str) -> Output {
        self.begin(sql).wait_with_output().unwrap()
    }

    /// The message of a statement that fails.
    fn error(&self, sql: &str) -> String {
        let output = self.run(sql);
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// The number of texts that the executor with this port has embedded.
fn n_texts(port: u16) -> f64 {
    let metrics = get(port, "/metrics").unwrap_or_default();
    let line = metrics.lines().find_map(|line| line.strip_prefix("qwen3_embed_texts_total "));
    line.and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

/// Starts the program. Its log is a file in the folder.
fn start(
    dir: &TempDir,
    name: &str,
    arguments: impl FnOnce(&mut Command) -> &mut Command,
) -> Process {
    let work = dir.path().join(name);
    std::fs::create_dir(&work).unwrap();
    let log = std::fs::File::create(dir.path().join(format!("{name}.log"))).unwrap();
    let mut flags = Command::new(PROGRAM);
    arguments(&mut flags);
    // The last argument is the subcommand, which comes first.
    let mut flags: Vec<_> = flags.get_args().map(ToOwned::to_owned).collect();
    let subcommand = flags.pop().unwrap();
    let mut command = Command::new(PROGRAM);
    command.arg(&subcommand).arg("--bind-host=127.0.0.1").args(flags);
    if subcommand == "executor" {
        command.arg("--work-dir").arg(work);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Process(command.spawn().unwrap())
}

/// The body of an HTTP response with the status 200.
fn get(port: u16, route: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {route} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).ok()?;
    let (head, body) = response.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.to_owned())
}

fn await_ok(port: u16, route: &str) {
    let start = Instant::now();
    while get(port, route).is_none() {
        assert!(start.elapsed() < PATIENCE, "no answer from {route} at port {port}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Writes `n` texts to `files` Parquet files, and returns the statement that makes them a table.
async fn write_documents(dir: &Path, n: usize, files: usize) -> String {
    let context = SessionContext::new();
    let location = dir.join("documents");
    for file in 0..files {
        let per_file = n / files;
        let (start, end) = (file * per_file, (file + 1) * per_file - 1);
        let sql = format!(
            "COPY (SELECT n AS id, CASE WHEN n % 50 = 7 THEN NULL ELSE concat('It rains in station ', \
             CAST(n % 900 AS VARCHAR)) END AS text FROM generate_series({start}, {end}) AS numbers(n)) \
             TO '{}/{file}.parquet'",
            location.display()
        );
        context.sql(&sql).await.unwrap().collect().await.unwrap();
    }
    format!("CREATE EXTERNAL TABLE documents STORED AS PARQUET LOCATION '{}/'", location.display())
}

/// The rows of a query in this process.
async fn local(statements: &[&str]) -> RecordBatch {
    let functions = Functions::local(Arc::new(Models::new(ModelSettings::default())));
    let state = functions.register(SessionStateBuilder::new_with_default_features()).build();
    let context = SessionContext::new_with_state(state);
    context.sql("SET qwen3.dimensions = 64").await.unwrap();
    let mut rows = None;
    for sql in statements {
        let frame = context.sql(sql).await.unwrap();
        let schema = Arc::new(frame.schema().as_arrow().clone());
        rows = Some(concat_batches(&schema, &frame.collect().await.unwrap()).unwrap());
    }
    rows.unwrap()
}

const QUERY: &str = "SELECT id, text, embed(text) AS vector, \
    cosine_similarity(embed(text), embed_query('rain')) AS score FROM documents ORDER BY id";

/// Runs [`QUERY`] on the cluster and returns its rows.
async fn vectors(cluster: &Cluster, table: &str, during: impl FnOnce()) -> RecordBatch {
    let target = cluster.path("vectors.parquet");
    let copy = format!("{table}; COPY ({QUERY}) TO '{}'", target.display());
    let child = cluster.begin(&copy);
    during();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let vectors =
        format!("CREATE EXTERNAL TABLE vectors STORED AS PARQUET LOCATION '{}'", target.display());
    local(&[&vectors, "SELECT * FROM vectors ORDER BY id"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_the_same_as_in_one_process() {
    let cluster = Cluster::start(2, &[]);
    let table = write_documents(cluster.dir.path(), 4000, 8).await;
    let got = vectors(&cluster, &table, || ()).await;
    let expected = local(&[&table, QUERY]).await;
    assert_eq!(got.num_rows(), 4000);
    for (got, expected) in got.columns().iter().zip(expected.columns()) {
        assert_eq!(got, expected);
    }
    let shares: Vec<f64> = cluster.executors.iter().map(|(_, port)| n_texts(*port)).collect();
    assert!(shares.iter().all(|&n| n > 0.0), "both executors have worked: {shares:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_survives_the_loss_of_an_executor() {
    let mut cluster = Cluster::start(2, &[]);
    let table = write_documents(cluster.dir.path(), 24_000, 24).await;
    let (mut lost, health) = cluster.executors.remove(0);
    let got = vectors(&cluster, &table, || {
        // The executor is lost when it has done some tasks, and others are not done.
        let start = Instant::now();
        while n_texts(health) < 2000.0 {
            assert!(start.elapsed() < PATIENCE, "the executor has got no task");
            thread::sleep(Duration::from_millis(20));
        }
        lost.0.kill().unwrap();
    });
    let expected = local(&[&table, QUERY]).await;
    for (got, expected) in got.await.columns().iter().zip(expected.columns()) {
        assert_eq!(got, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_reach_the_client_and_executors_go_on() {
    let cluster = Cluster::start(1, &[]);
    let table = write_documents(cluster.dir.path(), 40, 1).await;
    let message = cluster.error(&format!(
        "{table}; SET qwen3.model = '/no/such/model'; SELECT count(embed(text)) FROM documents"
    ));
    assert!(message.contains("embed: there is no model at `/no/such/model`"), "{message}");
    let message = cluster.error(&format!(
        "{table}; SET qwen3.max_tokens = 5; SELECT count(embed(text)) FROM documents"
    ));
    assert!(message.contains("the limit is 5"), "{message}");
    assert!(message.contains("It rains in station"), "{message}");
    let message = cluster.error(&format!("{table}; SELECT rerank('rain', text) FROM documents"));
    assert!(message.contains("rerank: no reranker is set"), "{message}");

    let output = cluster.run(&format!("{table}; SELECT count(embed(text)) AS n FROM documents"));
    // The process has the bundled model now.
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../fixtures/models/base");
    let message = cluster.error(&format!("SET qwen3.model = '{base}'; SELECT embed('rain')"));
    assert!(message.contains("this process uses the model `qwen3-embed-demo`"), "{message}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().last(), Some("39"));
}
