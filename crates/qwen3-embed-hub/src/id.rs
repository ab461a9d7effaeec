use std::fmt;

/// A repository on the hub, `owner/name`, at a branch, a tag or a commit.
///
/// Every value is safe to use in a path: it has no `..`, no empty parts and no backslashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoId {
    name: String,
    revision: Option<String>,
}

impl RepoId {
    /// Creates an id from a repository's name and revision, if both follow the hub's rules.
    ///
    /// `name` is `owner/name`. `revision` is a branch, a tag or a commit hash; `None` is the branch `main`. Returns
    /// `None` if the hub could not have such a repository or revision.
    ///
    /// # Examples
    ///
    /// ```
    /// use qwen3_embed_hub::RepoId;
    ///
    /// let id = RepoId::new("Qwen/Qwen3-Embedding-0.6B", Some("v1.0")).unwrap();
    /// assert_eq!(id.to_string(), "Qwen/Qwen3-Embedding-0.6B@v1.0");
    /// assert_eq!(RepoId::new("../secrets", None), None);
    /// ```
    pub fn new(name: &str, revision: Option<&str>) -> Option<Self> {
        let (owner, repo) = name.split_once('/')?;
        let is_valid = is_name(owner) && is_name(repo) && revision.is_none_or(is_revision);
        is_valid.then(|| Self { name: name.to_owned(), revision: revision.map(str::to_owned) })
    }

    /// The repository, `owner/name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The branch, tag or commit hash: `main` if none was given.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The commit hash, if the revision is a commit hash. The files of a commit never change.
    pub fn commit(&self) -> Option<&str> {
        self.revision.as_deref().filter(|revision| is_commit(revision))
    }

    /// The revision as it was given to [`RepoId::new`].
    pub fn given_revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// Whether a text is a relative path that cannot lead out of its folder.
pub fn is_relative_path(path: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.+ ()".contains(&b);
    let part = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(is_plain);
    path.split('/').all(part)
}

/// Whether a revision is the full hash of a commit.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether the hub allows this name for an owner or a repository.
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

/// Whether git allows this name for a branch or a tag. Such names may contain slashes.
fn is_revision(revision: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_graphic() && !b"\\~^:?*[@%#\"<>|".contains(&b);
    let part = |part: &str| !part.is_empty() && !part.starts_with('.');
    revision.bytes().all(is_plain) && !revision.contains("..") && revision.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_names_and_revisions_of_the_hub() {
        for (name, revision) in [
            ("Qwen/Qwen3-Embedding-0.6B", None),
            ("_a/b_", None),
            ("a/b", Some("main")),
            ("a/b", Some("refs/pr/1")),
            ("a/b", Some("v1.0")),
        ] {
            let id = RepoId::new(name, revision).unwrap();
            assert_eq!((id.name(), id.given_revision()), (name, revision));
            assert_eq!(id.revision(), revision.unwrap_or("main"));
            let revision = revision.map_or_else(String::new, |revision| format!("@{revision}"));
            assert_eq!(id.to_string(), format!("{name}{revision}"));
        }
    }

    #[test]
    fn rejects_invalid_names() {
        let long = format!("a/{}", "b".repeat(97));
        let names = [
            "", "/", "a", "a/", "/b", "a/b/c", "./a", "../a", "~/a", "a/..", "a/b..c", "a/b--c",
            "a/-b", "a/b.", "a b/c", "ä/b", "C:/b", "C:\\b", "a\\b", &long,
        ];
        for name in names {
            assert_eq!(RepoId::new(name, None), None, "{name}");
        }
    }

    #[test]
    fn rejects_invalid_revisions() {
        for revision in ["", "../c", "c//d", "/c", "c d", "c%2f", "c@d"] {
            assert_eq!(RepoId::new("a/b", Some(revision)), None, "{revision}");
        }
    }

    #[test]
    fn only_a_full_hash_is_a_commit() {
        let commit = "97b0c614be4d77ee51c0cef4e5f07c00f9eb65b3";
        assert_eq!(RepoId::new("a/b", Some(commit)).unwrap().commit(), Some(commit));
        for revision in ["main", "97b0c61", &commit.to_uppercase()] {
            assert_eq!(RepoId::new("a/b", Some(revision)).unwrap().commit(), None);
        }
    }

    #[test]
    fn relative_paths_stay_inside_their_folder() {
        for path in ["a", "a/b.gguf", "a b (1)/c+d"] {
            assert!(is_relative_path(path), "{path}");
        }
        for path in ["", "/a", "../a", "a/../b", "a//b", "a/", "./a", "a\\b", "C:/a"] {
            assert!(!is_relative_path(path), "{path}");
        }
    }
}
