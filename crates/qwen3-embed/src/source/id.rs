use std::fmt;

use qwen3_embed_hub::{RepoId, is_relative_path};

/// A model on the hub: `owner/name[:gguf][@revision]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelId {
    pub(super) repo: RepoId,
    /// The name of a GGUF file, or the end of its name, such as `Q8_0`.
    pub(super) gguf: Option<String>,
}

impl ModelId {
    /// Parses an id. Returns `None` if the text cannot be an id.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (rest, revision) = split(text, '@');
        let (name, gguf) = split(rest, ':');
        let is_file = name.to_lowercase().ends_with(".gguf");
        let repo = RepoId::new(name, revision).filter(|_| !is_file)?;
        let gguf = gguf.map(str::to_owned);
        gguf.as_deref().is_none_or(is_relative_path).then_some(Self { repo, gguf })
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.repo.name())?;
        if let Some(gguf) = &self.gguf {
            write!(f, ":{gguf}")?;
        }
        if let Some(revision) = self.repo.given_revision() {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

/// The text before the first separator, and the text after that separator, or `None` if there is no separator.
fn split(text: &str, separator: char) -> (&str, Option<&str>) {
    match text.split_once(separator) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_repository_gguf_file_and_revision() {
        let cases = [
            ("Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Embedding-0.6B", None, None),
            ("a/b@main", "a/b", None, Some("main")),
            ("a/b@refs/pr/1", "a/b", None, Some("refs/pr/1")),
            ("a/b:Q8_0", "a/b", Some("Q8_0"), None),
            ("a/b:sub/m-Q4_K_M.gguf@v1.0", "a/b", Some("sub/m-Q4_K_M.gguf"), Some("v1.0")),
        ];
        for (text, name, gguf, revision) in cases {
            let id = ModelId::parse(text).unwrap();
            let parts = (id.repo.name(), id.gguf.as_deref(), id.repo.given_revision());
            assert_eq!(parts, (name, gguf, revision), "{text}");
            assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn rejects_texts_that_cannot_be_ids() {
        let texts = [
            "",
            "a",
            "a/b/c",
            "../a",
            "a/b.gguf",
            "a/b@",
            "a/b@../c",
            "a/b@c@d",
            "a/b:",
            "a/b:../c",
            "a/b:/c",
            "a/b:c//d",
            "https://a/b",
        ];
        for text in texts {
            assert_eq!(ModelId::parse(text), None, "{text}");
        }
    }
}
