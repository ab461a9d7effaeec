//! The configuration in a `config.json`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::checkpoint::class::Class;
use crate::checkpoint::config::Config;
use crate::checkpoint::fields::Fields;
use crate::{Error, Pooling, Result};

/// The objects with the settings of the rotary frequencies. The first one that has fields is used.
const ROPE_OBJECTS: [&str; 2] = ["rope_scaling", "rope_parameters"];

impl Config {
    /// Parses and validates the contents of a `config.json`. Errors name `path`.
    ///
    /// A setting that would change the result and is not supported is an error: another architecture, code in the
    /// repository, another activation function, scaled RoPE, sliding windows, quantized weights.
    ///
    /// # Errors
    ///
    /// [`Error::Json`] if the file does not parse; [`Error::Field`] with the field, the supported values and the value
    /// in the file; [`Error::QuantizedByMlx`].
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self> {
        Self::from_fields(&Fields::from_json(json, path)?)
    }

    /// Validates the fields of a `config.json`, as [`from_json`](Self::from_json) does.
    pub(crate) fn from_fields(fields: &Fields) -> Result<Self> {
        let class = Class::read(fields)?;
        fields.expect("hidden_act", "\"silu\"", |v| v == "silu")?;
        fields.reject_unsupported()?;
        let is_causal = !class.is_bidirectional && fields.is_causal()?;
        let has_labels = class.may_project && fields.get("num_labels").is_some();
        let config = Self {
            hidden_size: fields.count("hidden_size")?,
            intermediate_size: fields.count("intermediate_size")?,
            num_hidden_layers: fields.count("num_hidden_layers")?,
            num_attention_heads: fields.count("num_attention_heads")?,
            num_key_value_heads: fields.count("num_key_value_heads")?,
            head_dim: fields.count("head_dim")?,
            vocab_size: fields.count("vocab_size")?,
            max_position_embeddings: fields.count("max_position_embeddings")?,
            rms_norm_eps: fields.positive("rms_norm_eps")?,
            rope_theta: fields.rope_theta()?,
            attention_bias: fields.flag("attention_bias", false)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
            is_causal,
            pooling: if is_causal { Pooling::LastToken } else { Pooling::Mean },
            architecture: class.name,
            may_project: class.may_project,
            num_labels: has_labels.then(|| fields.count("num_labels")).transpose()?,
        };
        config.checked(fields, "num_key_value_heads", "head_dim")
    }
}

impl Fields {
    /// Whether attention is causal: `is_causal`. transformers ignores `use_bidirectional_attention` for Qwen3, so a
    /// file that sets this field alone is contradictory and rejected.
    fn is_causal(&self) -> Result<bool> {
        let is_causal = self.flag("is_causal", true)?;
        let field = "use_bidirectional_attention";
        if is_causal && self.flag(field, false)? {
            return Err(self.error(field, "false, or `is_causal: false` beside it"));
        }
        Ok(is_causal)
    }

    /// The base of the rotary frequencies. As in transformers 5, it is read from `rope_scaling` if this object has
    /// fields, or else from `rope_parameters`. If that object has no `rope_theta`, it is read from the top level.
    fn rope_theta(&self) -> Result<f64> {
        let has_fields = |object: &&str| {
            self.get(object).and_then(Value::as_object).is_some_and(|fields| !fields.is_empty())
        };
        let object = ROPE_OBJECTS.iter().find(|object| has_fields(object));
        let inner = object.map(|object| format!("{object}.rope_theta"));
        match inner.filter(|inner| self.get(inner).is_some()) {
            Some(inner) => self.positive(&inner),
            None => self.positive("rope_theta"),
        }
    }

    /// Rejects settings that would change the result and are not supported.
    fn reject_unsupported(&self) -> Result<()> {
        self.reject_mlx()?;
        self.reject_scaled_rope()?;
        self.expect_if_present("use_sliding_window", "false", |v| v == false)?;
        self.expect_if_present("layer_types", "only \"full_attention\"", |v| {
            v.as_array().is_some_and(|types| types.iter().all(|t| t == "full_attention"))
        })?;
        self.expect_if_present("quantization_config", "nothing", |_| false)
    }

