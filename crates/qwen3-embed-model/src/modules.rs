//! What a sentence-transformers repository says of how a text's vector is made: `modules.json` and the
//! folders that it names.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::dense::Dense;
use crate::fields::Fields;
use crate::{Pooling, Result};

/// The modules of a repository.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Modules {
    pub(crate) pooling: Pooling,
    /// The folders of dense layers, which come one after another behind the pooling.
    pub(crate) dense: Vec<PathBuf>,
    /// Whether vectors are of unit length in the end.
    pub(crate) normalizes: bool,
}

/// The package whose modules are known, with the dot behind it: others are code of the repository's.
const PACKAGE: &str = "sentence_transformers.";

/// The names of a pooling, of late and as one flag for each.
const POOLINGS: [(Pooling, &str, &str); 6] = [
    (Pooling::LastToken, "lasttoken", "pooling_mode_lasttoken"),
    (Pooling::FirstToken, "cls", "pooling_mode_cls_token"),
    (Pooling::Mean, "mean", "pooling_mode_mean_tokens"),
    (Pooling::MeanSqrtLength, "mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
    (Pooling::WeightedMean, "weightedmean", "pooling_mode_weightedmean_tokens"),
    (Pooling::Max, "max", "pooling_mode_max_tokens"),
];

impl Modules {
    /// Those of a model that has no `modules.json`.
    pub(crate) fn plain(pooling: Pooling) -> Self {
        Self { pooling, ..Self::default() }
    }

    /// Reads `modules.json` and the poolings of `dir`; nothing if there is none.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("modules.json");
        if !path.is_file() {
            return Ok(None);
        }
        let fields = Fields::read(&path)?.numbered();
        let mut modules = Self::default();
        let mut earlier = None;
        for idx in 0..fields.value.as_object().map_or(0, serde_json::Map::len) {
            let field = format!("{idx}.type");
            let kind = fields.get(&field).and_then(Value::as_str).unwrap_or_default();
            let kind = kind.strip_prefix(PACKAGE).and_then(|path| path.rsplit('.').next());
            let kind = kind.unwrap_or_default();
            let allowed: &[&str] = match earlier.as_deref() {
                None => &["Transformer"],
                Some("Transformer") => &["Pooling"],
                Some("Normalize") => &[],
                Some(_) => &["Dense", "Normalize"],
            };
            if !allowed.contains(&kind) {
                let expected = match allowed {
                    [] => "nothing behind Normalize".to_owned(),
                    allowed => of_package(&allowed.join(" or ")),
                };
                return Err(fields.error(&field, expected));
            }
            modules.add(dir, &fields, idx, kind)?;
            earlier = Some(kind.to_owned());
        }
        match earlier.as_deref() {
            None => Err(fields.error("0.type", of_package("Transformer"))),
            Some("Transformer") => Err(fields.error("1.type", of_package("Pooling"))),
            Some(_) => {
                modules.check_similarity(dir)?;
                Ok(Some(modules))
            }
        }
    }

    /// Whether `dir` has a `modules.json` with a pooling, as an embedding model has. A reranker's lists
    /// other modules, which are not needed.
    pub(crate) fn has_pooling(dir: &Path) -> Result<bool> {
        let path = dir.join("modules.json");
        if !path.is_file() {
            return Ok(false);
        }
        let fields = Fields::read(&path)?.numbered();
        let n_modules = fields.value.as_object().map_or(0, serde_json::Map::len);
        Ok((0..n_modules).any(|idx| {
            let kind = fields.get(&format!("{idx}.type")).and_then(Value::as_str);
            kind.is_some_and(|kind| kind.rsplit('.').next() == Some("Pooling"))
        }))
    }

    /// Refuses a similarity that orders vectors of unit length otherwise than those that the modules
    /// give: vectors are compared by their cosine.
    fn check_similarity(&self, dir: &Path) -> Result<()> {
        let path = dir.join("config_sentence_transformers.json");
        if !path.is_file() {
            return Ok(());
        }
        let expected = match self.normalizes {
            true => "\"cosine\", \"dot\" or \"euclidean\"",
            false => "\"cosine\", where there is no Normalize",
        };
        Fields::read(&path)?.expect_if_present("similarity_fn_name", expected, |name| {
            name == "cosine" || (self.normalizes && (name == "dot" || name == "euclidean"))
        })
    }

    /// Reads the dense layers, which vectors of `n_in` dimensions come into.
    pub(crate) fn load_dense(&self, mut n_in: usize) -> Result<Vec<Dense>> {
        let mut layers = Vec::with_capacity(self.dense.len());
        for dir in &self.dense {
            let dense = Dense::load(dir, n_in)?;
            n_in = dense.n_out();
            layers.push(dense);
        }
        Ok(layers)
    }

    fn add(&mut self, dir: &Path, fields: &Fields, idx: usize, kind: &str) -> Result<()> {
        let field = format!("{idx}.path");
        let path = fields.get(&field).and_then(Value::as_str).unwrap_or_default();
        match kind {
            "Transformer" if path.is_empty() => {}
            "Transformer" => return Err(fields.error(&field, "\"\", the folder itself".into())),
            "Normalize" => self.normalizes = true,
            _ if !is_folder_name(path) => {
                return Err(fields.error(&field, "the name of a folder beside modules.json".into()));
            }
            "Pooling" => self.pooling = pooling(&dir.join(path).join("config.json"))?,
            _ => self.dense.push(dir.join(path)),
        }
        Ok(())
    }
}

/// What is expected of a module.
fn of_package(kinds: &str) -> String {
    format!("{kinds} of sentence_transformers")
}

/// Whether this names a folder inside of another one.
fn is_folder_name(path: &str) -> bool {
    !path.is_empty() && !path.starts_with('.') && !path.contains(['/', '\\', ':'])
}

/// The pooling of a module's `config.json`.
fn pooling(path: &Path) -> Result<Pooling> {
    let fields = Fields::read(path)?;
    let pooling = match fields.get("pooling_mode") {
        None => flagged_pooling(&fields)?,
        Some(mode) => {
            // One may stand in a list.
            let mode = match mode {
                Value::Array(modes) if let [mode] = modes.as_slice() => mode,
                mode => mode,
            };
            let known = POOLINGS.iter().find(|(_, name, _)| mode == name);
            let names = POOLINGS.map(|(_, name, _)| name).join(", ");
            known.ok_or_else(|| fields.error("pooling_mode", format!("one of {names}")))?.0
        }
    };
    // The last token is the text's own in any case.
    if pooling != Pooling::LastToken {
        fields.expect_if_present("include_prompt", "true", |value| value == true)?;
    }
    Ok(pooling)
}

/// The pooling whose flag is set: the mean where none is, as in sentence-transformers.
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
