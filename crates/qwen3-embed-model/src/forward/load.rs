use std::path::Path;
use std::sync::Mutex;

use candle_core::Tensor;
use qwen3_embed_kernels::cpu::Arithmetic;
use qwen3_embed_kernels::ops::{self, ReleaseOnDrop};

use crate::batching::prefix_cache::PrefixCache;
use crate::batching::sharing::Sharing;
use crate::checkpoint::modules::Modules;
use crate::forward::calibration::Calibration;
use crate::forward::dense::Dense;
use crate::forward::layer_loader::LayerLoader;
use crate::forward::rope::RopeTable;
use crate::forward::token_embeddings::TokenEmbeddings;
use crate::numerics::Numerics;
use crate::precision::Precision;
use crate::{Checkpoint, Device, Error, Model, Result};

/// Options of [`Model::load_with`].
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The device that the model runs on.
    pub device: Device,
    /// The precision of weights and matrix multiplications.
    pub precision: Precision,
    /// Whether the CPU uses a copy of the token embeddings in memory and not the memory-mapped file: see
    /// [`Model::load_with`].
    pub preload: bool,
    /// Whether all values of the checkpoint's tensors are read before the model is loaded, to check that they are
    /// finite: see [`Model::load_with`].
    pub verify: bool,
    /// Whether the model returns the hidden states of last tokens, and ignores `modules.json`.
    pub hidden_states: bool,
    /// The arithmetic of matrix multiplications, even if it is slow on this CPU. Tests use it to check the arithmetic
    /// of other CPUs. It must be possible with the precision.
    #[doc(hidden)]
    pub arithmetic: Option<Arithmetic>,
}

impl LoadOptions {
    /// Options with a precision and an arithmetic, on the CPU.
    #[doc(hidden)]
    pub fn multiplying(precision: Precision, arithmetic: Arithmetic) -> Self {
        Self { precision, arithmetic: Some(arithmetic), ..Self::default() }
    }
}

