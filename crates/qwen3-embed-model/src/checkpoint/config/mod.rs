mod gguf;
mod json;

use qwen3_embed_kernels::cpu::Heads;

use crate::checkpoint::fields::Fields;
use crate::{Pooling, Result};

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
    /// The class of the checkpoint, such as `Qwen3ForCausalLM`: that of its own code, if that is known, else
    /// the first of its `architectures`, if it names any.
    pub architecture: Option<String>,
    /// Whether a linear layer may stand behind the decoder, as in models of the class
    /// `Qwen3BidirectionalModel`.
    pub(crate) may_project: bool,
    /// The width of that layer, if the configuration says it.
    pub(crate) num_labels: Option<usize>,
}

impl Config {
    /// The same configuration, if its numbers fit one another.
    fn checked(self, fields: &Fields, n_kv_heads: &str, head_dim: &str) -> Result<Self> {
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            let heads = self.num_attention_heads;
            return Err(fields.error(n_kv_heads, format!("a divisor of {heads}")));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(fields.error(head_dim, "an even number"));
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
