use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace::{self, root};

/// The served name of the embedding model. Examples in the documentation of clients use names like this.
pub(super) const MODEL: &str = "Qwen/Qwen3-Embedding-0.6B";

/// Time limit for loading a tiny model, and for stopping an idle server.
const LIMIT: Duration = Duration::from_secs(60);

/// The folder for screenshots and logs.
pub(super) fn artifacts() -> PathBuf {
    root().join("target/e2e")
}

/// Arguments and environment of a server.
pub(super) struct Setup {
    pub(super) arguments: Vec<String>,
    /// Environment variables, in addition to those of this process.
    pub(super) environment: Vec<(&'static str, String)>,
}

impl Setup {
    /// A small model with the name of a published model, on a free port, with additional arguments. The precision is
    /// f32, because the scripts compare vectors with those of transformers in f32.
    pub(super) fn small_model(arguments: &[&str]) -> Result<Self> {
        let model = root().join("fixtures/models/wide");
        let model = model.to_str().context("the path of the workspace is not Unicode")?;
        let first = ["--port", "0", "--precision", "f32"];
        let named = ["--served-model-name", MODEL, "--model-path", model];
        let arguments =
            first.iter().chain(&named).chain(arguments).map(|&argument| argument.to_owned());
        Ok(Self { arguments: arguments.collect(), environment: Vec::new() })
    }

    /// The bundled model, whose vectors have a meaning, on a free port.
    pub(super) fn bundled_model() -> Self {
        Self { arguments: ["--port", "0"].map(str::to_owned).to_vec(), environment: Vec::new() }
    }
}

/// A running `qwen3-embed serve`. Dropping this value without a call of [`Server::end`] kills the process.
pub(super) struct Server {
    name: String,
    address: String,
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Server {
    /// Starts the program and waits until it is ready. `name` is part of the name of its log file.
    pub(super) fn start(name: &str, setup: &Setup) -> Result<Self> {
        let program = root().join("target/debug/qwen3-embed");
        let mut command = Command::new(&program);
        command.arg("serve").args(&setup.arguments).envs(setup.environment.iter().cloned());
        let log = File::create(log(name))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().with_context(|| program.display().to_string())?;
        let stdout = child.stdout.take().context("standard output is not a pipe")?;
        let stdout = BufReader::new(stdout);
        let mut server = Self { name: name.to_owned(), address: String::new(), child, stdout };
        let mut line = String::new();
        server.stdout.read_line(&mut line)?;
        let address = line.strip_prefix("listening on ").map(str::trim_end);
        let address = address.with_context(|| {
            let log = fs::read_to_string(server.log()).unwrap_or_default();
            format!("expected the address of server {name} on standard output, got {line:?}; its log:\n{log}")
        })?;
        // 0.0.0.0 stands for all addresses of this machine, but a client needs a certain address.
        server.address = address.replace("//0.0.0.0:", "//127.0.0.1:");
        server.wait_until_ready()?;
        Ok(server)
    }

    /// The URL of the server, without a path.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn log(&self) -> PathBuf {
        log(&self.name)
    }

    /// Stops the server with SIGTERM. Checks that the server exits successfully and has printed nothing after its
    /// address.
    pub(super) fn end(mut self) -> Result<()> {
        let kill = format!("kill -TERM {}", self.child.id());
        workspace::run(Command::new("sh").args(["-c", &kill]))?;
        let log = self.log();
        let succeeded = wait_with_limit(&mut self.child, LIMIT).context("after SIGTERM")?;
        ensure!(succeeded, "server {} exited with an error: see {}", self.name, log.display());
        let mut more = String::new();
        self.stdout.read_to_string(&mut more)?;
        ensure!(more.is_empty(), "server {} printed {more:?} after its address", self.name);
        Ok(())
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "server {} exited before it was ready ({status}): see {}",
                    self.name,
                    self.log().display()
                );
            }
            let status = self.status_of("/readyz").context("/readyz")?;
            if status == "200" {
                return Ok(());
            }
            ensure!(
                start.elapsed() < LIMIT,
                "server {} is not ready: /readyz returns status {status}",
                self.name
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The status of a route, read from the socket without an HTTP client.
    fn status_of(&self, path: &str) -> Result<String> {
        let host = self
            .address
            .strip_prefix("http://")
            .context("the address does not begin with http://")?;
        let mut stream = TcpStream::connect(host).with_context(|| host.to_owned())?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        let status = response.split(' ').nth(1);
        Ok(status.with_context(|| format!("{response:?} is not an HTTP response"))?.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The server still runs only if a script has failed. That error is reported, so errors here are ignored.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log(name: &str) -> PathBuf {
    artifacts().join(format!("server-{name}.log"))
}

/// Waits until a process exits, and returns whether it succeeded. After the time limit, the process is killed and the
/// result is an error.
pub(super) fn wait_with_limit(child: &mut Child, limit: Duration) -> Result<bool> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if start.elapsed() > limit {
            child.kill()?;
            bail!("still running after {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
}
