/// The names of a model: the served name, which responses contain, and aliases. Requests may use any of these names.
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
    /// Creates the names of a model that has a served name and no aliases.
    pub fn new(served: impl Into<String>) -> Self {
        Self { served: served.into(), others: Vec::new() }
    }

    /// Adds aliases. A name that the model already has is not added again.
    pub fn with_others(mut self, others: impl IntoIterator<Item = String>) -> Self {
        for other in others {
            if !self.has(&other) {
                self.others.push(other);
            }
        }
        self
    }

    /// The served name, which responses contain.
    pub fn served(&self) -> &str {
        &self.served
    }

    /// All names, the served name first.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        [&self.served].into_iter().chain(&self.others).map(String::as_str)
    }

    /// Whether `name` is one of the names.
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
