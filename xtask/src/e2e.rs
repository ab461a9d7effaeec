//! End-to-end tests: real clients against the program `qwen3-embed serve`.
//!
//! The scripts in `xtask/e2e` get the address of a server as an argument, and fail with a message if a response is not
//! the expected one. The packages that the scripts need are installed once, under `target/`.

mod article;
mod server;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::workspace::{self, cargo_command, root};
use server::{MODEL, Server, Setup, artifacts, wait_with_limit};

/// Test `qwen3-embed serve` with real clients: openai for Python and Node, LangChain, plain HTTP, and the playground in
/// Chromium
///
/// The task needs Python 3.11 or later with venv and pip, Node 20 or later with npm, and Chromium. The environment
/// variable `CHROMIUM` can name another browser that is based on Chromium. The task installs the packages of xtask/e2e,
/// in fixed versions, under target/, and writes screenshots and server logs to target/e2e.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the scripts whose names contain TEXT
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

/// The served name of the reranker.
const RERANKER: &str = "Qwen/Qwen3-Reranker-0.6B";

/// The API key of the server that requires one.
const API_KEY: &str = "open sesame";

/// Time limit of a script.
const SCRIPT_LIMIT: Duration = Duration::from_secs(180);

/// Runs `cargo xtask e2e`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let clients = Clients::assemble()?;
    ensure!(
        clients.have_a_browser(),
        "Chromium is not installed: install Chromium, or set `CHROMIUM` to a browser that is based on it"
    );
    clients.check(&args.only)
}

/// The programs and packages that the scripts need.
pub(crate) struct Clients {
    python: PathBuf,
    /// The folder with the Node packages and a copy of the scripts, because Node looks for packages beside a script.
    node: PathBuf,
    chromium: Option<PathBuf>,
}

impl Clients {
    /// Finds the programs and installs the packages.
    pub(crate) fn assemble() -> Result<Self> {
        ensure!(cfg!(unix), "the tests need a Unix system, because they stop servers with signals");
        for program in ["python3", "node", "npm"] {
            let found = Command::new(program).arg("--version").output();
            found.with_context(|| format!("{program} is not installed"))?;
        }
        Ok(Self { python: python()?, node: node()?, chromium: chromium() })
    }

    /// Installs Chromium with apt-get if no Chromium is installed. A failure is printed and ignored.
    pub(crate) fn with_installed_chromium(self) -> Self {
        if self.have_a_browser() {
            return self;
        }
        println!("Chromium is not installed: running `apt-get install chromium`");
        for arguments in [&["update", "-q"][..], &["install", "-qy", "chromium"]] {
            let mut command = Command::new("apt-get");
            command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
            if let Err(error) = workspace::run(&mut command) {
                println!("{error:#}");
                break;
            }
        }
        Self { chromium: chromium(), ..self }
    }

    /// Whether Chromium is installed, so that [`Clients::check`] includes the playground.
    pub(crate) fn have_a_browser(&self) -> bool {
        self.chromium.is_some()
    }

    /// Runs every script whose name contains `only`, each against a server with the options that it needs.
    pub(crate) fn check(&self, only: &str) -> Result<()> {
        // The program `qwen3-embed` is built together with the tests of the workspace, as by `cargo test --workspace`.
        // Otherwise its dependencies would have other features and would be compiled again.
        let command = ["test", "--workspace", "--no-run", "--test=serve"];
        workspace::run(&mut cargo_command(&command))?;
        fs::create_dir_all(artifacts())?;

        let reranker = root().join("fixtures/rerankers/tied");
        let reranker = reranker.to_str().context("the path of the workspace is not Unicode")?;
        let reranker = ["--reranker-path", reranker, "--served-reranker-name", RERANKER];
        let kinds: [(&str, Setup, &[&str]); 6] = [
            ("article", article::setup()?, &["openai_article.py"]),
            (
                "both-models",
                Setup::small_model(&reranker)?,
                &[
                    "openai_client.py",
                    "langchain_client.py",
                    "guide.py",
                    "plain_http.py",
                    "openai_client.mjs",
                    "playground.mjs",
                ],
            ),
            ("bundled-model", Setup::bundled_model(), &["playground_map.mjs"]),
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
        ensure!(n_run > 0, "no script whose name contains {only:?} can be run");
        Ok(())
    }

    /// Whether the programs that a script needs are installed.
    fn can_run(&self, script: &str) -> bool {
        self.have_a_browser()
            || !["playground.mjs", "playground_map.mjs", "api_key.mjs"].contains(&script)
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
        command.arg(server.address()).current_dir(artifacts());
        command.env("MODEL", MODEL).env("SERVER_API_KEY", API_KEY).env("PYTHON", &self.python);
        command.env("FIXTURES", root().join("fixtures"));
        if let Some(program) = &self.chromium {
            command.env("CHROMIUM", program);
        }
        // Proxies and API keys in the environment are for other servers, so they are removed.
        for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "OPENAI_API_KEY"] {
            command.env_remove(variable).env_remove(variable.to_lowercase());
        }
        let mut child = command.spawn().with_context(|| format!("cannot run {script}"))?;
        let succeeded = wait_with_limit(&mut child, SCRIPT_LIMIT);
        ensure!(
            succeeded.with_context(|| script.to_owned())?,
            "{script} failed; the server's log is {}",
            server.log().display()
        );
        println!("-- {script}: {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }
}

/// The path of Chromium.
fn chromium() -> Option<PathBuf> {
    let named = env::var("CHROMIUM").ok();
    let known = ["chromium", "chromium-browser", "google-chrome"].map(str::to_owned);
    named.into_iter().chain(known).find_map(|name| {
        let found = Command::new("sh").args(["-c", "command -v \"$0\"", &name]).output().ok()?;
        let path = String::from_utf8(found.stdout).ok()?;
        found.status.success().then(|| PathBuf::from(path.trim_end()))
    })
}

/// The path of a Python that has the packages of `requirements.txt`.
fn python() -> Result<PathBuf> {
    let venv = root().join("target/e2e-python");
    let requirements = root().join("xtask/e2e/requirements.txt");
    let python = venv.join("bin/python");
    once(&venv, &fs::read_to_string(&requirements)?, || {
        workspace::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        let mut pip = Command::new(&python);
        // The modules are not compiled to bytecode, because this takes longer than the download, and most modules are
        // never imported.
        pip.args(["-m", "pip", "install", "--quiet", "--no-compile"]);
        pip.args(["--disable-pip-version-check", "--requirement"]).arg(&requirements);
        workspace::run(&mut pip).context("Python packages could not be installed")
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
        workspace::run(npm.current_dir(&folder)).context("Node packages could not be installed")
    })?;
    Ok(folder)
}

/// Calls `fill` to fill a folder, unless an earlier call with the same `description` has succeeded.
fn once(folder: &Path, description: &str, fill: impl FnOnce() -> Result<()>) -> Result<()> {
    let stamp = folder.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|stamp| stamp == description) {
        return Ok(());
    }
    fill()?;
    Ok(fs::write(&stamp, description)?)
}
