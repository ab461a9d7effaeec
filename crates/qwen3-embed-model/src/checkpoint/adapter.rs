//! LoRA adapters in the format of PEFT: two thin matrices for some of the linear layers, whose product is added
//! to a layer's weight when the weight is read.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::checkpoint::folder::Folder;
use crate::checkpoint::low_rank::LowRankUpdate;
use crate::checkpoint::safetensors;
use crate::checkpoint::sentence_transformers::SentenceTransformers;
use crate::{Config, Error, Result};

/// The folder of a LoRA adapter in the format of PEFT. Its weights are read when the adapter is added to a
/// checkpoint.
#[derive(Debug)]
pub struct Adapter {
    folder: Folder,
    /// `adapter_config.json`.
    fields: Fields,
    repository: SentenceTransformers,
}

/// Settings that would change the result and are not supported.
const UNSUPPORTED: [&str; 15] = [
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];

/// The values of `init_lora_weights` that do not change the weights of the base model.
const INITIALIZATIONS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

impl Adapter {
    /// Reads `adapter_config.json` in a folder, and the files of sentence-transformers if there are any.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::Json`] if a file cannot be read.
    pub fn open(folder: Folder) -> Result<Self> {
        let fields = Fields::read(&folder, "adapter_config.json")?;
        Ok(Self { repository: SentenceTransformers::read(&folder)?, fields, folder })
    }

    /// The path of the adapter's folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The adapter's folder.
    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The fields of `adapter_config.json`.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// The files of sentence-transformers in the adapter's folder.
    pub(crate) fn repository(&self) -> &SentenceTransformers {
        &self.repository
    }

    /// Reads `adapter_model.safetensors`, an adapter of a model with this configuration. Returns what is added to
    /// each weight, by the weight's name.
    pub(crate) fn updates(&self, config: &Config) -> Result<HashMap<String, Arc<LowRankUpdate>>> {
        check_supported(&self.fields)?;
        let file = "adapter_model.safetensors";
        let path = self.folder.path_of(file);
        let weights = safetensors::open_file(&self.folder, file)?;
        let mut updates = HashMap::new();
        for name in weights.names() {
            let unknown = || Error::AdapterTensor { path: path.clone(), name: name.to_owned() };
            let layer = name.strip_suffix(".lora_A.weight");
            let Some(layer) = layer.or(name.strip_suffix(".lora_B.weight")) else {
                return Err(unknown());
            };
            let module = layer.strip_prefix("base_model.model.").ok_or_else(unknown)?;
            let weight = module.strip_prefix("model.").unwrap_or(module);
            let [n_out, n_in] = config.linear_shape(weight).ok_or_else(unknown)?;
            let key = format!("{weight}.weight");
            if updates.contains_key(&key) {
                continue;
            }
            // If one of the two matrices is missing, reading it fails here.
            let [a, b] = ["A", "B"].map(|which| format!("{layer}.lora_{which}.weight"));
            let rank = weights.n_rows(&a).unwrap_or(1);
            let scale = scale(&self.fields, module, rank)?;
            let a = weights.values(&a, [rank, n_in])?;
            let mut b = weights.values(&b, [n_out, rank])?;
            b.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
            updates.insert(key, Arc::new(LowRankUpdate::new(a, b, rank)));
        }
        if updates.is_empty() {
            let name = "base_model.model.layers.*.lora_A.weight".to_owned();
            return Err(Error::MissingTensor { path, name });
        }
        Ok(updates)
    }
}

/// Rejects adapters that are not plain LoRA adapters of linear layers.
fn check_supported(fields: &Fields) -> Result<()> {
    fields.expect("peft_type", "\"LORA\"", |value| value == "LORA")?;
    fields.expect_if_present("bias", "\"none\"", |value| value == "none")?;
    for field in UNSUPPORTED {
        let is_off =
            |value: &Value| value == false || value.as_array().is_some_and(std::vec::Vec::is_empty);
        fields.expect_if_present(field, "null or false", is_off)?;
    }
    let expected = format!("true, false or one of {}", INITIALIZATIONS.join(", "));
    fields.expect_if_present("init_lora_weights", &expected, |value| match value {
        Value::String(name) => INITIALIZATIONS.contains(&name.as_str()),
        value => value.is_boolean(),
    })
}

/// The factor of the matrix product `b · a`: α / rank, or α / √rank.
///
/// # Source
///
/// Hu et al., *LoRA* (2021), section 4.1; Kalajdzievski, *A Rank Stabilization Scaling Factor* (2023).
fn scale(fields: &Fields, module: &str, rank: usize) -> Result<f64> {
    let alpha = match pattern(fields, module)? {
        Some(alpha) => alpha,
        None => fields.positive("lora_alpha")?,
    };
    let rank = rank as f64;
    let is_stabilized = fields.flag("use_rslora", false)?;
    Ok(alpha / if is_stabilized { rank.sqrt() } else { rank })
}

/// The α that `alpha_pattern` contains for a module. A key matches the name of the module or the end of the name. PEFT
/// uses the first match in the file. The order of the file is lost here, so several matches must have the same α.
fn pattern(fields: &Fields, module: &str) -> Result<Option<f64>> {
    let patterns = fields.get("alpha_pattern").and_then(Value::as_object);
    let mut found: Option<(&str, f64)> = None;
    for (name, alpha) in patterns.into_iter().flatten() {
        let error = |expected: &str| {
            fields.error_with(&format!("alpha_pattern.{name}"), expected, alpha.to_string())
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if !name.chars().all(is_plain) {
            return Err(error("the name of a module, not a regular expression"));
        }
        let before = module.strip_suffix(name.as_str());
        if !before.is_some_and(|before| before.is_empty() || before.ends_with('.')) {
            continue;
        }
        let alpha = alpha.as_f64().filter(|alpha| *alpha > 0.0);
        let alpha = alpha.ok_or_else(|| error("a number above 0"))?;
        match found {
            Some((other, same)) if same != alpha => {
                let expected = format!("{same}, as in `{other}`, which matches `{module}`, too");
                return Err(error(&expected));
            }
            _ => found = Some((name, alpha)),
        }
    }
    Ok(found.map(|(_, alpha)| alpha))
}
