/// The names that clients call a model by: the one in responses, and others that mean the same model.
///
/// # Examples
///
/// ```
/// use qwen3_embed_server::ModelNames;
///
/// let names = ModelNames::new("Qwen/Qwen3-Embedding-4B").with_others(["embedder".to_owned()]);
/// assert_eq!(names.served(), "Qwen/Qwen3-Embedding-4B");
/// assert_eq!(names.all().collect::<Vec<_>>(), ["Qwen/Qwen3-Embedding-4B", "embedder"]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelNames {
    served: String,
    others: Vec<String>,
}

impl ModelNames {
    /// One name.
    pub fn new(served: impl Into<String>) -> Self {
        Self { served: served.into(), others: Vec::new() }
    }

    /// The same names and these. A name that is there already is not added again.
    pub fn with_others(mut self, others: impl IntoIterator<Item = String>) -> Self {
        for other in others {
            if !self.has(&other) {
                self.others.push(other);
            }
        }
        self
    }

    /// The name in responses.
    pub fn served(&self) -> &str {
        &self.served
    }

    /// Every name, the one in responses first.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        [&self.served].into_iter().chain(&self.others).map(String::as_str)
    }

    /// Whether this is one of the names.
    pub fn has(&self, name: &str) -> bool {
        self.all().any(|own| own == name)
    }
}

impl From<&str> for ModelNames {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl From<String> for ModelNames {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}
