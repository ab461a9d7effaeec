use std::collections::BTreeMap;

use qwen3_embed_model::{Fields, SentenceTransformers};
use qwen3_embed_text::{DEFAULT_INSTRUCTION, instruct};
use serde_json::Value;

use crate::{Error, Result};

/// The prompts that are put before texts.
#[derive(Debug, Clone)]
pub(crate) struct Prompts {
    by_name: BTreeMap<String, String>,
    query: String,
    document: String,
}

/// The settings of a sentence-transformers repository that concern texts and vectors.
#[derive(Debug, Default)]
pub(crate) struct Repository {
    pub(crate) prompts: Prompts,
    /// The default number of dimensions of the vectors, if the model has at least as many.
    pub(crate) truncate_dim: Option<usize>,
    /// The default maximum length of a text, in tokens.
    pub(crate) max_seq_length: Option<usize>,
}

/// The names of the prompts for queries and for documents. The first name that a repository has is used.
const QUERY: &[&str] = &["query"];
const DOCUMENT: &[&str] = &["document", "passage", "corpus"];

impl Default for Prompts {
    /// The prompts of the published models: the default instruction for queries, and an empty prompt for documents.
    fn default() -> Self {
        let query = instruct(DEFAULT_INSTRUCTION, "");
        let by_name = [("query", query.clone()), ("document", String::new())];
        let by_name = by_name.map(|(name, prompt)| (name.to_owned(), prompt)).into();
        Self { by_name, query, document: String::new() }
    }
}

impl Repository {
    /// Reads the settings in a repository's files.
    pub(crate) fn of(files: &SentenceTransformers) -> Result<Self> {
        let mut max_seq_length = None;
        if let Some(limits) = files.limits_json() {
            limits.expect_if_present("do_lower_case", "false", |value| value == false)?;
            max_seq_length = number(limits, "max_seq_length", 0)?;
        }
        let Some(fields) = files.prompts_json() else {
            // sentence-transformers puts nothing before texts if a repository names no prompts.
            let prompts = match files.modules_json() {
                Some(_) => Prompts::choose(BTreeMap::new(), None)?,
                None => Prompts::default(),
            };
            return Ok(Self { prompts, max_seq_length, ..Self::default() });
        };
        Ok(Self {
            prompts: Prompts::choose(prompts(fields)?, fields.string("default_prompt_name")?)?,
            truncate_dim: number(fields, "truncate_dim", 1)?,
            max_seq_length,
        })
    }
}

impl Prompts {
    /// Chooses the prompts for queries and documents among those of a repository, as sentence-transformers does.
    fn choose(by_name: BTreeMap<String, String>, default: Option<&str>) -> Result<Self> {
        let default = match default {
            None => "",
            Some(name) => by_name.get(name).ok_or_else(|| no_such_prompt(name, &by_name))?,
        };
        let first = |names: &[&str]| {
            let found = names.iter().find_map(|&name| by_name.get(name));
            found.map_or(default, String::as_str).to_owned()
        };
        let (query, document) = (first(QUERY), first(DOCUMENT));
        Ok(Self { by_name, query, document })
    }

    /// The prompt of queries.
    pub(crate) fn query(&self) -> &str {
        &self.query
    }

    /// The prompt of documents.
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

/// The prompts of a `config_sentence_transformers.json` by their names. A prompt that is `null` counts as empty.
pub(crate) fn prompts(fields: &Fields) -> Result<BTreeMap<String, String>> {
    let field = "prompts";
    let Some(value) = fields.get(field) else { return Ok(BTreeMap::new()) };
    let prompt = |(name, prompt): (&String, &Value)| match prompt {
        Value::String(prompt) => Some((name.clone(), prompt.clone())),
        Value::Null => Some((name.clone(), String::new())),
        _ => None,
    };
    let prompts = value.as_object().and_then(|prompts| prompts.iter().map(prompt).collect());
    prompts.ok_or_else(|| fields.error(field, "an object whose values are strings").into())
}

/// The whole number in a field. `None` if the field is absent. A number below `min` is an error.
fn number(fields: &Fields, field: &str, min: u64) -> Result<Option<usize>> {
    let Some(value) = fields.get(field) else { return Ok(None) };
    let number = value.as_u64().filter(|number| *number >= min);
    match number.and_then(|number| usize::try_from(number).ok()) {
        Some(number) => Ok(Some(number)),
        None => Err(fields.error(field, format!("a whole number of at least {min}")).into()),
    }
}

fn no_such_prompt(name: &str, known: &BTreeMap<String, String>) -> Error {
    Error::NoSuchPrompt { name: name.to_owned(), known: known.keys().cloned().collect() }
}
