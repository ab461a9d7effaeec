use std::fmt;

/// A model of the hub: `owner/name`, then perhaps `:` and which of its GGUF files, then perhaps `@` and a
/// revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelId {
    /// `owner/name`
    pub(super) repo: String,
    /// A GGUF file's name, or what its name has in it.
    pub(super) gguf: Option<String>,
    /// A branch, a tag or a commit.
    pub(super) revision: Option<String>,
}

impl ModelId {
    /// The id that a text is, if it can be one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (rest, revision) = split(text, '@');
        let (repo, gguf) = split(rest, ':');
        let (owner, name) = repo.split_once('/')?;
        let is_id = is_name(owner)
            && is_name(name)
            && !name.to_lowercase().ends_with(".gguf")
            && gguf.is_none_or(is_file)
            && revision.is_none_or(is_revision);
        is_id.then(|| Self {
            repo: repo.to_owned(),
            gguf: gguf.map(str::to_owned),
            revision: revision.map(str::to_owned),
        })
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(gguf) = &self.gguf {
            write!(f, ":{gguf}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

/// What is before the first `at`, and what is behind it if there is one.
fn split(text: &str, at: char) -> (&str, Option<&str>) {
    match text.split_once(at) {
        Some((before, behind)) => (before, Some(behind)),
        None => (text, None),
    }
}

/// Whether it is the relative path of a file, with nothing in it that leads elsewhere.
pub(super) fn is_file(path: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.+ ()".contains(&b);
    let part = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(is_plain);
    path.split('/').all(part)
}

/// Whether it can be an owner's or a model's name, by the hub's rules.
fn is_name(name: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let edge = |b: Option<&u8>| b.is_some_and(|b| !b"-.".contains(b));
    let bytes = name.as_bytes();
    bytes.len() <= 96
        && bytes.iter().all(|&b| is_plain(b))
        && edge(bytes.first())
        && edge(bytes.last())
        && !name.contains("--")
        && !name.contains("..")
}

/// Whether git would take it as the name of a branch or a tag, which may have slashes in it.
fn is_revision(revision: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_graphic() && !b"\\~^:?*[@%#\"<>|".contains(&b);
    let part = |part: &str| !part.is_empty() && !part.starts_with('.');
    revision.bytes().all(is_plain) && !revision.contains("..") && revision.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_taken_apart() {
        let cases = [
            ("Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Embedding-0.6B", None, None),
            ("a/b@main", "a/b", None, Some("main")),
            ("a/b@refs/pr/1", "a/b", None, Some("refs/pr/1")),
            ("a/b:Q8_0", "a/b", Some("Q8_0"), None),
            ("a/b:sub/m-Q4_K_M.gguf@v1.0", "a/b", Some("sub/m-Q4_K_M.gguf"), Some("v1.0")),
            ("_a/b_", "_a/b_", None, None),
        ];
        for (text, repo, gguf, revision) in cases {
            let id = ModelId::parse(text).unwrap();
            let parts = (id.repo.as_str(), id.gguf.as_deref(), id.revision.as_deref());
            assert_eq!(parts, (repo, gguf, revision), "{text}");
            assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_an_id_is_none() {
        let long = format!("a/{}", "b".repeat(97));
        let texts = [
            "",
            "/",
            "a",
            "a/",
            "/b",
            "a/b/c",
            "./a",
            "../a",
            "~/a",
            "a/..",
            "a/b..c",
            "a/b--c",
            "a/-b",
            "a/b.",
            "a b/c",
            "ä/b",
            "C:/b",
            "C:\\b",
            "a\\b",
            "a/b.gguf",
            "a/b@",
            "a/b@../c",
            "a/b@c//d",
            "a/b@/c",
            "a/b@c d",
            "a/b@c%2f",
            "a/b@c@d",
            "a/b:",
            "a/b:../c",
            "a/b:/c",
            "a/b:c//d",
            "https://a/b",
            &long,
        ];
        for text in texts {
            assert_eq!(ModelId::parse(text), None, "{text}");
        }
    }
}
