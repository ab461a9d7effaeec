//! What a sentence-transformers repository says of how a text's vector is made: `modules.json` and the
//! folders that it names.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::forward::dense::Dense;
use crate::{Config, Error, Pooling, Result};

/// The modules of a repository.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Modules {
    pub(crate) pooling: Pooling,
    /// The folders of dense layers, which come one after another behind the pooling.
    pub(crate) dense: Vec<PathBuf>,
    /// Whether vectors are of unit length in the end.
    pub(crate) normalizes: bool,
    /// Whether [`quantize`] comes last.
    pub(crate) quantizes: bool,
}

/// The package whose modules are known, with the dot behind it: others are code of the repository's.
const PACKAGE: &str = "sentence_transformers.";

/// The one module of a repository's own code that is known, and the class of the models that have it.
const QUANTIZER: (&str, &str) = ("st_quantize.FlexibleQuantizer", "PPLXQwen3Model");

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
            let is_quantizer = kind.rsplit("--").next() == Some(QUANTIZER.0);
            if is_quantizer && earlier.as_deref() == Some("Pooling") {
                modules.quantizes = true;
                earlier = Some(QUANTIZER.0.to_owned());
                continue;
            }
            let kind = kind.strip_prefix(PACKAGE).and_then(|path| path.rsplit('.').next());
            let kind = kind.unwrap_or_default();
            let allowed: &[&str] = match earlier.as_deref() {
                None => &["Transformer"],
                Some("Transformer") => &["Pooling"],
                Some("Normalize") => &[],
                Some(last) if last == QUANTIZER.0 => &[],
                Some(_) => &["Dense", "Normalize"],
            };
            if !allowed.contains(&kind) {
                let expected = match allowed {
                    [] => format!("nothing behind {}", earlier.unwrap_or_default()),
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

    /// Refuses a module of another model's own code, and a pooling that comes to something else behind a
    /// projection than before it.
    pub(crate) fn check_class(&self, dir: &Path, config: &Config) -> Result<()> {
        let (module, class) = QUANTIZER;
        let got = config.architecture.as_deref().unwrap_or("nothing").to_owned();
        let path = dir.join("config.json");
        if self.quantizes && got != class {
            let expected = format!("{class}, whose `modules.json` may have {module}");
            return Err(Error::Field { path, field: "architectures".into(), expected, got });
        }
        if config.may_project && self.pooling == Pooling::Max {
            let expected =
                "another class than Qwen3BidirectionalModel beside the pooling `max`".into();
            return Err(Error::Field { path, field: "architectures".into(), expected, got });
        }
        Ok(())
    }

    /// Reads the dense layers, which vectors of `n_in` dimensions come into, and puts a projection of the
    /// model itself before them.
    pub(crate) fn load_dense(&self, projection: Option<Dense>, n_in: usize) -> Result<Vec<Dense>> {
        let mut n_in = projection.as_ref().map_or(n_in, Dense::n_out);
        let mut layers: Vec<Dense> = projection.into_iter().collect();
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

/// Brings values into whole numbers from −127 to 127: round(127 · tanh x). What is not finite stays so, and is
/// found.
///
/// # Source
///
/// The `FlexibleQuantizer` of pplx-embed-v1 with its default, `int8`.
pub(crate) fn quantize(vectors: &mut [f32]) {
    let finite = vectors.iter_mut().filter(|x| x.is_finite());
    finite.for_each(|x| *x = (x.tanh() * 127.0).round_ties_even());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantized_values_are_whole_numbers_and_what_is_not_finite_stays() {
        let mut values = [0.0, -0.5, 0.01, 9.0, -30.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        quantize(&mut values);
        assert_eq!(values[..7], [0.0, -59.0, 1.0, 127.0, -127.0, f32::INFINITY, f32::NEG_INFINITY]);
        assert!(values[7].is_nan());
    }
}
