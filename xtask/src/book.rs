//! The guide in `docs`: its links, and the book that mdBook makes of it.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace::{self, cargo_command, files, root};

/// The version of mdBook.
const VERSION: &str = "0.5.4";

/// Builds the book of `docs` in `target/book`, and checks the links between its pages and those of all Markdown files.
/// Installs mdBook in `target/mdbook`, without optimizations, unless it is there.
pub(crate) fn check() -> Result<()> {
    check_markdown()?;
    let installed = root().join("target/mdbook").join(VERSION);
    let program = installed.join("bin/mdbook");
    if !program.is_file() {
        let version = format!("--version={VERSION}");
        let mut command = cargo_command(&["install", "mdbook", &version, "--locked", "--quiet"]);
        command.args(["--no-default-features", "--config=profile.release.opt-level=0", "--root"]);
        workspace::run(command.arg(&installed))?;
    }
    workspace::run(Command::new(&program).arg("build").arg(root().join("docs")))?;
    check_pages()
}

/// Checks the links to files in all Markdown files.
fn check_markdown() -> Result<()> {
    let mut broken = Vec::new();
    for file in files(&root(), "md")? {
        let text = fs::read_to_string(&file)?;
        let folder = file.parent().context("a file without a folder")?;
        for link in between(&text, "](", ")").filter(|link| is_local(link)) {
            let (path, _) = link.split_once('#').unwrap_or((link, ""));
            if !path.is_empty() && !folder.join(path).exists() {
                broken.push(format!("{}: {link}", file.display()));
            }
        }
    }
    ensure!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
    Ok(())
}

/// Checks the links in the pages of the book, including those to headings.
fn check_pages() -> Result<()> {
    let book = root().join("target/book");
    let mut broken = Vec::new();
    // The page for errors contains links from the root of a server, and the page for printing has all pages in one.
    let special = ["404.html", "print.html", "toc.html"].map(|name| book.join(name));
    for file in files(&book, "html")?.into_iter().filter(|file| !special.contains(file)) {
        let page = fs::read_to_string(&file)?;
        let folder = file.parent().context("a file without a folder")?;
        let links = between(&page, " href=\"", "\"").chain(between(&page, " src=\"", "\""));
        for link in links.filter(|link| is_local(link)) {
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { file.clone() } else { folder.join(path) };
            let id = format!("id=\"{heading}\"");
            let is_found = match heading {
                "" => target.exists(),
                _ => fs::read_to_string(&target).is_ok_and(|target| target.contains(&id)),
            };
            if !is_found {
                broken.push(format!("{}: {link}", file.display()));
            }
        }
    }
    ensure!(broken.is_empty(), "broken links in the book:\n{}", broken.join("\n"));
    Ok(())
}

/// Whether a link leads to a file, and not to a server.
fn is_local(link: &str) -> bool {
    !["http:", "https:", "mailto:", "data:", "javascript:"].iter().any(|s| link.starts_with(s))
}

/// The parts of a text between two strings.
fn between<'a>(text: &'a str, start: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(start).skip(1).filter_map(move |rest| Some(rest.split_once(end)?.0))
}
