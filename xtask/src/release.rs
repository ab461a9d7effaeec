//! The archives of a release.

mod licenses;
mod sbom;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::arm;
use crate::executables;
use crate::workspace::{self, cargo_command, root};

/// Make the archives of a release
///
/// For each target, the archive contains the program, its manual pages and completions, the licenses of all packages
/// that are a part of it, and a software bill of materials. SHA256SUMS has the hashes of the archives. The same commit
/// gives the same bytes with the same compilers, in any folder: times, users and paths of this machine are left out.
/// Needs Linux on x86-64 with GNU tar and gzip. The target for ARM is compiled with the toolchain that `cargo xtask
/// arm-toolchain` assembles.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Target to make an archive for. Can be repeated [default: all targets]
    #[arg(long, value_name = "TARGET", value_parser = TARGETS)]
    target: Vec<String>,
    /// Folder of the archives [default: target/release-archives]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Accept a working tree with changes, and a version without an entry in CHANGELOG.md
    #[arg(long)]
    draft: bool,
    /// Use this program, which is built already. Needs --draft and one --target
    #[arg(long, value_name = "FILE", requires = "draft")]
    program: Option<PathBuf>,
}

/// The targets of a release.
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", arm::TARGET];

/// The package with the program.
const PACKAGE: &str = "qwen3-embed-cli";

/// The version of the workspace, which is that of this package.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The files of the repository that every archive contains, and their names in it.
const FILES: [(&str, &str); 5] = [
    ("README.md", "README.md"),
    ("CHANGELOG.md", "CHANGELOG.md"),
    ("LICENSE-APACHE", "LICENSE-APACHE"),
    ("LICENSE-MIT", "LICENSE-MIT"),
    ("crates/qwen3-embed-plot/fonts/OFL.txt", "LICENSE-FONT"),
];

/// The shells with completions, and the names of the files.
const SHELLS: [(&str, &str); 5] = [
    ("bash", "qwen3-embed.bash"),
    ("elvish", "qwen3-embed.elv"),
    ("fish", "qwen3-embed.fish"),
    ("powershell", "_qwen3-embed.ps1"),
    ("zsh", "_qwen3-embed"),
];

/// Runs `cargo xtask release`.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !args.draft {
        check_ready()?;
    }
    let targets: Vec<&str> = match &args.target[..] {
        [] => TARGETS.to_vec(),
        targets => targets.iter().map(String::as_str).collect(),
    };
    ensure!(args.program.is_none() || targets.len() == 1, "`--program` needs one `--target`");
    let out = args.out.clone().unwrap_or_else(|| root().join("target/release-archives"));
    fs::create_dir_all(&out)?;
    let time = time()?;
    let mut sums = String::new();
    for target in targets {
        let compiler = Compiler::of(target)?;
        let program = match &args.program {
            Some(program) => program.clone(),
            None => compiler.build(&time)?,
        };
        let archive = compiler.archive(&program, &out, &time)?;
        let name = archive.file_name().context("a path without a name")?.to_string_lossy();
        let hash = Sha256::digest(fs::read(&archive)?);
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        sums += &format!("{hash}  {name}\n");
    }
    fs::write(out.join("SHA256SUMS"), &sums)?;
    print!("{sums}");
    Ok(())
}

/// Checks that a release can be made from the working tree.
fn check_ready() -> Result<()> {
    let changes = git(&["status", "--porcelain"])?;
    ensure!(changes.is_empty(), "the working tree has changes:\n{changes}");
    let changelog = fs::read_to_string(root().join("CHANGELOG.md"))?;
    let entry = format!("## [{VERSION}]");
    ensure!(changelog.contains(&entry), "CHANGELOG.md has no `{entry}`");
    Ok(())
}

/// The time of the files in the archives, in seconds since 1970: `SOURCE_DATE_EPOCH`, or the time of the commit.
fn time() -> Result<String> {
    match env::var("SOURCE_DATE_EPOCH") {
        Ok(time) => Ok(time),
        Err(_) => git(&["log", "-1", "--format=%ct"]),
    }
}

