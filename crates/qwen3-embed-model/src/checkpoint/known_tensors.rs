use std::collections::HashSet;

use crate::checkpoint::weights::{PROJECTION, Weights};
use crate::{Config, Error, Result};

/// The weights outside of the layers: the weights of the decoder itself, and the weights of the heads.
const BESIDE_LAYERS: [&str; 4] =
    ["embed_tokens.weight", "norm.weight", "lm_head.weight", "score.weight"];

/// The modules of a layer that have a bias if `attention_bias` is set.
const ATTENTION: [&str; 4] =
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];

/// The other modules of a layer.
const OTHER_MODULES: [&str; 7] = [
    "input_layernorm",
    "self_attn.q_norm",
    "self_attn.k_norm",
    "post_attention_layernorm",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// A buffer that some exporters save for the decoder or for each layer. It is not read, because it follows from
/// `rope_theta`.
const ROTARY_FREQUENCIES: &str = "rotary_emb.inv_freq";

/// The ends of the names of the tensors that MLX saves beside a quantized weight.
const MLX: [&str; 2] = [".scales", ".biases"];

impl Weights {
    /// Rejects a tensor that is not part of a decoder with this configuration and its heads. Ignoring it would give
    /// other results than the model's own code.
    pub(crate) fn check_names(&self, config: &Config) -> Result<()> {
        let names = self.names();
        let mut known: HashSet<String> =
            BESIDE_LAYERS.iter().map(|name| self.name_in_file(name)).collect();
        // A configuration may name more layers than there are tensors. Reading the layers reports missing tensors.
        for layer_idx in 0..config.num_hidden_layers.min(names.len()) {
            let in_file = |module: &&str, what: &str| {
                self.name_in_file(&format!("layers.{layer_idx}.{module}.{what}"))
            };
            let biases = ATTENTION.iter().filter(|_| config.attention_bias);
            known.extend(biases.map(|module| in_file(module, "bias")));
            let modules = ATTENTION.iter().chain(&OTHER_MODULES);
            known.extend(modules.map(|module| in_file(module, "weight")));
        }
        known.extend(config.may_project.then(|| self.name_in_file(PROJECTION)));
        let is_known = |name: &str| known.contains(name) || name.ends_with(ROTARY_FREQUENCIES);
        let Some(name) = names.into_iter().find(|name| !is_known(name)) else { return Ok(()) };
        let path = self.path_of(name);
        match MLX.iter().any(|suffix| name.ends_with(suffix)) {
            true => Err(Error::QuantizedByMlx { path, found: format!("tensor `{name}`") }),
            false => Err(Error::UnexpectedTensor { path, name: name.to_owned() }),
        }
    }
}
