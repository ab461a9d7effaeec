use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::{Error, Result};

/// The JSON files in which sentence-transformers describes how a model is used. All of them are optional.
#[derive(Debug, Default)]
pub struct SentenceTransformers {
    dir: PathBuf,
    modules: Option<Fields>,
    prompts: Option<Fields>,
    limits: Option<Fields>,
    /// The `config.json` of each module, by the name of the module's folder.
    module_configs: BTreeMap<String, Fields>,
}

/// A module of `modules.json`: a step on the way from tokens to a vector or a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Module<'a> {
    /// The Python class, such as `sentence_transformers.models.Pooling`. Empty if `type` is missing.
    pub class: &'a str,
    /// The folder of the module, relative to `modules.json`. Empty if `path` is missing.
    pub path: &'a str,
}

/// The Python package whose modules are supported, and the dot after its name. Modules of other packages need Python
/// code from the repository of the model.
const PACKAGE: &str = "sentence_transformers.";

impl SentenceTransformers {
    /// Reads the files in `dir`.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let mut files = Self {
            dir: dir.to_path_buf(),
            modules: Fields::read_if_present(&dir.join("modules.json"))?,
            prompts: Fields::read_if_present(&dir.join("config_sentence_transformers.json"))?,
            limits: Fields::read_if_present(&dir.join("sentence_bert_config.json"))?,
            module_configs: BTreeMap::new(),
        };
        let mut configs = BTreeMap::new();
        for folder in files.modules().filter_map(|module| module.folder()) {
            let config = Fields::read_if_present(&dir.join(folder).join("config.json"))?;
            configs.extend(config.map(|config| (folder.to_owned(), config)));
        }
        files.module_configs = configs;
        Ok(files)
    }

    /// The folder that holds the files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `modules.json`.
    pub fn modules_json(&self) -> Option<&Fields> {
        self.modules.as_ref()
    }

    /// `config_sentence_transformers.json`: prompts, the similarity function and the dimensions.
    pub fn prompts_json(&self) -> Option<&Fields> {
        self.prompts.as_ref()
    }

    /// `sentence_bert_config.json`: the longest text that the model was tuned for.
    pub fn limits_json(&self) -> Option<&Fields> {
        self.limits.as_ref()
    }

    /// The modules in the order in which they run. The iterator is empty if there is no `modules.json`.
    pub fn modules(&self) -> impl Iterator<Item = Module<'_>> {
        self.modules.iter().flat_map(|fields| {
            (0..fields.len()).map(|idx| {
                let field = |name: &str| fields.get(&format!("{idx}.{name}"));
                let [class, path] = ["type", "path"]
                    .map(|name| field(name).and_then(Value::as_str).unwrap_or_default());
                Module { class, path }
            })
        })
    }

    /// The `config.json` in a module's folder.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file does not exist.
    pub fn module_config(&self, folder: &str) -> Result<&Fields> {
        self.module_configs.get(folder).ok_or_else(|| Error::Io {
            path: self.dir.join(folder).join("config.json"),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// Whether a module pools the hidden states of the tokens, as in every embedding model.
    pub(crate) fn has_pooling(&self) -> bool {
        self.modules().any(|module| module.class.rsplit('.').next() == Some("Pooling"))
    }
}

impl<'a> Module<'a> {
    /// The name of the class if it belongs to the package `sentence_transformers`.
    pub fn name(&self) -> Option<&'a str> {
        self.class.strip_prefix(PACKAGE).and_then(|path| path.rsplit('.').next())
    }

    /// The name of the module's folder. `None` unless `path` names a folder beside `modules.json`.
    pub fn folder(&self) -> Option<&'a str> {
        let is_name = !self.path.is_empty()
            && !self.path.starts_with('.')
            && !self.path.contains(['/', '\\', ':']);
        is_name.then_some(self.path)
    }
}
