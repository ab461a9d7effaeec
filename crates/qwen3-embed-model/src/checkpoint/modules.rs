//! How a text's vector is made, as the modules of a sentence-transformers repository describe it.

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::checkpoint::folder::Folder;
use crate::checkpoint::sentence_transformers::SentenceTransformers;
use crate::{Config, Error, Pooling, Result};

/// The steps that turn hidden states into a text's vector.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    pub(crate) pooling: Pooling,
    /// The dense layers, which run one after another after the pooling.
    pub(crate) dense: Vec<DenseModule>,
    /// Whether vectors are normalized in the last step.
    pub(crate) normalizes: bool,
    /// Whether vectors are rounded to integers of 8 bits in the last step.
    pub(crate) quantizes: bool,
}

/// A dense layer.
#[derive(Debug)]
pub(crate) struct DenseModule {
    /// The folder that holds the weights.
    pub(crate) folder: Folder,
    /// The folder's `config.json`.
    pub(crate) config: Fields,
}

/// The one module outside of sentence-transformers that is supported, and the class of the models that use it.
const QUANTIZER: (&str, &str) = ("st_quantize.FlexibleQuantizer", "PPLXQwen3Model");

/// The names of each pooling: the value of `pooling_mode`, and the flag of older files.
const POOLINGS: [(Pooling, &str, &str); 6] = [
    (Pooling::LastToken, "lasttoken", "pooling_mode_lasttoken"),
    (Pooling::FirstToken, "cls", "pooling_mode_cls_token"),
    (Pooling::Mean, "mean", "pooling_mode_mean_tokens"),
    (Pooling::MeanSqrtLength, "mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
    (Pooling::WeightedMean, "weightedmean", "pooling_mode_weightedmean_tokens"),
    (Pooling::Max, "max", "pooling_mode_max_tokens"),
];

impl Modules {
    /// The steps of a model without `modules.json`: pooling alone.
    pub(crate) fn plain(pooling: Pooling) -> Self {
        Self { pooling, ..Self::default() }
    }

    /// Reads the modules of a repository. `None` if it has no `modules.json`.
    pub(crate) fn read(repository: &SentenceTransformers) -> Result<Option<Self>> {
        let Some(fields) = repository.modules_json() else { return Ok(None) };
        let mut modules = Self::default();
        let mut earlier = None;
        for (idx, module) in repository.modules().enumerate() {
            let is_quantizer = module.class.rsplit("--").next() == Some(QUANTIZER.0);
            if is_quantizer && earlier == Some("Pooling") {
                modules.quantizes = true;
                earlier = Some(QUANTIZER.0);
                continue;
            }
            let allowed: &[&str] = match earlier {
                None => &["Transformer"],
                Some("Transformer") => &["Pooling"],
                Some("Normalize") => &[],
                Some(last) if last == QUANTIZER.0 => &[],
                Some(_) => &["Dense", "Normalize"],
            };
            let name = module.name().unwrap_or_default();
            if !allowed.contains(&name) {
                let expected = match allowed {
                    [] => format!("nothing after {}", earlier.unwrap_or_default()),
                    allowed => of_package(&allowed.join(" or ")),
                };
                return Err(fields.error(&format!("{idx}.type"), expected));
            }
            let path_error = |expected| Err(fields.error(&format!("{idx}.path"), expected));
            match (name, module.folder()) {
                ("Transformer", _) if module.path.is_empty() => {}
                ("Transformer", _) => return path_error("\"\", the folder itself"),
                ("Normalize", _) => modules.normalizes = true,
                (_, None) => {
                    return path_error("the name of a folder in the folder of modules.json");
                }
                ("Pooling", Some(folder)) => {
                    modules.pooling = pooling(repository.module_config(folder)?)?;
                }
                (_, Some(folder)) => modules.dense.push(DenseModule {
                    folder: repository.folder().folder(folder),
                    config: repository.module_config(folder)?.clone(),
                }),
            }
            earlier = Some(name);
        }
        match earlier {
            None => Err(fields.error("0.type", of_package("Transformer"))),
            Some("Transformer") => Err(fields.error("1.type", of_package("Pooling"))),
            Some(_) => {
                modules.check_similarity(repository)?;
                Ok(Some(modules))
            }
        }
    }

    /// Rejects a similarity function that would rank normalized vectors in another order than the vectors that the
    /// modules compute, because all vectors are compared by their cosine.
    fn check_similarity(&self, repository: &SentenceTransformers) -> Result<()> {
        let Some(fields) = repository.prompts_json() else { return Ok(()) };
        let expected = match self.normalizes {
            true => "\"cosine\", \"dot\" or \"euclidean\"",
            false => "\"cosine\", because there is no module Normalize",
        };
        fields.expect_if_present("similarity_fn_name", expected, |name| {
            name == "cosine" || (self.normalizes && (name == "dot" || name == "euclidean"))
        })
    }

    /// Rejects the quantizer in a model of another class than its own, and max pooling before a projection:
    /// projecting the maximum gives another result than the maximum of the projections.
    pub(crate) fn check_class(&self, path: &Path, config: &Config) -> Result<()> {
        let (module, class) = QUANTIZER;
        let got = config.architecture.as_deref().unwrap_or("nothing").to_owned();
        let expected = if self.quantizes && got != class {
            format!("{class}, whose `modules.json` may have {module}")
        } else if config.may_project && self.pooling == Pooling::Max {
            "another class than Qwen3BidirectionalModel beside the pooling `max`".to_owned()
        } else {
            return Ok(());
        };
        let (path, field) = (path.join("config.json"), "architectures".to_owned());
        Err(Error::Field { path, field, expected, got })
    }
}

/// What is expected of the class of a module.
fn of_package(names: &str) -> String {
    format!("{names} of sentence_transformers")
}

/// The pooling of a module's `config.json`.
fn pooling(fields: &Fields) -> Result<Pooling> {
    let pooling = match fields.get("pooling_mode") {
        None => flagged_pooling(fields)?,
        Some(mode) => {
            // A list of one pooling is allowed.
            let mode = match mode {
                Value::Array(modes) if let [mode] = modes.as_slice() => mode,
                mode => mode,
            };
            let known = POOLINGS.iter().find(|(_, name, _)| mode == name);
            let names = POOLINGS.map(|(_, name, _)| name).join(", ");
            known.ok_or_else(|| fields.error("pooling_mode", format!("one of {names}")))?.0
        }
    };
    // Other poolings than last-token pooling would have to leave out the tokens of the prompt.
    if pooling != Pooling::LastToken {
        fields.expect_if_present("include_prompt", "true", |value| value == true)?;
    }
    Ok(pooling)
}

/// The pooling whose flag is set. Without any it is the mean, as in sentence-transformers.
fn flagged_pooling(fields: &Fields) -> Result<Pooling> {
    let mut set = None;
    for (pooling, _, flag) in POOLINGS {
        match set {
            _ if !fields.flag(flag, false)? => {}
            None => set = Some((pooling, flag)),
            Some((_, other)) => {
                return Err(fields.error(flag, format!("false beside `{other}`")));
            }
        }
    }
    Ok(set.map_or(Pooling::Mean, |(pooling, _)| pooling))
}
