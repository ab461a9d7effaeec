//! Clients that people have against the program that serves them.
//!
//! The scripts in `xtask/e2e` are given a server's address and fail with a message when an answer is not
//! what their client, or they themselves, expect. What they need is installed under `target/`, once.

mod article;
mod server;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::ci::cargo_command;
use crate::fixtures::succeed;
use crate::root;
use server::{Server, Setup};

/// Drive `qwen3-embed serve` with openai for Python and Node, LangChain, plain HTTP, and the playground in
/// Chromium
///
/// This needs Python 3.11 or later with venv and pip, Node 20 or later with npm, and Chromium; the variable
/// `CHROMIUM` names another browser of its family. It installs the pinned packages of xtask/e2e under
/// target/, and puts screenshots and the servers' logs into target/e2e.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the scripts whose names contain this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

/// The names that the served models are given: a client's own code names published ones.
const MODEL: &str = "Qwen/Qwen3-Embedding-0.6B";
const RERANKER: &str = "Qwen/Qwen3-Reranker-0.6B";

/// The key of the server that wants one.
const API_KEY: &str = "open sesame";

/// What a script may take before it counts as one that hangs.
const SCRIPT_LIMIT: Duration = Duration::from_secs(180);

/// Runs `cargo xtask e2e`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let clients = Clients::assemble()?;
    ensure!(
        clients.have_a_browser(),
        "there is no Chromium: install it, or name a browser in the variable CHROMIUM"
    );
    clients.check(&args.only)
}

/// What the scripts are run with.
pub(crate) struct Clients {
    python: PathBuf,
    /// The folder with the Node packages and, beside them, where Node looks for packages, the scripts.
    node: PathBuf,
    chromium: Option<PathBuf>,
}

impl Clients {
    /// Finds the programs that run the scripts and installs the scripts' packages.
    pub(crate) fn assemble() -> Result<Self> {
        ensure!(cfg!(unix), "servers are told to end with signals of Unix");
        for program in ["python3", "node", "npm"] {
            let found = Command::new(program).arg("--version").output();
            found.with_context(|| format!("there is no {program}"))?;
        }
        Ok(Self { python: python()?, node: node()?, chromium: chromium() })
    }

    /// Installs Chromium where it is missing and a package manager can be asked.
    pub(crate) fn with_installed_chromium(self) -> Self {
        if self.have_a_browser() {
            return self;
        }
        println!("Chromium is missing: apt-get install chromium");
        for arguments in [&["update", "-q"][..], &["install", "-qy", "chromium"]] {
            let mut command = Command::new("apt-get");
            command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
            if let Err(error) = succeed(&mut command) {
                println!("{error:#}");
                break;
            }
        }
        Self { chromium: chromium(), ..self }
    }

    /// Whether the playground is among what [`Clients::check`] can check.
    pub(crate) fn have_a_browser(&self) -> bool {
        self.chromium.is_some()
    }

    /// Runs every script whose name contains `only` against a server of the kind that it is for.
    pub(crate) fn check(&self, only: &str) -> Result<()> {
        // With the command's tests, as `cargo test --workspace` has built it: what it depends on has other features
        // without them, and would be compiled again.
        let command = ["test", "--workspace", "--no-run", "--test=serve"];
        succeed(&mut cargo_command(&command))?;
        fs::create_dir_all(artefacts())?;

        let reranker = root().join("fixtures/rerankers/tied");
        let reranker = reranker.to_str().context("the workspace's path is no Unicode")?;
        let reranker = ["--reranker-path", reranker, "--served-reranker-name", RERANKER];
        let kinds: [(&str, Setup, &[&str]); 5] = [
            ("article", article::setup()?, &["openai_article.py"]),
            (
                "both-models",
                Setup::small_model(&reranker)?,
                &[
                    "openai_client.py",
                    "langchain_client.py",
                    "plain_http.py",
                    "openai_client.mjs",
                    "playground.mjs",
                ],
            ),
            (
                "api-key",
                Setup::small_model(&["--api-key", API_KEY])?,
                &["api_key.py", "api_key.mjs"],
            ),
            (
                "one-request",
                Setup::small_model(&["--max-concurrent-requests", "1"])?,
                &["overload.py"],
            ),
            ("one-text", Setup::small_model(&["--max-queued-texts", "1"])?, &["overload.py"]),
        ];
        let mut n_run = 0;
        for (name, setup, scripts) in kinds {
            let wanted = |script: &&&str| script.contains(only) && self.can_run(script);
            let scripts: Vec<&&str> = scripts.iter().filter(wanted).collect();
            if scripts.is_empty() {
                continue;
            }
            let server = Server::start(name, &setup)?;
            for script in &scripts {
                self.run_script(script, &server)?;
            }
            server.end()?;
            n_run += scripts.len();
        }
        ensure!(n_run > 0, "no script has {only:?} in its name");
        Ok(())
    }

