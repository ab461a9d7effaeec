use std::path::Path;

use qwen3_embed_kernels::cpu::Heads;
use serde_json::Value;

use crate::fields::Fields;
use crate::gguf::Header;
use crate::{Error, Pooling, Result};

/// A Qwen3 model's hyper-parameters, validated.
///
/// Field names are those of `config.json`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Width of the residual stream and of the embedding, C.
    pub hidden_size: usize,
    /// Width of the MLP, F.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Number of query heads, H.
    pub num_attention_heads: usize,
    /// Number of key/value heads, K; it divides H.
    pub num_key_value_heads: usize,
    /// Width of one head, D; independent of C / H.
    pub head_dim: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Number of positions: the longest text, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Whether the attention's four projections have a bias.
    pub attention_bias: bool,
    /// Whether the checkpoint's `lm_head` is its token embedding.
    pub tie_word_embeddings: bool,
    /// Whether a token sees only what comes before it, and itself, as in all published models; some
    /// fine-tunes say `is_causal: false`.
    pub is_causal: bool,
    /// How a text's vector is made of its tokens' where no `modules.json` says it: of the last one if
    /// attention is causal, else the mean of all; in a GGUF file, as `pooling_type` says.
    pub pooling: Pooling,
    /// The class that the checkpoint was saved as, such as `Qwen3ForCausalLM`: the first of its
    /// `architectures`, if it names any.
    pub architecture: Option<String>,
}

