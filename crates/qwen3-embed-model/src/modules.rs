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
            let kind = kind.rsplit('.').next().unwrap_or_default();
            let allowed: &[&str] = match earlier.as_deref() {
                None => &["Transformer"],
                Some("Transformer") => &["Pooling"],
                Some("Normalize") => &[],
                Some(_) => &["Dense", "Normalize"],
            };
            if !allowed.contains(&kind) {
                let expected = match allowed {
                    [] => "nothing behind Normalize".to_owned(),
                    allowed => allowed.join(" or "),
                };
                return Err(fields.error(&field, expected));
            }
            modules.add(dir, &fields, idx, kind)?;
            earlier = Some(kind.to_owned());
        }
        match earlier.as_deref() {
            None => Err(fields.error("0.type", "Transformer".into())),
            Some("Transformer") => Err(fields.error("1.type", "Pooling".into())),
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

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// A repository with these modules, and this pooling.
    fn read(modules: &Value, pooling: &Value) -> Result<Option<Modules>> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        fs::write(dir.path().join("modules.json"), modules.to_string()).unwrap();
        fs::write(dir.path().join("1_Pooling/config.json"), pooling.to_string()).unwrap();
        let modules = Modules::read(dir.path())?;
        Ok(modules.map(|modules| {
            let dense = modules.dense.iter().map(|d| d.strip_prefix(dir.path()).unwrap().into());
            Modules { dense: dense.collect(), ..modules }
        }))
    }

    fn module(idx: usize, path: &str, kind: &str) -> Value {
        let kind = format!("sentence_transformers.models.{kind}");
        json!({"idx": idx, "name": idx.to_string(), "path": path, "type": kind})
    }

    fn with_pooling(pooling: &Value) -> Result<Pooling> {
        let modules = json!([module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling")]);
        Ok(read(&modules, pooling)?.unwrap().pooling)
    }

    #[test]
    fn modules_are_read_in_their_order() {
        let modules = json!([
            module(0, "", "Transformer"),
            module(1, "1_Pooling", "Pooling"),
            module(2, "2_Dense", "Dense"),
            module(3, "3_Dense", "dense.Dense"),
            module(4, "4_Normalize", "Normalize"),
        ]);
        let expected = Modules {
            pooling: Pooling::LastToken,
            dense: vec!["2_Dense".into(), "3_Dense".into()],
            normalizes: true,
        };
        let pooling = json!({"pooling_mode": "lasttoken"});
        assert_eq!(read(&modules, &pooling).unwrap(), Some(expected));
        assert_eq!(Modules::read(Path::new("no such folder")).unwrap(), None);
    }

    #[test]
    fn poolings_have_an_old_and_a_new_name() {
        for (pooling, name, flag) in POOLINGS {
            assert_eq!(with_pooling(&json!({"pooling_mode": name})).unwrap(), pooling);
            assert_eq!(with_pooling(&json!({"pooling_mode": [name]})).unwrap(), pooling);
            let flags = json!({"pooling_mode_cls_token": false, flag: true});
            assert_eq!(with_pooling(&flags).unwrap(), pooling, "{flag}");
        }
        assert_eq!(with_pooling(&json!({})).unwrap(), Pooling::Mean);
        let left_out = json!({"pooling_mode": "lasttoken", "include_prompt": false});
        assert_eq!(with_pooling(&left_out).unwrap(), Pooling::LastToken);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let transformer = || module(0, "", "Transformer");
        let pooling = || module(1, "1_Pooling", "Pooling");
        for (modules, message) in [
            (json!([]), "`0.type`: expected Transformer, got nothing"),
            (json!({}), "`0.type`: expected Transformer, got nothing"),
            (json!([transformer()]), "`1.type`: expected Pooling, got nothing"),
            (json!([transformer(), module(1, "", "Normalize")]), "`1.type`: expected Pooling, got"),
            (json!([module(0, "0_Transformer", "Transformer")]), "`0.path`: expected \"\", the"),
            (json!([module(0, "", "CLIPModel")]), "`0.type`: expected Transformer, got \"sent"),
            (
                json!([transformer(), pooling(), module(2, "2_CNN", "CNN")]),
                "`2.type`: expected Dense or Normalize, got \"sentence_transformers.models.CNN\"",
            ),
            (
                json!([
                    transformer(),
                    pooling(),
                    module(2, "", "Normalize"),
                    module(3, "", "Dense")
                ]),
                "`3.type`: expected nothing behind Normalize",
            ),
            (
                json!([transformer(), pooling(), module(2, "../2_Dense", "Dense")]),
                "`2.path`: expected the name of a folder beside modules.json",
            ),
        ] {
            let error = read(&modules, &json!({"pooling_mode": "mean"})).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        for (pooling, message) in [
            (json!({"pooling_mode": "median"}), "`pooling_mode`: expected one of lasttoken, cls, "),
            (json!({"pooling_mode": ["mean", "max"]}), "got mean and max"),
            (json!({"pooling_mode": 3}), "`pooling_mode`: expected one of"),
            (json!({"pooling_mode": []}), "`pooling_mode`: expected one of"),
            (
                json!({"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": true}),
                "got mean and max",
            ),
            (
                json!({"pooling_mode": "mean", "include_prompt": false}),
                "`include_prompt`: expected true, got false",
            ),
        ] {
            let error = with_pooling(&pooling).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
