//! Reads the executables that cargo has built from cargo's messages in the format `--message-format=json`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// An executable that cargo has built.
#[derive(Debug, PartialEq)]
pub(crate) struct Executable {
    pub(crate) package: String,
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Whether the executable runs tests.
    pub(crate) is_test: bool,
}

/// Runs a build command, which has the option `--message-format=json`, and returns the executables.
pub(crate) fn build(command: &mut Command) -> Result<Vec<Executable>> {
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{command:?} failed");
    executables(&output.stdout)
}

/// The executables in cargo's messages.
fn executables(messages: &[u8]) -> Result<Vec<Executable>> {
    let mut executables = Vec::new();
    for message in messages.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let message: Value = serde_json::from_slice(message)?;
        let text = |pointer| message.pointer(pointer).and_then(Value::as_str);
        let parts = (text("/executable"), text("/manifest_path"), text("/target/name"));
        let (Some(path), Some(manifest), Some(name)) = parts else { continue };
        // In this workspace, the folder of a package has the same name as the package.
        let package = Path::new(manifest).parent().and_then(Path::file_name);
        let package = package.with_context(|| manifest.to_owned())?.to_string_lossy().into_owned();
        let is_test = message.pointer("/profile/test").and_then(Value::as_bool).unwrap_or(false);
        executables.push(Executable { package, name: name.to_owned(), path: path.into(), is_test });
    }
    Ok(executables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_executables_in_cargo_messages() {
        let messages = br#"{"reason":"compiler-artifact","manifest_path":"/a/b/Cargo.toml","target":{"name":"library"},"executable":null}
{"reason":"compiler-artifact","manifest_path":"/a/b/Cargo.toml","target":{"name":"test"},"profile":{"test":true},"executable":"/c/test"}
{"reason":"build-finished","success":true}
"#;
        let (package, name, path) = ("b".to_owned(), "test".to_owned(), PathBuf::from("/c/test"));
        let expected = Executable { package, name, path, is_test: true };
        assert_eq!(executables(messages).unwrap(), [expected]);
        assert!(executables(b"{").is_err());
    }
}
