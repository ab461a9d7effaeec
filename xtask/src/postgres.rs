//! A PostgreSQL server with pgvector for a test, from Debian's packages, without changes to the machine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::{debian, workspace};

/// The packages that the server does not need: its compiler for queries (LLVM), its scripts (Perl), and others.
const LEFT_OUT: &str =
    "_all\\.deb$|^(perl|libperl|libllvm|libz3|postgresql-client|procps|passwd|openssl_)";

/// The program that makes the folder of a server's data.
const INITDB: &str = "usr/lib/postgresql/17/bin/initdb";

/// The server.
const POSTGRES: &str = "usr/lib/postgresql/17/bin/postgres";

/// Run a command with a PostgreSQL server with pgvector
///
/// The server is assembled from Debian's packages, listens on a free port of this machine, and ends with the command.
/// The environment variable `DATABASE_URL` has its address. This task needs Debian or a distribution with its packages,
/// on x86-64.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The command and its arguments, such as `cargo run --release --example pgvector_search`
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs `cargo xtask postgres`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let [program, arguments @ ..] = &args.command[..] else { bail!("expected a command") };
    let server = Server::start()?;
    workspace::run(Command::new(program).args(arguments).env("DATABASE_URL", server.url()))
}

/// A server with an empty database. Dropping this value stops the server and deletes its files.
pub(crate) struct Server {
    child: Child,
    port: u16,
    /// The programs and the data.
    _folder: TempDir,
}

impl Server {
    /// Assembles the server and waits until it accepts connections.
    pub(crate) fn start() -> Result<Self> {
        // The user that runs the server may be unable to enter the folder of the workspace.
        let folder = TempDir::with_prefix("qwen3-embed-postgres-")?;
        workspace::run(Command::new("chmod").arg("755").arg(folder.path()))?;
        let path = folder.path().join("postgres");
        debian::unpack(&path, "postgresql-17-pgvector", LEFT_OUT, &[INITDB, POSTGRES])?;

        let data = folder.path().join("data");
        fs::create_dir(&data)?;
        let programs = path.join("root");
        let is_root = Command::new("id").arg("-u").output()?.stdout.trim_ascii() == b"0";
        if is_root {
            workspace::run(Command::new("chown").arg("nobody").arg(&data))?;
        }
        let mut initialize = program(&programs, INITDB, is_root);
        initialize.args(["--no-locale", "--encoding=UTF8", "--auth=trust", "--username=postgres"]);
        initialize.arg("--no-sync").arg("--pgdata").arg(&data).stdout(Stdio::null());
        workspace::run(&mut initialize)?;

        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut server = program(&programs, POSTGRES, is_root);
        server.arg("-D").arg(&data).args(["-c", "listen_addresses=127.0.0.1"]);
        server.args(["-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "jit=off"]);
        server.args(["-c", &format!("port={port}")]).stderr(Stdio::piped());
        let child = server.spawn().context("cannot run PostgreSQL")?;
        let mut server = Self { child, port, _folder: folder };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// The address of the database.
    pub(crate) fn url(&self) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/postgres", self.port)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let log = self.child.stderr.take().context("the server has no log")?;
        let mut lines = BufReader::new(log).lines();
        let mut log = String::new();
        for line in lines.by_ref() {
            let line = line?;
            if line.contains("database system is ready to accept connections") {
                // The server would wait if nobody read its log.
                thread::spawn(move || lines.for_each(drop));
                return Ok(());
            }
            log.push_str(&line);
            log.push('\n');
        }
        bail!("PostgreSQL has ended:\n{log}")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGINT ends all connections and then the server.
        let _ = Command::new("kill").arg("-INT").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// A program of PostgreSQL. It refuses to run as root, so root runs it as another user.
fn program(folder: &Path, name: &str, is_root: bool) -> Command {
    let path: PathBuf = folder.join(name);
    if !is_root {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(path);
    // The current folder may be one that this user cannot enter.
    command.current_dir("/");
    command
}
