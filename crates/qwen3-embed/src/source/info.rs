use std::collections::BTreeMap;
use std::path::Path;

use qwen3_embed_model::{Config, Head, Memory, Precision, Summary};
use serde_json::Value;

use super::{Local, Source, read};
use crate::Result;
use crate::builder::min_dimensions;
use crate::engine::DEFAULT_BATCH_TOKENS;

/// What a model is, without loading it: see [`Source::info`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Info {
    /// What the model's configuration and the headers of its files say.
    pub summary: Summary,
    /// The prompts of `config_sentence_transformers.json` by their names.
    pub prompts: BTreeMap<String, String>,
}

impl Source {
    /// Looks at the model without loading it. Of a model of the hub that is not in the cache, only the
    /// configuration and the headers of the weights are downloaded, from
    #[cfg_attr(feature = "hub", doc = "[`Hub::from_env`](crate::Hub::from_env).")]
    #[cfg_attr(not(feature = "hub"), doc = "the hub.")]
    ///
    /// # Errors
    ///
    /// As [`EmbedderBuilder::build`](crate::EmbedderBuilder::build).
    pub fn info(&self) -> Result<Info> {
        #[cfg(feature = "hub")]
        return super::Hub::from_env().info(self.clone());
        #[cfg(not(feature = "hub"))]
        Info::read(&self.open(None)?)
    }
}

impl Info {
    /// Looks at a model on this machine.
    pub(super) fn read(local: &Local) -> Result<Self> {
        let summary = Summary::read(&local.path)?;
        let file = local.path.join("config_sentence_transformers.json");
        let prompts = if file.is_file() { prompts(&file)? } else { BTreeMap::new() };
        Ok(Self { summary, prompts })
    }

    /// The fewest and the most dimensions of a vector.
    pub fn dimensions(&self) -> [usize; 2] {
        let Config { hidden_size, .. } = self.summary.config;
        [min_dimensions(hidden_size), hidden_size]
    }

    /// The memory that the model takes in a precision, with batches of the default size. The cache of
    /// what texts have in common, the tokenizer and the program itself come on top.
    pub fn memory(&self, precision: Precision) -> Memory {
        self.summary.memory(precision, DEFAULT_BATCH_TOKENS)
    }

    /// What is behind the decoder.
    pub fn head(&self) -> Head {
        self.summary.head
    }
}

fn prompts(path: &Path) -> Result<BTreeMap<String, String>> {
    let json: Value = serde_json::from_slice(&read(path)?)
        .map_err(|source| qwen3_embed_model::Error::Json { path: path.to_path_buf(), source })?;
    let prompts = json["prompts"].as_object().into_iter().flatten();
    Ok(prompts.filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned()))).collect())
}
