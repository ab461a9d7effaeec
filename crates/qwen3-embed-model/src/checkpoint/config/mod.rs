mod gguf;
mod json;

use qwen3_embed_kernels::cpu::Heads;

use crate::checkpoint::fields::Fields;
use crate::{Pooling, Result};

/// The hyper-parameters of a Qwen3 model, validated. Fields are named as in `config.json`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Width of the residual stream and of hidden states, C.
    pub hidden_size: usize,
    /// Width of the MLP, F.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Number of query heads, H.
    pub num_attention_heads: usize,
    /// Number of key/value heads, K. H is a multiple of K.
    pub num_key_value_heads: usize,
    /// Width of one head, D. It need not be C / H.
    pub head_dim: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Number of positions, which is the length of the longest text in tokens.
    pub max_position_embeddings: usize,
    /// The ε of every RMSNorm, which is added to the mean square.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Whether the four projections of attention have a bias.
    pub attention_bias: bool,
    /// Whether the token embeddings are also the weights of `lm_head`.
    pub tie_word_embeddings: bool,
    /// Whether attention is causal, as in all published models. Some fine-tunes set `is_causal` to false.
    pub is_causal: bool,
    /// The pooling that is used without a `modules.json`: last-token pooling if attention is causal, mean pooling
    /// otherwise. In a GGUF file, `pooling_type` names the pooling.
    pub pooling: Pooling,
    /// The model class, such as `Qwen3ForCausalLM`: the supported class with its own code that `auto_map` names, or
    /// the first of `architectures`. `None` if the configuration names no class.
    pub architecture: Option<String>,
    /// Whether a projection may follow the decoder, as in models of the class `Qwen3BidirectionalModel`.
    pub(crate) may_project: bool,
    /// The width of the projection, if the configuration contains it.
    pub(crate) num_labels: Option<usize>,
}

impl Config {
    /// Checks that the numbers are consistent. Errors name the fields `n_kv_heads` and `head_dim`.
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

    /// The number of floating-point operations in the matrix multiplications and the attention for a text of
    /// `n_tokens` tokens: two for each weight and token, and four for each pair of a query and a key and each
    /// dimension of the queries.
    pub fn n_operations(&self, n_tokens: usize) -> f64 {
        // In f64, because the product of three counts of a damaged configuration may exceed 64 bits.
        let [c, f, qkv, q] = self.widths();
        let weights = c * (qkv + q) + 3.0 * c * f;
        let tokens = n_tokens as f64;
        let pairs = tokens * (tokens + 1.0) / 2.0;
        let layer = 2.0 * tokens * weights + 4.0 * pairs * q;
        layer * self.num_hidden_layers as f64
    }

    /// The shape [O, I] of the weight of the linear layer `name`. `None` if the model has no such layer.
    pub(crate) fn linear_shape(&self, name: &str) -> Option<[usize; 2]> {
        let (layer_idx, module) = name.strip_prefix("layers.")?.split_once('.')?;
        // `00` and `+0` parse as numbers, but they are not names of layers.
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

    /// The widths C, F, (H + 2K) · D and H · D of the inputs and outputs of linear layers.
    pub(crate) fn widths(&self) -> [f64; 4] {
        let heads = self.heads();
        [self.hidden_size, self.intermediate_size, heads.qkv_columns(), heads.q_columns()]
            .map(|n| n as f64)
    }

    /// The heads of attention.
    pub(crate) fn heads(&self) -> Heads {
        Heads {
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
        }
    }
}