impl Config {
    /// Reads and validates the contents of a `config.json`; `path` is named in errors.
    ///
    /// Anything that would change the result and is not supported is an error, never ignored:
    /// another architecture or code of its own, another activation, scaled RoPE, sliding windows, quantised weights.
    ///
    /// # Errors
    ///
    /// [`Error::Json`], or [`Error::Field`] naming the field, what is understood and what is there.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self> {
        let fields = Fields::from_json(json, path)?;
        fields.expect("model_type", "\"qwen3\"", |v| v == "qwen3")?;
        fields.expect("hidden_act", "\"silu\"", |v| v == "silu")?;
        fields.refuse_unsupported()?;
        let is_causal = fields.is_causal()?;
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
            architecture: fields.architecture(),
        };
        config.checked(&fields, "num_key_value_heads", "head_dim")
    }

    /// Reads and validates the metadata of a GGUF file, by the same rules.
    pub(crate) fn from_gguf(header: &Header<'_>) -> Result<Self> {
        let fields = Fields::from_gguf(header);
        fields.expect("general.architecture", "\"qwen3\"", |v| v == "qwen3")?;
        fields.refuse_unsupported_gguf()?;
        let embeddings = header.tensor("token_embd.weight");
        let vocab_size = embeddings.and_then(|tensor| tensor.shape.first().copied());
        let config = Self {
            hidden_size: fields.count("qwen3.embedding_length")?,
            intermediate_size: fields.count("qwen3.feed_forward_length")?,
            num_hidden_layers: fields.count("qwen3.block_count")?,
            num_attention_heads: fields.count("qwen3.attention.head_count")?,
            num_key_value_heads: fields.count("qwen3.attention.head_count_kv")?,
            head_dim: fields.count("qwen3.attention.key_length")?,
            vocab_size: vocab_size.ok_or_else(|| Error::MissingTensor {
                path: header.path().to_path_buf(),
                name: "token_embd.weight".to_owned(),
            })?,
            max_position_embeddings: fields.count("qwen3.context_length")?,
            rms_norm_eps: fields.positive("qwen3.attention.layer_norm_rms_epsilon")?,
            rope_theta: fields.positive("qwen3.rope.freq_base")?,
            attention_bias: header.tensor("blk.0.attn_q.bias").is_some(),
            tie_word_embeddings: header.tensor("output.weight").is_none(),
            is_causal: fields.flag("qwen3.attention.causal", true)?,
            pooling: fields.gguf_pooling()?,
            architecture: None,
        };
        config.checked(&fields, "qwen3.attention.head_count_kv", "qwen3.attention.key_length")
    }

    /// The same configuration, if its numbers fit one another.
    fn checked(self, fields: &Fields, n_kv_heads: &str, head_dim: &str) -> Result<Self> {
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let heads = self.num_attention_heads;
            return Err(fields.error(n_kv_heads, format!("a divisor of {heads}")));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(fields.error(head_dim, "an even number".into()));
        }
        Ok(self)
    }

    /// Floating-point operations of the products that embedding a text of `n_tokens` takes: two for
    /// each weight and token, and four for each pair of tokens that see one another and each
    /// dimension of the queries.
    pub fn n_operations(&self, n_tokens: usize) -> f64 {
        // Three counts multiplied are more than 64 bits hold, where the configuration is damaged.
        let [c, f, qkv, q] = self.widths();
        let weights = c * (qkv + q) + 3.0 * c * f;
        let tokens = n_tokens as f64;
        let pairs = tokens * (tokens + 1.0) / 2.0;
        let layer = 2.0 * tokens * weights + 4.0 * pairs * q;
        layer * self.num_hidden_layers as f64
    }

    /// The shape of the weight of a linear layer, [O, I], by the layer's name; nothing if there is no
    /// such layer.
    pub(crate) fn linear_shape(&self, name: &str) -> Option<[usize; 2]> {
        let (layer_idx, module) = name.strip_prefix("layers.")?.split_once('.')?;
        // `00` and `+0` name no layer.
        let is_layer = layer_idx
            .parse::<usize>()
            .is_ok_and(|idx| idx < self.num_hidden_layers && idx.to_string() == layer_idx);
        let heads = self.heads();
        let (c, f, q) = (self.hidden_size, self.intermediate_size, heads.q_columns());
        let shape = match module {
            "self_attn.q_proj" => [q, c],
            "self_attn.k_proj" | "self_attn.v_proj" => [heads.n_kv_heads * heads.head_dim, c],
            "self_attn.o_proj" => [c, q],
            "mlp.gate_proj" | "mlp.up_proj" => [f, c],
            "mlp.down_proj" => [c, f],
            _ => return None,
        };
        is_layer.then_some(shape)
    }

    /// What products read and write: C, F, and the columns of queries with and without keys and values.
    pub(crate) fn widths(&self) -> [f64; 4] {
        let heads = self.heads();
        [self.hidden_size, self.intermediate_size, heads.qkv_columns(), heads.q_columns()]
            .map(|n| n as f64)
    }

    /// The attention's heads.
    pub(crate) fn heads(&self) -> Heads {
        Heads {
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
        }
    }
}

/// The classes whose decoder this is. Others have code of their own, or heads that are not known.
const ARCHITECTURES: [&str; 3] =
    ["Qwen3Model", "Qwen3ForCausalLM", "Qwen3ForSequenceClassification"];

/// The keys of a GGUF file's metadata that say something of the model. None is the beginning of
/// another.
const GGUF_KEYS: [&str; 20] = [
    "general.architecture",
    "split.count",
    "qwen3.attention.causal",
    "qwen3.attention.head_count",
    "qwen3.attention.head_count_kv",
    "qwen3.attention.key_length",
    "qwen3.attention.layer_norm_rms_epsilon",
    "qwen3.attention.sliding_window",
    "qwen3.attention.value_length",
    "qwen3.block_count",
    "qwen3.context_length",
    "qwen3.embedding_length",
    "qwen3.feed_forward_length",
    "qwen3.pooling_type",
    "qwen3.rope.dimension_count",
    "qwen3.rope.freq_base",
    "qwen3.rope.scale_linear",
    "qwen3.rope.scaling.factor",
    "qwen3.rope.scaling.type",
    "rope_freqs.weight",
];

