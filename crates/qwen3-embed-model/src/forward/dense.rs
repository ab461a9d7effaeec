use candle_core::{DType, Device, Tensor};
use qwen3_embed_kernels::cpu::{Epilogue, Layout};
use qwen3_embed_kernels::ops::{Linear, Scratch};
use serde_json::Value;

use crate::checkpoint::modules::{DenseModule, Modules};
use crate::checkpoint::safetensors;
use crate::checkpoint::weights::PROJECTION;
use crate::{Checkpoint, Result};

/// A dense layer after the pooling: `y = f(x · weightᵀ + bias)`, in f32.
///
/// # Source
///
/// `Dense` of sentence-transformers.
#[derive(Debug)]
pub(crate) struct Dense {
    linear: Linear,
    n_in: usize,
    n_out: usize,
    activation: Activation,
}

#[derive(Debug, Clone, Copy)]
enum Activation {
    Identity,
    Tanh,
}

/// The supported activation functions, by their classes in PyTorch.
const ACTIVATIONS: [(&str, Activation); 3] = [
    ("torch.nn.modules.linear.Identity", Activation::Identity),
    ("torch.nn.modules.activation.Tanh", Activation::Tanh),
    ("torch.nn.Tanh", Activation::Tanh),
];

impl Dense {
    /// Loads the layers that turn pooled vectors of `n_in` dimensions into a text's vector: a projection of the
    /// model itself, then the dense layers of its modules.
    pub(crate) fn load_all(
        projection: Option<Self>,
        modules: &Modules,
        n_in: usize,
    ) -> Result<Vec<Self>> {
        let mut n_in = projection.as_ref().map_or(n_in, Self::n_out);
        let mut layers: Vec<Self> = projection.into_iter().collect();
        for module in &modules.dense {
            let dense = Self::load(module, n_in)?;
            n_in = dense.n_out();
            layers.push(dense);
        }
        Ok(layers)
    }

    /// Loads a module whose input has `n_in` dimensions: its `config.json` and its `model.safetensors`.
    fn load(module: &DenseModule, n_in: usize) -> Result<Self> {
        let fields = &module.config;
        let n_out = fields.count("out_features")?;
        fields.expect("in_features", &n_in.to_string(), |value| value == n_in)?;
        for name in ["module_input_name", "module_output_name"] {
            let expected = "sentence_embedding";
            fields.expect_if_present(name, expected, |value| value == expected)?;
        }
        fields.expect_if_present("use_residual", "false", |value| value == false)?;
        let activation = match fields.get("activation_function") {
            None => Some(Activation::Tanh),
            Some(name) => ACTIVATIONS.iter().find(|(known, _)| name == known).map(|known| known.1),
        };
        let Some(activation) = activation else {
            let names = ACTIVATIONS.map(|(name, _)| name).join(", ");
            return Err(fields.error("activation_function", format!("one of {names}")));
        };
        let weights = safetensors::open_folder(&module.folder)?;
        // These weights are small, so all of them are checked.
        weights.verify()?;
        let matrix = weights.matrix(&[("linear.weight".to_owned(), n_out)], n_in)?;
        let linear = matrix.in_f32(&Device::Cpu, Layout::Plain)?;
        let linear = match fields.get("bias").is_none_or(|bias| *bias != Value::Bool(false)) {
            true => linear.with_bias(weights.vector("linear.bias", n_out)?)?,
            false => linear,
        };
        Ok(Self { linear, n_in, n_out, activation })
    }

    /// Loads the projection after the decoder, if the checkpoint has one: `linear.weight` of shape
    /// [`num_labels`, C], without bias or activation.
    pub(crate) fn projection(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let Some(n_out) = checkpoint.projected_size() else { return Ok(None) };
        let n_in = checkpoint.config().hidden_size;
        let matrix = checkpoint.weights().matrix(&[(PROJECTION.to_owned(), n_out)], n_in)?;
        let linear = matrix.in_f32(&Device::Cpu, Layout::Plain)?;
        Ok(Some(Self { linear, n_in, n_out, activation: Activation::Identity }))
    }

    /// The dimensions of the layer's output.
    pub(crate) fn n_out(&self) -> usize {
        self.n_out
    }

    /// Applies the layer to `x`, row-major [N, I]. The result is row-major [N, O].
    pub(crate) fn forward(&self, x: Vec<f32>) -> Result<Vec<f32>> {
        let n_rows = x.len() / self.n_in;
        let x = Tensor::from_vec(x, (n_rows, self.n_in), &Device::Cpu)?;
        let out = Tensor::zeros((n_rows, self.n_out), DType::F32, &Device::Cpu)?;
        self.linear.forward(&x, &out, Epilogue::Store, &Scratch::default())?;
        let mut out = qwen3_embed_kernels::ops::to_f32(&out)?;
        if let Activation::Tanh = self.activation {
            out.iter_mut().for_each(|value| *value = value.tanh());
        }
        Ok(out)
    }
}
