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
    let modes: Vec<&str> = match fields.get("pooling_mode") {
        Some(Value::Array(modes)) => modes.iter().filter_map(Value::as_str).collect(),
        Some(mode) => vec![mode.as_str().unwrap_or_default()],
        None => {
            let is_set = |flag: &str| fields.get(flag).is_some_and(|value| value == true);
            POOLINGS.iter().filter(|(_, _, flag)| is_set(flag)).map(|(_, mode, _)| *mode).collect()
        }
    };
    let named = |mode: &str| POOLINGS.iter().find(|(_, name, _)| *name == mode);
    let pooling = match modes.as_slice() {
        // What sentence-transformers does where no flag is set.
        [] if fields.get("pooling_mode").is_none() => Pooling::Mean,
        &[mode] if let Some(&(pooling, ..)) = named(mode) => pooling,
        modes => {
            let names = POOLINGS.map(|(_, name, _)| name).join(", ");
            let (field, expected) = ("pooling_mode".to_owned(), format!("one of {names}"));
            let (path, got) = (path.to_path_buf(), modes.join(" and "));
            return Err(crate::Error::Field { path, field, expected, got });
        }
    };
    // The last token is the text's own in any case.
    if pooling != Pooling::LastToken {
        fields.expect_if_present("include_prompt", "true", |value| value == true)?;
    }
    Ok(pooling)
}