/// The output of a git command.
fn git(args: &[&str]) -> Result<String> {
    let output = Command::new("git").args(args).current_dir(root()).output()?;
    ensure!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// What compiles and runs programs for a target.
struct Compiler<'a> {
    target: &'a str,
    /// The toolchain of a target that is not this machine.
    arm: Option<arm::Toolchain>,
}

impl<'a> Compiler<'a> {
    fn of(target: &'a str) -> Result<Self> {
        let is_arm = target == arm::TARGET;
        let arm = is_arm.then(|| arm::Toolchain::assemble(&arm::default_folder())).transpose()?;
        Ok(Self { target, arm })
    }

    /// Compiles the program. Returns its path.
    fn build(&self, time: &str) -> Result<PathBuf> {
        let mut build = cargo_command(&["build", "--locked", "--release", "--bin=qwen3-embed"]);
        build.args(["--package", PACKAGE, "--target", self.target, "--message-format=json"]);
        // Function names stay in the program, for the messages of panics.
        build.arg("--config=profile.release.strip='debuginfo'");
        build.envs(self.arm.iter().flat_map(arm::Toolchain::variables));
        build.env("CARGO_INCREMENTAL", "0").env("SOURCE_DATE_EPOCH", time);
        // Other flags than in the builds of other tasks, so the build has a folder of its own.
        build.env("CARGO_TARGET_DIR", root().join("target/release-build"));
        let paths = remapped_paths()?;
        let flags = paths.iter().map(|paths| format!("--remap-path-prefix={paths}"));
        build.env("CARGO_ENCODED_RUSTFLAGS", flags.collect::<Vec<_>>().join("\x1f"));
        let flags = paths.iter().map(|paths| format!("-ffile-prefix-map={paths}"));
        build.env(
            format!("CFLAGS_{}", self.target.replace('-', "_")),
            flags.collect::<Vec<_>>().join(" "),
        );
        let built = executables::build(&mut build)?;
        let [program] = &built[..] else { bail!("expected one program, got {built:?}") };
        Ok(program.path.clone())
    }

    /// Makes the archive in the folder `out`. Returns its path.
    fn archive(&self, program: &Path, out: &Path, time: &str) -> Result<PathBuf> {
        let name = format!("qwen3-embed-{VERSION}-{}", self.target);
        let folder = out.join(&name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let packed = folder.join("qwen3-embed");
        fs::copy(program, &packed).with_context(|| program.display().to_string())?;
        for (from, to) in FILES {
            fs::copy(root().join(from), folder.join(to)).with_context(|| from.to_owned())?;
        }
        let packages = sbom::packages(self.target)?;
        fs::write(folder.join("qwen3-embed.cdx.json"), sbom::bill(&packages, PACKAGE)?)?;
        fs::write(folder.join("LICENSES-OF-PACKAGES"), licenses::notices(&packages)?)?;
        self.write_manual(&packed, &folder)?;
        fs::write(folder.join("BUILD"), self.about_build(&packed)?)?;
        pack(out, &name, time)
    }

    /// Writes the manual pages and the completions that the program prints.
    fn write_manual(&self, program: &Path, folder: &Path) -> Result<()> {
        let (pages, completions) = (folder.join("man/man1"), folder.join("completions"));
        fs::create_dir_all(&pages)?;
        fs::create_dir_all(&completions)?;
        for (shell, file) in SHELLS {
            fs::write(completions.join(file), self.output(program, &["completions", shell])?)?;
        }
        fs::write(pages.join("qwen3-embed.1"), self.output(program, &["man"])?)?;
        let help = String::from_utf8(self.output(program, &["--help"])?)?;
        for command in commands(&help)? {
            let page = self.output(program, &["man", command])?;
            fs::write(pages.join(format!("qwen3-embed-{command}.1")), page)?;
        }
        Ok(())
    }

    /// The standard output of the program.
    fn output(&self, program: &Path, args: &[&str]) -> Result<Vec<u8>> {
        let mut command = match &self.arm {
            Some(arm) => arm.command(program),
            None => Command::new(program),
        };
        let output = command.args(args).output()?;
        ensure!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.stdout)
    }