    /// Rejects scaled rotary frequencies.
    fn reject_scaled_rope(&self) -> Result<()> {
        for object in ROPE_OBJECTS {
            self.expect_if_present(object, "an object or null", Value::is_object)?;
            for key in ["rope_type", "type"] {
                let field = format!("{object}.{key}");
                self.expect_if_present(&field, "\"default\"", |v| v == "default")?;
            }
            let has_type =
                self.get(&format!("{object}.rope_type")).or(self.get(&format!("{object}.type")));
            // Rejects an object for each type of layer, and a factor without a `rope_type`.
            let is_plain = |fields: &Map<String, Value>| {
                let mut fields = fields.iter();
                fields.all(|(key, value)| {
                    !value.is_object()
                        && (has_type.is_some() || value.is_null() || key == "rope_theta")
                })
            };
            self.expect_if_present(object, "null, or an object with a `rope_type`", |value| {
                value.as_object().is_some_and(is_plain)
            })?;
        }
        Ok(())
    }

    /// Rejects weights that MLX has quantized. Converters of MLX write `quantization`, and some of them also
    /// `quantization_config` with the same fields.
    fn reject_mlx(&self) -> Result<()> {
        for field in ["quantization", "quantization_config"] {
            let has = |key: &str| self.get(&format!("{field}.{key}")).is_some();
            if has("group_size") && has("bits") && !has("quant_method") {
                let (path, found) = (self.path().to_path_buf(), format!("field `{field}`"));
                return Err(Error::QuantizedByMlx { path, found });
            }
        }
        self.expect_if_present("quantization", "nothing", |_| false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: &str = r#"{
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
        "max_position_embeddings": 32768, "model_type": "qwen3", "num_attention_heads": 16,
        "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
        "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_sliding_window": false,
        "vocab_size": 151669
    }"#;

    fn parse(change: impl FnOnce(&mut Value)) -> Result<Config> {
        let mut value: Value = serde_json::from_str(REAL).unwrap();
        change(&mut value);
        Config::from_json(value.to_string().as_bytes(), Path::new("dir/config.json"))
    }

    #[test]
    fn reads_the_published_config() {
        let config = parse(|_| {}).unwrap();
        assert_eq!((config.hidden_size, config.head_dim), (1024, 128));
        assert_eq!((config.rope_theta, config.rms_norm_eps), (1e6, 1e-6));
        assert!(config.tie_word_embeddings && !config.attention_bias);
    }

    #[test]
    fn counts_0_88_gflop_per_token_for_the_0_6b_model() {
        let config = parse(|_| {}).unwrap();
        // 440,401,920 weights in linear layers, and 0.115 MFLOP for each key that a query attends to.
        let operations = config.n_operations(1) - 4.0 * 2048.0 * 28.0;
        assert_eq!(operations, 2.0 * 440_401_920.0);
        let long = config.n_operations(2001) / 2001.0 - config.n_operations(1);
        assert!((long / 2000.0 / 0.1147e6 - 1.0).abs() < 0.01, "{long}");
    }

    #[test]
    fn reads_rope_theta_from_rope_parameters() {
        let config = parse(|v| {
            v.as_object_mut().unwrap().remove("rope_theta");
            v["rope_parameters"] =
                serde_json::json!({"rope_theta": 5000.0, "rope_type": "default"});
        });
        assert_eq!(config.unwrap().rope_theta, 5000.0);
    }

    /// transformers 5.23 uses the same values.
    #[test]
    fn reads_rope_theta_from_the_first_object_with_fields() {
        let json = |text| serde_json::from_str::<Value>(text).unwrap();
        let (plain, inner) =
            (r#"{"rope_type": "default"}"#, r#"{"rope_type": "default", "rope_theta": 5000}"#);
        for (rope_scaling, rope_parameters, expected) in [
            ("null", plain, 1e6),
            ("null", "{}", 1e6),
            ("null", r#"{"rope_theta": null}"#, 1e6),
            ("null", inner, 5000.0),
            ("{}", "null", 1e6),
            ("{}", inner, 5000.0),
            (inner, "null", 5000.0),
            (plain, inner, 1e6),
        ] {
            let config = parse(|v| {
                v["rope_scaling"] = json(rope_scaling);
                v["rope_parameters"] = json(rope_parameters);
            });
            assert_eq!(config.unwrap().rope_theta, expected, "{rope_scaling}, {rope_parameters}");
        }
    }

    #[test]
    fn rejects_weights_quantized_by_mlx() {
        let mlx = serde_json::json!({"group_size": 64, "bits": 4});
        let both = ["quantization", "quantization_config"];
        for fields in [&both[..], &both[..1], &both[1..]] {
            let error = parse(|v| fields.iter().for_each(|&field| v[field] = mlx.clone()));
            let expected = format!(
                "dir/config.json: field `{}`: weights that MLX has quantized are not supported: use the original \
                 model, or a GGUF file",
                fields[0]
            );
            assert_eq!(error.unwrap_err().to_string(), expected);
        }
    }

    /// Sets `model_type`, `architectures` and `auto_map`.
    fn of_class(model_type: &str, architecture: &str, auto_model: Option<&str>) -> Result<Config> {
        parse(|v| {
            v["model_type"] = model_type.into();
            v["architectures"] = serde_json::json!([architecture]);
            v["use_bidirectional_attention"] = true.into();
            if let Some(auto_model) = auto_model {
                v["auto_map"] = serde_json::json!({"AutoConfig": "a.B", "AutoModel": auto_model});
            }
        })
    }

    #[test]
    fn supported_classes_with_own_code_are_bidirectional() {
        const VOYAGE: &str = "modeling_qwen3_bidirectional.Qwen3BidirectionalModel";
        const PPLX: &str = "modeling.PPLXQwen3Model";
        let saved_again = format!("owner/name--{PPLX}");
        for (model_type, architecture, auto_model, class) in [
            ("qwen3", "Qwen3BidirectionalModel", Some(VOYAGE), "Qwen3BidirectionalModel"),
            ("qwen3", "Qwen3BidirectionalModel", None, "Qwen3BidirectionalModel"),
            ("qwen3", "Qwen3ForCausalLM", Some(VOYAGE), "Qwen3BidirectionalModel"),
            ("bidirectional_pplx_qwen3", "PPLXQwen3Model", Some(PPLX), "PPLXQwen3Model"),
            ("bidirectional_pplx_qwen3", "PPLXQwen3Model", Some(&*saved_again), "PPLXQwen3Model"),
            ("bidirectional_pplx_qwen3", "PPLXQwen3Model", None, "PPLXQwen3Model"),
        ] {
            let config = of_class(model_type, architecture, auto_model).unwrap();
            assert!(!config.is_causal && config.pooling == Pooling::Mean);
            assert_eq!(config.architecture.as_deref(), Some(class));
        }
    }

    #[test]
    fn rejects_other_classes_with_own_code() {
        const VOYAGE: &str = "modeling_qwen3_bidirectional.Qwen3BidirectionalModel";
        for (model_type, architecture, auto_model, expected) in [
            (
                "bidirectional_pplx_qwen3",
                "PPLXQwen3Model",
                Some("modeling.PPLXQwen3ContextualModel"),
                "`auto_map`: expected another class than modeling.PPLXQwen3ContextualModel: it embeds the \
                 chunks of a document together (late chunking)",
            ),
            (
                "qwen3",
                "Qwen3Model",
                Some("modeling.Qwen3BidirectionalModel"),
                "`auto_map`: expected no AutoModel with its own code, except \
                 modeling_qwen3_bidirectional.Qwen3BidirectionalModel or modeling.PPLXQwen3Model, got",
            ),
            ("bidirectional_pplx_qwen3", "Qwen3Model", None, "`model_type`: expected \"qwen3\""),
            (
                "qwen3",
                "PPLXQwen3Model",
                None,
                "`model_type`: expected \"bidirectional_pplx_qwen3\"",
            ),
            (
                "qwen3",
                "Other",
                Some(VOYAGE),
                "`architectures`: expected none or one of Qwen3Model, Qwen3",
            ),
        ] {
            let error = of_class(model_type, architecture, auto_model).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let error = parse(|v| {
            v["architectures"] = serde_json::json!(["Qwen3BidirectionalModel"]);
            v["is_causal"] = true.into();
        });
        let expected =
            "`is_causal`: expected false, as in the code of Qwen3BidirectionalModel, got true";
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn is_causal_selects_attention_and_default_pooling() {
        for (is_causal, is_bidirectional, expected) in [
            (Value::Null, Value::Null, Pooling::LastToken),
            (true.into(), false.into(), Pooling::LastToken),
            (Value::Null, false.into(), Pooling::LastToken),
            (false.into(), Value::Null, Pooling::Mean),
            (false.into(), false.into(), Pooling::Mean),
            (false.into(), true.into(), Pooling::Mean),
        ] {
            let config = parse(|v| {
                v["is_causal"] = is_causal;
                v["use_bidirectional_attention"] = is_bidirectional;
            });
            let config = config.unwrap();
            assert_eq!(config.pooling, expected);
            assert_eq!(config.is_causal, expected == Pooling::LastToken);
        }
    }

    #[test]
    fn rejects_unsupported_settings_by_name() {
        let cases = [
            ("model_type", serde_json::json!("qwen2")),
            ("model_type", Value::Null),
            ("architectures", serde_json::json!(["Qwen3BidirectionalEmbedModel"])),
            ("architectures", serde_json::json!(["JinaForRanking", "Qwen3ForCausalLM"])),
            ("architectures", serde_json::json!([3])),
            ("architectures", serde_json::json!("Qwen3Model")),
            ("auto_map", serde_json::json!({"AutoModel": "modeling.JinaForRanking"})),
            ("auto_map", serde_json::json!({"AutoModelForSequenceClassification": "a.B"})),
            ("auto_map", serde_json::json!("modeling.Model")),
            ("hidden_act", serde_json::json!("gelu")),
            ("hidden_size", serde_json::json!(0)),
            ("hidden_size", serde_json::json!(-1)),
            ("hidden_size", serde_json::json!("1024")),
            ("vocab_size", serde_json::json!(1u64 << 40)),
            ("num_key_value_heads", serde_json::json!(3)),
            ("head_dim", serde_json::json!(127)),
            ("head_dim", Value::Null),
            ("rms_norm_eps", serde_json::json!(0)),
            ("rope_theta", Value::Null),
            ("rope_scaling", serde_json::json!({"factor": 4.0})),
            ("rope_scaling.rope_type", serde_json::json!({"rope_type": "yarn", "factor": 4.0})),
            ("rope_scaling.type", serde_json::json!({"type": "linear", "factor": 2.0})),
            ("rope_parameters.rope_type", serde_json::json!({"rope_theta": 1e6, "rope_type": "x"})),
            ("rope_parameters.rope_theta", serde_json::json!({"rope_theta": 0})),
            ("rope_parameters", serde_json::json!({"factor": 4.0})),
            ("rope_parameters", serde_json::json!({"full_attention": {"rope_theta": 1e6}})),
            ("attention_bias", serde_json::json!("yes")),
            ("use_sliding_window", serde_json::json!(true)),
            ("use_bidirectional_attention", serde_json::json!("vision")),
            ("use_bidirectional_attention", serde_json::json!(true)),
            ("is_causal", serde_json::json!(0)),
            ("layer_types", serde_json::json!(["full_attention", "sliding_attention"])),
            ("quantization_config", serde_json::json!({"quant_method": "awq", "group_size": 128})),
            ("quantization", serde_json::json!(true)),
        ];
        for (field, value) in cases {
            let top = field.split('.').next().unwrap();
            let error = parse(|v| v[top] = value.clone()).unwrap_err();
            match &error {
                Error::Field { field: named, path, .. } => {
                    assert_eq!(named, field);
                    assert_eq!(path, Path::new("dir/config.json"));
                }
                other => panic!("{field} = {value}: {other}"),
            }
        }
    }

    #[test]
    fn accepts_the_three_classes_of_transformers() {
        for architectures in [
            Value::Null,
            serde_json::json!([]),
            serde_json::json!(["Qwen3Model"]),
            serde_json::json!(["Qwen3ForCausalLM"]),
            serde_json::json!(["Qwen3ForSequenceClassification"]),
        ] {
            parse(|v| v["architectures"] = architectures).unwrap();
        }
        parse(|v| v["auto_map"] = serde_json::json!({"AutoTokenizer": [null, "a.B"]})).unwrap();
        let error = parse(|v| v["architectures"] = serde_json::json!(["A"])).unwrap_err();
        let expected = "field `architectures`: expected none or one of Qwen3Model, Qwen3ForCausalLM, \
                        Qwen3ForSequenceClassification, got [\"A\"]";
        assert!(error.to_string().ends_with(expected), "{error}");
    }

    #[test]
    fn errors_name_the_expected_and_the_actual_value() {
        let error = parse(|v| v["rope_scaling"] = serde_json::json!({"rope_type": "yarn"}));
        assert_eq!(
            error.unwrap_err().to_string(),
            "dir/config.json: field `rope_scaling.rope_type`: expected \"default\", got \"yarn\""
        );
    }

    #[test]
    fn rejects_json_that_is_not_a_config() {
        for json in ["", "{", "[]", "null", "7", "\u{0}"] {
            let result = Config::from_json(json.as_bytes(), Path::new("config.json"));
            assert!(matches!(result, Err(Error::Json { .. } | Error::Field { .. })), "{json}");
        }
    }
}
