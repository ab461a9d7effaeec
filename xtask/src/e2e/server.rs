use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{MODEL, artefacts, ended};
use crate::fixtures::succeed;
use crate::root;

/// How long a tiny model may take to load, and a server without work to end.
const LIMIT: Duration = Duration::from_secs(60);

/// How a server is started.
pub(super) struct Setup {
    pub(super) arguments: Vec<String>,
    /// Variables beside those of this process.
    pub(super) environment: Vec<(&'static str, String)>,
}

impl Setup {
    /// A small model under a published name, on a free port, with further arguments. It is served in f32, because
    /// scripts compare its vectors with those of transformers: in bf16 they differ on CPUs that multiply in bf16.
    pub(super) fn small_model(arguments: &[&str]) -> Result<Self> {
        let model = root().join("fixtures/models/wide");
        let model = model.to_str().context("the workspace's path is not Unicode")?;
        let first = ["--port", "0", "--precision", "f32"];
        let named = ["--served-model-name", MODEL, "--model-path", model];
        let arguments =
            first.iter().chain(&named).chain(arguments).map(|&argument| argument.to_owned());
        Ok(Self { arguments: arguments.collect(), environment: Vec::new() })
    }
}

/// A running `qwen3-embed serve`, killed if it is dropped before its [`Server::end`].
pub(super) struct Server {
    name: String,
    address: String,
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Server {
    /// Starts the program and waits until it is ready. Its log is a file of this name.
    pub(super) fn start(name: &str, setup: &Setup) -> Result<Self> {
        let program = root().join("target/debug/qwen3-embed");
        let mut command = Command::new(&program);
        command.arg("serve").args(&setup.arguments).envs(setup.environment.iter().cloned());
        let log = File::create(log(name))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().with_context(|| program.display().to_string())?;
        let stdout = child.stdout.take().context("standard output is a pipe")?;
        let stdout = BufReader::new(stdout);
        let mut server = Self { name: name.to_owned(), address: String::new(), child, stdout };
        let mut line = String::new();
        server.stdout.read_line(&mut line)?;
        let address = line.strip_prefix("listening on ").map(str::trim_end);
        let address = address.with_context(|| {
            let log = fs::read_to_string(server.log()).unwrap_or_default();
            format!("server {name} says {line:?} instead of where it listens\n{log}")
        })?;
        // Every address of this machine is no address to connect to.
        server.address = address.replace("//0.0.0.0:", "//127.0.0.1:");
        server.wait_until_ready()?;
        Ok(server)
    }

    /// `http://` and where it listens.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn log(&self) -> PathBuf {
        log(&self.name)
    }

    /// Asks the server to end, which it has to do well and without a word.
    pub(super) fn end(mut self) -> Result<()> {
        let kill = format!("kill -TERM {}", self.child.id());
        succeed(Command::new("sh").args(["-c", &kill]))?;
        let log = self.log();
        let well = ended(&mut self.child, LIMIT).context("after SIGTERM")?;
        ensure!(well, "server {} ends with an error: see {}", self.name, log.display());
        let mut more = String::new();
        self.stdout.read_to_string(&mut more)?;
        ensure!(more.is_empty(), "server {} also prints {more:?}", self.name);
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("server {} has ended: {status}; see {}", self.name, self.log().display());
            }
            let status = self.status_of("/readyz").context("/readyz")?;
            if status == "200" {
                return Ok(());
            }
            ensure!(start.elapsed() < LIMIT, "server {} stays at status {status}", self.name);
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The status that a route answers, without a client that could be wrong about it.
    fn status_of(&self, path: &str) -> Result<String> {
        let host = self.address.strip_prefix("http://").context("an address without http://")?;
        let mut stream = TcpStream::connect(host).with_context(|| host.to_owned())?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1);
        Ok(status.with_context(|| format!("{answer:?} is no HTTP"))?.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already unless a script has failed, and then that is what is told.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log(name: &str) -> PathBuf {
    artefacts().join(format!("server-{name}.log"))
}