impl Fields {
    /// The metadata as if it were JSON, with an object for every dot.
    fn from_gguf(header: &Header<'_>) -> Self {
        let mut value = Value::Null;
        for key in GGUF_KEYS {
            // This one is a tensor: factors for the rotary frequencies.
            let is_tensor = header.tensor(key).is_some().then(|| "a tensor".into());
            if let Some(field) = header.json(key).or(is_tensor) {
                *key.split('.').fold(&mut value, |value, part| &mut value[part]) = field;
            }
        }
        Self { path: header.path().to_path_buf(), value }
    }

    fn architecture(&self) -> Option<String> {
        Some(self.get("architectures")?.get(0)?.as_str()?.to_owned())
    }

    /// `is_causal`. The other field that says so is one that Qwen3 in transformers does not know: alone it
    /// leaves attention causal there, against what it says.
    fn is_causal(&self) -> Result<bool> {
        let is_causal = self.flag("is_causal", true)?;
        let field = "use_bidirectional_attention";
        if is_causal && self.flag(field, false)? {
            return Err(self.error(field, "false, or `is_causal: false` beside it".into()));
        }
        Ok(is_causal)
    }

    /// `rope_theta` at the top level, or in `rope_parameters` as newer exporters write it.
    fn rope_theta(&self) -> Result<f64> {
        if self.get("rope_parameters").is_some() {
            self.positive("rope_parameters.rope_theta")
        } else {
            self.positive("rope_theta")
        }
    }

    /// The pooling of a GGUF file. Without any it is that of the published models, and a reranker's head
    /// reads the last token too.
    fn gguf_pooling(&self) -> Result<Pooling> {
        let field = "qwen3.pooling_type";
        match self.get(field).map_or(Some(0), Value::as_u64) {
            Some(0 | 3 | 4) => Ok(Pooling::LastToken),
            Some(1) => Ok(Pooling::Mean),
            Some(2) => Ok(Pooling::FirstToken),
            _ => Err(self.error(field, "0 (none), 1 (mean), 2 (cls), 3 (last) or 4 (rank)".into())),
        }
    }

    /// Refuses what would change the result and is not implemented.
    fn refuse_unsupported(&self) -> Result<()> {
        let expected = format!("none or one of {}", ARCHITECTURES.join(", "));
        self.expect_if_present("architectures", &expected, |v| {
            let is_known = |first: &Value| ARCHITECTURES.iter().any(|known| first == known);
            v.as_array().is_some_and(|classes| classes.first().is_none_or(is_known))
        })?;
        self.expect_if_present(
            "auto_map",
            "no AutoModel, which is code of the checkpoint's",
            |v| {
                v.as_object().is_some_and(|map| !map.keys().any(|key| key.starts_with("AutoModel")))
            },
        )?;
        for object in ["rope_parameters", "rope_scaling"] {
            self.expect_if_present(object, "an object or null", Value::is_object)?;
            for key in ["rope_type", "type"] {
                let field = format!("{object}.{key}");
                self.expect_if_present(&field, "\"default\"", |v| v == "default")?;
            }
        }
        let scaled = self.get("rope_scaling.rope_type").or(self.get("rope_scaling.type"));
        if self.get("rope_scaling").is_some() && scaled.is_none() {
            return Err(self.error("rope_scaling", "null, or an object with a `rope_type`".into()));
        }
        self.expect_if_present("use_sliding_window", "false", |v| v == false)?;
        self.expect_if_present("layer_types", "only \"full_attention\"", |v| {
            v.as_array().is_some_and(|types| types.iter().all(|t| t == "full_attention"))
        })?;
        self.expect_if_present("quantization_config", "nothing", |_| false)
    }

