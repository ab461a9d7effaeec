use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use qwen3_embed_model::Error as ModelError;
use qwen3_embed_text::{DEFAULT_INSTRUCTION, instruct};
use serde::Deserialize;

use crate::source::read_json;
use crate::{Error, Result};

/// What stands before texts of each kind.
#[derive(Debug, Clone)]
pub(crate) struct Prompts {
    by_name: BTreeMap<String, String>,
    query: String,
    document: String,
}

/// What a sentence-transformers repository says of how its model is used.
#[derive(Debug, Default)]
pub(crate) struct Repository {
    pub(crate) prompts: Prompts,
    /// The most dimensions of a vector, if there are fewer than the model gives.
    pub(crate) truncate_dim: Option<NonZeroUsize>,
    /// The longest text, in tokens, that the model was tuned for.
    pub(crate) max_seq_length: Option<usize>,
}

/// `sentence_bert_config.json`
#[derive(Deserialize, Default)]
#[serde(default)]
struct TransformerConfig {
    max_seq_length: Option<usize>,
    do_lower_case: bool,
}

/// `config_sentence_transformers.json`
#[derive(Deserialize, Default)]
#[serde(default)]
struct ModelConfig {
    prompts: BTreeMap<String, Option<String>>,
    default_prompt_name: Option<String>,
    truncate_dim: Option<NonZeroUsize>,
}

/// The prompts of queries and of documents, the first that is there.
const QUERY: &[&str] = &["query"];
const DOCUMENT: &[&str] = &["document", "passage", "corpus"];

impl Default for Prompts {
    /// Those of the published models: queries behind the default instruction, documents bare.
    fn default() -> Self {
        let query = instruct(DEFAULT_INSTRUCTION, "");
        let by_name = [("query", query.clone()), ("document", String::new())];
        let by_name = by_name.map(|(name, prompt)| (name.to_owned(), prompt)).into();
        Self { by_name, query, document: String::new() }
    }
}

impl Repository {
    /// Reads what there is in a model's folder.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("sentence_bert_config.json");
        let transformer: TransformerConfig =
            if path.is_file() { read_json(&path)? } else { Default::default() };
        if transformer.do_lower_case {
            let (field, expected) = ("do_lower_case".to_owned(), "false".to_owned());
            Err(ModelError::Field { path, field, expected, got: "true".to_owned() })?;
        }
        let max_seq_length = transformer.max_seq_length;
        let path = dir.join("config_sentence_transformers.json");
        if !path.is_file() {
            // sentence-transformers puts nothing before texts then.
            let prompts = match dir.join("modules.json").is_file() {
                true => Prompts::of(ModelConfig::default())?,
                false => Prompts::default(),
            };
            return Ok(Self { prompts, max_seq_length, ..Self::default() });
        }
        let config: ModelConfig = read_json(&path)?;
        let truncate_dim = config.truncate_dim;
        Ok(Self { prompts: Prompts::of(config)?, truncate_dim, max_seq_length })
    }
}

impl Prompts {
    /// Those that a repository lists, chosen as sentence-transformers does.
    fn of(config: ModelConfig) -> Result<Self> {
        let ModelConfig { prompts, default_prompt_name, .. } = config;
        let by_name: BTreeMap<String, String> =
            prompts.into_iter().map(|(name, prompt)| (name, prompt.unwrap_or_default())).collect();
        let default = match default_prompt_name {
            None => "",
            Some(name) => by_name.get(&name).ok_or_else(|| no_such_prompt(&name, &by_name))?,
        };
        let first = |names: &[&str]| {
            let found = names.iter().find_map(|&name| by_name.get(name));
            found.map_or(default, String::as_str).to_owned()
        };
        let (query, document) = (first(QUERY), first(DOCUMENT));
        Ok(Self { by_name, query, document })
    }

    /// What stands before a query.
    pub(crate) fn query(&self) -> &str {
        &self.query
    }

    /// What stands before a document.
    pub(crate) fn document(&self) -> &str {
        &self.document
    }

    /// The prompts by their names.
    pub(crate) fn by_name(&self) -> &BTreeMap<String, String> {
        &self.by_name
    }

    /// The prompt of this name.
    pub(crate) fn named(&self, name: &str) -> Result<&str> {
        let prompt = self.by_name.get(name).map(String::as_str);
        prompt.ok_or_else(|| no_such_prompt(name, &self.by_name))
    }
}

fn no_such_prompt(name: &str, known: &BTreeMap<String, String>) -> Error {
    Error::NoSuchPrompt { name: name.to_owned(), known: known.keys().cloned().collect() }
}
