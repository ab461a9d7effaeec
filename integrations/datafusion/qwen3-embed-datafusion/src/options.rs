//! The options of a session that the functions read.

use datafusion::common::config::{ConfigEntry, ConfigExtension, ExtensionOptions};
use datafusion::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result};
use qwen3_embed::{EmbedOptions, Overflow};

/// The options of a session, with the prefix `qwen3`. `SET qwen3.dimensions = 256` sets one, and an empty string
/// unsets it.
///
/// A scheduler of Ballista sends the options of the client's session to the executors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Qwen3Options {
    /// `qwen3.model`: the embedding model, as a folder, a GGUF file or an id on the hub. Default: the model of
    /// [`ModelSettings`](crate::ModelSettings).
    pub model: Option<String>,
    /// `qwen3.reranker`: the reranker. Default: the reranker of [`ModelSettings`](crate::ModelSettings).
    pub reranker: Option<String>,
    /// `qwen3.dimensions`: the number of dimensions of vectors. Default: that of the model.
    pub dimensions: Option<usize>,
    /// `qwen3.max_tokens`: the maximum length of a text in tokens, with its prompt. Default: the limit of the model.
    pub max_tokens: Option<usize>,
    /// `qwen3.truncate`: whether the end of a longer text is cut off. Otherwise, the query fails. Default: false.
    pub truncate: bool,
}

impl Qwen3Options {
    /// The options of a session, or the defaults if the session has none.
    pub(crate) fn of(config: &ConfigOptions) -> Self {
        config.extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// The options of the embedder's calls, for vectors with this number of dimensions.
    pub(crate) fn embed_options(&self, dimensions: usize) -> EmbedOptions {
        let overflow = if self.truncate { Overflow::TruncateRight } else { Overflow::Error };
        let options = EmbedOptions::new().dimensions(dimensions).overflow(overflow);
        match self.max_tokens {
            Some(max_tokens) => options.max_tokens(max_tokens),
            None => options,
        }
    }
}

impl ConfigExtension for Qwen3Options {
    const PREFIX: &'static str = "qwen3";
}

impl ExtensionOptions for Qwen3Options {
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(self.clone())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let text = Some(value).filter(|value| !value.is_empty());
        let number = |what| {
            let invalid = || {
                let message = format!("qwen3.{key} must be {what}, got `{value}`");
                DataFusionError::Configuration(message)
            };
            let number = text.map(|text| text.parse::<usize>().map_err(|_| invalid())).transpose();
            number.and_then(|n| if n == Some(0) { Err(invalid()) } else { Ok(n) })
        };
        match key {
            "model" => self.model = text.map(str::to_owned),
            "reranker" => self.reranker = text.map(str::to_owned),
            "dimensions" => self.dimensions = number("a number of dimensions, 1 or more")?,
            "max_tokens" => self.max_tokens = number("a number of tokens, 1 or more")?,
            "truncate" => {
                self.truncate = text.unwrap_or("false").to_lowercase().parse().map_err(|_| {
                    let message = format!("qwen3.truncate must be true or false, got `{value}`");
                    DataFusionError::Configuration(message)
                })?;
            }
            _ => {
                let names = self.entries().into_iter().map(|entry| entry.key);
                let names = names.collect::<Vec<_>>().join(", ");
                let message = format!("there is no option qwen3.{key}, the options are {names}");
                return Err(DataFusionError::Configuration(message));
            }
        }
        Ok(())
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        let entry = |key: &str, value: Option<String>, description| ConfigEntry {
            key: format!("{}.{key}", Self::PREFIX),
            value,
            description,
        };
        let number = |number: Option<usize>| number.map(|number| number.to_string());
        vec![
            entry("model", self.model.clone(), "The embedding model"),
            entry("reranker", self.reranker.clone(), "The reranker"),
            entry("dimensions", number(self.dimensions), "The number of dimensions of vectors"),
            entry("max_tokens", number(self.max_tokens), "The maximum length of a text in tokens"),
            entry(
                "truncate",
                Some(self.truncate.to_string()),
                "Whether the end of a longer text is cut off",
            ),
        ]
    }
}
