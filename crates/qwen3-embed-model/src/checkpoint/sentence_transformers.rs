use std::collections::BTreeMap;
use std::io;

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::checkpoint::folder::Folder;
use crate::{Error, Result};

/// The JSON files in which sentence-transformers describes how a model is used. All of them are optional.
#[derive(Debug)]
pub struct SentenceTransformers {
    folder: Folder,
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
    /// Reads the files in a folder.
    pub(crate) fn read(folder: &Folder) -> Result<Self> {
        let mut files = Self {
            modules: Fields::read_if_present(folder, "modules.json")?,
            prompts: Fields::read_if_present(folder, "config_sentence_transformers.json")?,
            limits: Fields::read_if_present(folder, "sentence_bert_config.json")?,
            ..Self::none(folder)
        };
        let mut configs = BTreeMap::new();
        for name in files.modules().filter_map(|module| module.folder()) {
            let config = Fields::read_if_present(&folder.folder(name), "config.json")?;
            configs.extend(config.map(|config| (name.to_owned(), config)));
        }
        files.module_configs = configs;
        Ok(files)
    }

    /// No files, for a model that has none: a GGUF file in this folder.
    pub(crate) fn none(folder: &Folder) -> Self {
        Self {
            folder: folder.clone(),
            modules: None,
            prompts: None,
            limits: None,
            module_configs: BTreeMap::new(),
        }
    }

    /// The folder that holds the files.
    pub fn folder(&self) -> &Folder {
        &self.folder
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
            path: self.folder.folder(folder).path_of("config.json"),
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