    /// What is needed to build the program again, and to run it.
    fn about_build(&self, program: &Path) -> Result<String> {
        let variables = self.arm.iter().flat_map(arm::Toolchain::variables);
        let rustc = variables.into_iter().find(|(name, _)| *name == "RUSTC");
        let rustc = rustc.map_or_else(|| "rustc".to_owned(), |(_, path)| path);
        let version = Command::new(rustc).arg("--version").current_dir(root()).output()?;
        let version = String::from_utf8(version.stdout)?;
        let glibc = least_glibc(&fs::read(program)?);
        let glibc = glibc.map_or("none".to_owned(), |(major, minor)| format!("{major}.{minor}"));
        Ok(format!(
            "version: {VERSION}\ncommit: {}\ntarget: {}\ncompiler: {}\nleast version of glibc: {glibc}\n",
            git(&["rev-parse", "HEAD"])?,
            self.target,
            version.trim(),
        ))
    }
}

/// The paths that compilers must not write into the program, each with what they write instead: `path=other`. If a
/// path is inside of another one, it comes later.
fn remapped_paths() -> Result<[String; 2]> {
    let home = match (env::var("CARGO_HOME"), env::var("HOME")) {
        (Ok(cargo), _) => cargo,
        (_, Ok(home)) => format!("{home}/.cargo"),
        _ => bail!("neither CARGO_HOME nor HOME is set"),
    };
    let root = root().canonicalize()?;
    Ok([format!("{home}=/cargo"), format!("{}=/qwen3-embed", root.display())])
}

/// Packs the folder `name` in `out`, with files in the order of their names, and without the users, permissions and
/// times of this machine.
fn pack(out: &Path, name: &str, time: &str) -> Result<PathBuf> {
    let file = out.join(format!("{name}.tar"));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--format=gnu", "--mode=u=rwX,go=rX"]);
    tar.args(["--owner=0", "--group=0", "--numeric-owner", &format!("--mtime=@{time}")]);
    tar.env("LC_ALL", "C").arg("--file").arg(&file).arg("--directory").arg(out).arg(name);
    workspace::run(&mut tar)?;
    workspace::run(Command::new("gzip").args(["--force", "--best", "--no-name"]).arg(&file))?;
    Ok(out.join(format!("{name}.tar.gz")))
}

/// The commands in the help of the program, except for `help`.
fn commands(help: &str) -> Result<Vec<&str>> {
    let (_, list) = help.split_once("Commands:\n").context("the help lists no commands")?;
    let names = list.lines().take_while(|line| !line.is_empty());
    let names = names.filter_map(|line| line.split_whitespace().next());
    Ok(names.filter(|name| *name != "help").collect())
}

/// The newest version of glibc whose functions a program uses, from the names of versions in its symbol table.
fn least_glibc(program: &[u8]) -> Option<(u32, u32)> {
    const NAME: &[u8] = b"GLIBC_";
    let version = |bytes: &[u8]| {
        let end = bytes.iter().position(|byte| !byte.is_ascii_digit() && *byte != b'.')?;
        let mut numbers = std::str::from_utf8(&bytes[..end]).ok()?.split('.');
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    };
    let names = program.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME);
    names.filter_map(|(start, _)| version(&program[start + NAME.len()..])).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_glibc_version_is_found() {
        assert_eq!(least_glibc(b"\0GLIBC_2.4\0x\0GLIBC_2.34\0GLIBC_2.17\0"), Some((2, 34)));
        assert_eq!(least_glibc(b"GLIBC_PRIVATE\0"), None);
    }

    #[test]
    fn commands_are_read_from_help() {
        let help =
            "About\n\nUsage: a\n\nCommands:\n  embed  Embed\n  help   Help\n\nOptions:\n  -h\n";
        assert_eq!(commands(help).unwrap(), ["embed"]);
        assert!(commands("Usage: a").is_err());
    }

    #[test]
    fn archive_has_the_same_bytes_again() {
        let make = |content: &str| {
            let out = tempfile::tempdir().unwrap();
            let folder = out.path().join("a");
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("file"), content).unwrap();
            fs::read(pack(out.path(), "a", "1700000000").unwrap()).unwrap()
        };
        let first = make("content");
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert_eq!(first, make("content"));
        assert_ne!(first, make("changed"));
    }
}