    /// The same for the metadata of a GGUF file.
    fn refuse_unsupported_gguf(&self) -> Result<()> {
        self.expect_if_present("split.count", "one file that holds the whole model", |v| {
            v.as_u64().is_some_and(|files| files <= 1)
        })?;
        self.expect_if_present("qwen3.attention.sliding_window", "0", |v| v == 0)?;
        let head_dim = self.get("qwen3.attention.key_length");
        for field in ["qwen3.attention.value_length", "qwen3.rope.dimension_count"] {
            let expected = "the same as `qwen3.attention.key_length`";
            self.expect_if_present(field, expected, |v| {
                head_dim.is_none_or(|head_dim| v == head_dim)
            })?;
        }
        self.expect_if_present("qwen3.rope.scaling.type", "\"none\"", |v| v == "none")?;
        if self.get("qwen3.rope.scaling.type").is_none() {
            // llama.cpp takes a factor without a type for a linear one; 0 means that there is none.
            for field in ["qwen3.rope.scaling.factor", "qwen3.rope.scale_linear"] {
                let no_factor = |v: &Value| v.as_f64().is_some_and(|v| v == 0.0 || v == 1.0);
                self.expect_if_present(field, "1", no_factor)?;
            }
        }
        self.expect_if_present("rope_freqs.weight", "no scaled rotary frequencies", |_| false)
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
    fn the_published_config_is_read() {
        let config = parse(|_| {}).unwrap();
        assert_eq!((config.hidden_size, config.head_dim), (1024, 128));
        assert_eq!((config.rope_theta, config.rms_norm_eps), (1e6, 1e-6));
        assert!(config.tie_word_embeddings && !config.attention_bias);
    }

    #[test]
    fn the_0_6b_model_takes_0_88_gflop_for_a_token() {
        let config = parse(|_| {}).unwrap();
        // 440,401,920 weights in linear layers, and 0.115 MFLOP for each token that one sees.
        let operations = config.n_operations(1) - 4.0 * 2048.0 * 28.0;
        assert_eq!(operations, 2.0 * 440_401_920.0);
        let long = config.n_operations(2001) / 2001.0 - config.n_operations(1);
        assert!((long / 2000.0 / 0.1147e6 - 1.0).abs() < 0.01, "{long}");
    }

    #[test]
    fn rope_parameters_take_the_place_of_rope_theta() {
        let config = parse(|v| {
            v.as_object_mut().unwrap().remove("rope_theta");
            v["rope_parameters"] =
                serde_json::json!({"rope_theta": 5000.0, "rope_type": "default"});
        });
        assert_eq!(config.unwrap().rope_theta, 5000.0);
    }

    #[test]
    fn attention_is_causal_and_the_last_token_pooled_unless_is_causal_is_false() {
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
    fn what_is_not_supported_is_refused_by_name() {
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
            ("rope_parameters.rope_theta", serde_json::json!({"rope_type": "default"})),
            ("attention_bias", serde_json::json!("yes")),
            ("use_sliding_window", serde_json::json!(true)),
            ("use_bidirectional_attention", serde_json::json!("vision")),
            ("use_bidirectional_attention", serde_json::json!(true)),
            ("is_causal", serde_json::json!(0)),
            ("layer_types", serde_json::json!(["full_attention", "sliding_attention"])),
            ("quantization_config", serde_json::json!({"quant_method": "awq"})),
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
    fn the_three_classes_of_transformers_are_one_decoder() {
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
    fn an_error_says_what_was_expected_and_what_is_there() {
        let error = parse(|v| v["rope_scaling"] = serde_json::json!({"rope_type": "yarn"}));
        assert_eq!(
            error.unwrap_err().to_string(),
            "dir/config.json: field `rope_scaling.rope_type`: expected \"default\", got \"yarn\""
        );
    }

    #[test]
    fn json_that_is_no_config_is_refused() {
        for json in ["", "{", "[]", "null", "7", "\u{0}"] {
            let result = Config::from_json(json.as_bytes(), Path::new("config.json"));
            assert!(matches!(result, Err(Error::Json { .. } | Error::Field { .. })), "{json}");
        }
    }
}