    /// Whether a script has what it needs.
    fn can_run(&self, script: &str) -> bool {
        self.have_a_browser() || !["playground.mjs", "api_key.mjs"].contains(&script)
    }

    fn run_script(&self, script: &str, server: &Server) -> Result<()> {
        println!("\n-- {script}, server {}", server.name());
        let start = Instant::now();
        let mut command = if script.ends_with(".py") {
            let mut python = Command::new(&self.python);
            python.arg(root().join("xtask/e2e").join(script));
            python
        } else {
            let mut node = Command::new("node");
            node.arg(self.node.join(script));
            node
        };
        command.arg(server.address()).current_dir(artefacts());
        command.env("MODEL", MODEL).env("SERVER_API_KEY", API_KEY).env("PYTHON", &self.python);
        command.env("FIXTURES", root().join("fixtures"));
        if let Some(program) = &self.chromium {
            command.env("CHROMIUM", program);
        }
        // A client has proxies and keys of its own in the environment: this server is on this machine.
        for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "OPENAI_API_KEY"] {
            command.env_remove(variable).env_remove(variable.to_lowercase());
        }
        let mut child = command.spawn().with_context(|| format!("cannot run {script}"))?;
        let status = ended(&mut child, SCRIPT_LIMIT);
        ensure!(
            status.with_context(|| script.to_owned())?,
            "{script} failed; the server's log is {}",
            server.log().display()
        );
        println!("-- {script}: {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }
}

/// The browser's program.
fn chromium() -> Option<PathBuf> {
    let named = env::var("CHROMIUM").ok();
    let known = ["chromium", "chromium-browser", "google-chrome"].map(str::to_owned);
    named.into_iter().chain(known).find_map(|name| {
        let found = Command::new("sh").args(["-c", "command -v \"$0\"", &name]).output().ok()?;
        let path = String::from_utf8(found.stdout).ok()?;
        found.status.success().then(|| PathBuf::from(path.trim_end()))
    })
}

/// Waits until a process ends, and says whether well; one that takes longer than the limit is killed.
fn ended(child: &mut Child, limit: Duration) -> Result<bool> {
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

/// Where screenshots and logs go.
fn artefacts() -> PathBuf {
    root().join("target/e2e")
}

/// A Python with the packages of `requirements.txt`.
fn python() -> Result<PathBuf> {
    let venv = root().join("target/e2e-python");
    let requirements = root().join("xtask/e2e/requirements.txt");
    let python = venv.join("bin/python");
    once(&venv, &fs::read_to_string(&requirements)?, || {
        succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        let mut pip = Command::new(&python);
        // Compiling what is never imported takes longer than downloading it.
        pip.args(["-m", "pip", "install", "--quiet", "--no-compile"]);
        pip.args(["--disable-pip-version-check", "--requirement"]).arg(&requirements);
        succeed(&mut pip).context("Python packages could not be installed")
    })?;
    Ok(python)
}

/// A folder with the packages of `package-lock.json` and a copy of the scripts.
fn node() -> Result<PathBuf> {
    let folder = root().join("target/e2e-node");
    let scripts = root().join("xtask/e2e");
    fs::create_dir_all(&folder)?;
    for entry in fs::read_dir(&scripts)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if [".mjs", ".json", ".npmrc"].iter().any(|end| name.ends_with(end)) {
            fs::copy(entry.path(), folder.join(name.as_ref()))?;
        }
    }
    let lock = fs::read_to_string(scripts.join("package-lock.json"))?;
    once(&folder, &lock, || {
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]);
        succeed(npm.current_dir(&folder)).context("Node packages could not be installed")
    })?;
    Ok(folder)
}

/// Does what fills a folder, unless it has been done for the same description.
fn once(folder: &Path, description: &str, fill: impl FnOnce() -> Result<()>) -> Result<()> {
    let stamp = folder.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == description) {
        return Ok(());
    }
    fill()?;
    Ok(fs::write(&stamp, description)?)
}
