//! The configuration in the metadata of a GGUF file.

use serde_json::Value;

use crate::checkpoint::config::Config;
use crate::checkpoint::fields::Fields;
use crate::checkpoint::gguf::Header;
use crate::{Error, Pooling, Result};

/// The keys of a GGUF file's metadata that describe the model. No key is the beginning of another key, so the keys can
/// be converted to nested objects.
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

impl Config {
    /// Validates the metadata of a GGUF file, by the rules of [`from_json`](Self::from_json).
    pub(crate) fn from_gguf(header: &Header) -> Result<Self> {
        let fields = Fields::from_gguf(header);
        fields.expect("general.architecture", "\"qwen3\"", |v| v == "qwen3")?;
        fields.reject_unsupported_gguf()?;
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
            may_project: false,
            num_labels: None,
        };
        config.checked(&fields, "qwen3.attention.head_count_kv", "qwen3.attention.key_length")
    }
}

impl Fields {
    /// Converts the metadata to nested JSON objects: a dot in a key separates the names of two objects.
    fn from_gguf(header: &Header) -> Self {
        let mut value = Value::Null;
        for key in GGUF_KEYS {
            // `rope_freqs.weight` is a tensor: factors for the rotary frequencies.
            let is_tensor = header.tensor(key).is_some().then(|| "a tensor".into());
            if let Some(field) = header.json(key).or(is_tensor) {
                *key.split('.').fold(&mut value, |value, part| &mut value[part]) = field;
            }
        }
        Self::new(header.path(), value)
    }

    /// The pooling in a GGUF file. If the file names no pooling, the last token is used, as in the published models.
    /// The head of a reranker reads the last token, too.
    fn gguf_pooling(&self) -> Result<Pooling> {
        let field = "qwen3.pooling_type";
        match self.get(field).map_or(Some(0), Value::as_u64) {
            Some(0 | 3 | 4) => Ok(Pooling::LastToken),
            Some(1) => Ok(Pooling::Mean),
            Some(2) => Ok(Pooling::FirstToken),
            _ => Err(self.error(field, "0 (none), 1 (mean), 2 (cls), 3 (last) or 4 (rank)")),
        }
    }

    /// Rejects metadata that would change the result and is not supported.
    fn reject_unsupported_gguf(&self) -> Result<()> {
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
            // llama.cpp scales linearly if there is a factor without a type. The factor 0 means no scaling.
            for field in ["qwen3.rope.scaling.factor", "qwen3.rope.scale_linear"] {
                let no_factor = |v: &Value| v.as_f64().is_some_and(|v| v == 0.0 || v == 1.0);
                self.expect_if_present(field, "1", no_factor)?;
            }
        }
        self.expect_if_present("rope_freqs.weight", "no scaled rotary frequencies", |_| false)
    }
}