impl Model {
    /// Opens the checkpoint at `path`, a folder or a GGUF file, and loads it: a short form of
    /// [`load_with`](Self::load_with).
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`] and [`load_with`](Self::load_with).
    pub fn load(path: &Path, device: Device, precision: Precision) -> Result<Self> {
        let options = LoadOptions { device, precision, ..LoadOptions::default() };
        Self::load_with(&Checkpoint::open(path)?, &options)
    }

    /// Loads the decoder of a checkpoint, and the pooling and the dense layers that its `modules.json` lists.
    ///
    /// Weights are packed into memory for the kernels of the device. On the CPU, token embeddings are not copied:
    /// the rows that texts need are read from the memory-mapped file. If memory is short, the system drops pages
    /// of the map and reads them again from disk. With [`preload`](LoadOptions::preload), token embeddings are
    /// copied into memory, and no file is needed after the model is loaded.
    ///
    /// A weight that is NaN or infinite is an error. Norms and biases are checked completely. Of each matrix, 64 parts of
    /// 256 values are checked, unless [`verify`](LoadOptions::verify) is set: the whole file is read then, once more.
    ///
    /// # Errors
    ///
    /// [`Error::WeightNotFinite`](crate::Error::WeightNotFinite) if a weight is not finite;
    /// [`Error::WeightsTooLarge`] if the device has too little memory;
    /// [`Error::MissingTensor`](crate::Error::MissingTensor), [`Error::TensorShape`](crate::Error::TensorShape) or
    /// [`Error::TensorType`](crate::Error::TensorType) if a tensor does not fit the configuration;
    /// [`Error::Field`](crate::Error::Field) if `modules.json` lists modules that are not supported;
    /// [`Error::Kernel`](crate::Error::Kernel) if the device cannot be used.
    pub fn load_with(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Self> {
        let (config, weights) = (checkpoint.config(), checkpoint.weights());
        if options.verify {
            weights.verify()?;
        }
        let device = options.device.open()?;
        // If loading fails, it is dropped after the tensors.
        let release = ReleaseOnDrop::new(&device);
        let modules = match options.hidden_states {
            true => Modules::default(),
            false => checkpoint.modules()?.unwrap_or(Modules::plain(config.pooling)),
        };
        modules.check_class(checkpoint.path(), config)?;
        let projection = match options.hidden_states {
            true => None,
            false => Dense::projection(checkpoint)?,
        };
        let dense = Dense::load_all(projection, &modules, config.hidden_size)?;
        let mut numerics = Numerics::choose(options.precision, weights.layer_types(), &device);
        if let Some(arithmetic) = options.arithmetic {
            numerics = Numerics::new(numerics.precision, arithmetic, &device);
        }
        check_memory(checkpoint, numerics.precision, &device)?;
        let shape = [config.vocab_size, config.hidden_size];
        let embed_tokens = TokenEmbeddings::new(
            weights.rows("embed_tokens.weight", shape)?,
            &device,
            options.preload,
        )?;
        let norm = weights.vector("norm.weight", config.hidden_size)?;
        let norm = Tensor::from_vec(norm, config.hidden_size, &device)?;
        let rope =
            RopeTable::new(config.head_dim, config.rope_theta, config.max_position_embeddings);
        let mut calibration = match numerics.needs_calibration(weights.are_q8_0()) {
            true => Some(Calibration::new(config, &embed_tokens, &rope, &device)?),
            false => None,
        };
        let mut layers = Vec::new();
        for layer_idx in 0..config.num_hidden_layers {
            let device = &device;
            let loader = LayerLoader { weights, config, layer_idx, numerics, device };
            layers.push(loader.load(calibration.as_mut())?);
        }
        let (n_tokens, n_computed) = Default::default();
        let model = Self {
            config: config.clone(),
            embed_tokens,
            layers,
            norm,
            rope,
            pooling: modules.pooling,
            dense,
            quantizes: modules.quantizes,
            numerics,
            _release: release,
            device,
            workspaces: Mutex::default(),
            recordings: Mutex::default(),
            turn: Mutex::default(),
            batch_tokens: usize::MAX,
            sharing: Sharing::Off,
            prefixes: PrefixCache::new(0, 0),
            n_tokens,
            n_computed,
        };
        Ok(model.with_sharing(Sharing::default()))
    }
}

/// Checks that the device has memory for the packed weights. Systems grant more memory than they have, and end the process
/// when it uses the memory.
fn check_memory(
    checkpoint: &Checkpoint,
    precision: Precision,
    device: &candle_core::Device,
) -> Result<()> {
    let (config, weights) = (checkpoint.config(), checkpoint.weights());
    let bytes_per_weight = precision.bytes_per_weight();
    let of_config = config.weight_bytes(precision, bytes_per_weight, weights.blocks());
    // A configuration that needs more than the file has is another error.
    let n_values = weights.stored_types().map(|(_, n_values)| n_values);
    let n_values = n_values.fold(0, u64::saturating_add);
    let of_file = (n_values as f64 * bytes_per_weight) as u64;
    match ops::free_bytes(device)? {
        Some(free_bytes) => expect_room(of_config.min(of_file), free_bytes as u64),
        None => Ok(()),
    }
}

fn expect_room(needed_bytes: u64, free_bytes: u64) -> Result<()> {
    match needed_bytes <= free_bytes {
        true => Ok(()),
        false => Err(Error::WeightsTooLarge { needed_bytes, free_bytes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_do_not_fit_are_an_error_with_both_sizes() {
        assert!(expect_room(8 << 20, 8 << 20).is_ok());
        let error = expect_room((8 << 20) + 1, 8 << 20).unwrap_err();
        assert_eq!(error.to_string(), "the weights need about 8 MiB of memory, and 8 MiB are left");
    }
}
