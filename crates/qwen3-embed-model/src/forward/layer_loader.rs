use std::cell::{Cell, OnceCell};
use std::rc::Rc;

use candle_core::Tensor;
use qwen3_embed_kernels::cpu::{Arithmetic, BLOCK, BYTE_GROUP, Layout, PackedWeight};
use qwen3_embed_kernels::ops;

use crate::checkpoint::matrix::Matrix;
use crate::checkpoint::weights::Weights;
use crate::forward::activations::{Activations, ByteFit};
use crate::forward::calibration::Calibration;
use crate::forward::layer::{DecoderLayer, Projection};
use crate::numerics::Numerics;
use crate::precision::Precision;
use crate::{Config, Result};

/// Loads the weights of one layer.
pub(crate) struct LayerLoader<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) config: &'a Config,
    pub(crate) layer_idx: usize,
    pub(crate) numerics: Numerics,
    pub(crate) device: &'a candle_core::Device,
}

/// A linear layer that is packed when it receives its first input, or at the end of loading its layer.
struct UnpackedProjection {
    numerics: Numerics,
    device: candle_core::Device,
    matrix: Matrix,
    layout: Layout,
    /// The weight of the norm before the layer, if it is multiplied into the matrix.
    norm: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
    /// Whether the layer reads the output of a norm, whose outliers are those of the residual stream.
    reads_norm: bool,
    /// Whether the residual stream of the decoder layer has outliers. The projections after the two norms find them and
    /// are packed before o_proj and down_proj, which read this flag.
    has_outliers: Rc<Cell<bool>>,
    /// The packed layer.
    linear: OnceCell<ops::Linear>,
}

impl LayerLoader<'_> {
    /// Loads and packs the layer. A calibration passes its text through the layer, and each linear layer is packed for
    /// the activations that it receives.
    pub(crate) fn load(&self, calibration: Option<&mut Calibration>) -> Result<DecoderLayer> {
        let heads = self.config.heads();
        let (c, f) = (self.config.hidden_size, self.config.intermediate_size);
        let (q, kv) = (heads.q_columns(), heads.n_kv_heads * heads.head_dim);
        let qkv = [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)];
        let gate_up = [("mlp.gate_proj", f), ("mlp.up_proj", f)];
        let bias = self.config.attention_bias;
        let has_outliers = Rc::default();
        let mut projections = [
            self.projection(&qkv, c, bias, Layout::Plain)?,
            self.projection(&[("self_attn.o_proj", c)], q, bias, Layout::Plain)?,
            self.projection(&gate_up, c, false, Layout::SwiGlu)?,
            self.projection(&[("mlp.down_proj", c)], f, false, Layout::Plain)?,
        ];
        for projection in &mut projections {
            projection.has_outliers = Rc::clone(&has_outliers);
        }
        let input_layernorm = self.norm("input_layernorm", c, &mut projections[0])?;
        let post_attention_layernorm =
            self.norm("post_attention_layernorm", c, &mut projections[2])?;
        let [qkv_proj, o_proj, gate_up_proj, down_proj] = projections;
        // The scale of the scores is a part of the norm of the queries.
        let scale = (1.0 / (heads.head_dim as f64).sqrt()) as f32;
        let mut q_norm = self.vector("self_attn.q_norm", heads.head_dim)?;
        q_norm.iter_mut().for_each(|weight| *weight *= scale);
        let layer = DecoderLayer {
            input_layernorm,
            qkv_proj,
            q_norm: self.tensor(q_norm)?,
            k_norm: self.tensor(self.vector("self_attn.k_norm", heads.head_dim)?)?,
            o_proj,
            post_attention_layernorm,
            gate_up_proj,
            down_proj,
            heads,
            eps: self.config.rms_norm_eps,
        };
        if let Some(calibration) = calibration {
            calibration.pass(&layer)?;
        }
        layer.packed()
    }

    fn name(&self, module: &str, what: &str) -> String {
        format!("layers.{}.{module}.{what}", self.layer_idx)
    }

    fn vector(&self, module: &str, length: usize) -> Result<Vec<f32>> {
        self.weights.vector(&self.name(module, "weight"), length)
    }

    fn tensor(&self, values: Vec<f32>) -> Result<Tensor> {
        let length = values.len();
        Ok(Tensor::from_vec(values, length, self.device)?)
    }

    /// Loads the weight of a norm. In 8 bits, the weight is multiplied into the matrix after the norm, and the norm has
    /// a weight of ones: a feature may have a large norm weight and small matrix weights, and only their product shows
    /// how important the feature is.
    fn norm(&self, module: &str, length: usize, after: &mut UnpackedProjection) -> Result<Tensor> {
        after.reads_norm = true;
        let weight = self.vector(module, length)?;
        if self.numerics.precision != Precision::Int8 || after.matrix.is_q8_0() {
            return self.tensor(weight);
        }
        after.norm = Some(weight);
        self.tensor(vec![1.0; length])
    }

    /// Loads modules with the same number of columns as one linear layer. `modules` are their names and rows.
    fn projection(
        &self,
        modules: &[(&str, usize)],
        n_columns: usize,
        has_bias: bool,
        layout: Layout,
    ) -> Result<UnpackedProjection> {
        let parts: Vec<_> =
            modules.iter().map(|&(module, rows)| (self.name(module, "weight"), rows)).collect();
        let matrix = self.weights.matrix(&parts, n_columns)?;
        let mut bias = Vec::new();
        for &(module, rows) in modules.iter().filter(|_| has_bias) {
            bias.extend(self.weights.vector(&self.name(module, "bias"), rows)?);
        }
        Ok(UnpackedProjection {
            numerics: self.numerics,
            device: self.device.clone(),
            matrix,
            layout,
            norm: None,
            reads_norm: false,
            bias: has_bias.then_some(bias),
            has_outliers: Rc::default(),
            linear: OnceCell::new(),
        })
    }
}

impl DecoderLayer<UnpackedProjection> {
    /// Packs the linear layers that have not received an input.
    fn packed(self) -> Result<DecoderLayer> {
        Ok(DecoderLayer {
            input_layernorm: self.input_layernorm,
            qkv_proj: self.qkv_proj.packed()?,
            q_norm: self.q_norm,
            k_norm: self.k_norm,
            o_proj: self.o_proj.packed()?,
            post_attention_layernorm: self.post_attention_layernorm,
            gate_up_proj: self.gate_up_proj.packed()?,
            down_proj: self.down_proj.packed()?,
            heads: self.heads,
            eps: self.eps,
        })
    }
}

/// Packs the layer for the first input.
impl Projection for UnpackedProjection {
    fn for_input(&self, x: &Tensor) -> Result<&ops::Linear> {
        if let Some(linear) = self.linear.get() {
            return Ok(linear);
        }
        let linear = self.pack(&Activations::of(x)?)?;
        Ok(self.linear.get_or_init(|| linear))
    }
}

impl UnpackedProjection {
    /// The packed layer. Packs it now if it has not received an input.
    fn packed(mut self) -> Result<ops::Linear> {
        let linear = match self.linear.take() {
            Some(linear) => linear,
            None => self.pack(&Activations::default())?,
        };
        Ok(linear)
    }

    /// Packs the layer for activations like `input`.
    fn pack(&self, input: &Activations) -> Result<ops::Linear> {
        let (matrix, device) = (&self.matrix, &self.device);
        let linear = match self.numerics.precision {
            Precision::F32 | Precision::Stored => matrix.in_f32(device, self.layout)?,
            Precision::Bf16 => matrix.in_bf16(device, self.layout)?,
            Precision::Int8 => ops::Linear::new(self.pack_whole(input)),
        };
        matrix.release();
        Ok(match &self.bias {
            Some(bias) => linear.with_bias(bias.clone())?,
            None => linear,
        })
    }

    /// Packs the layer in integers for activations like `input`: without conversion if the stored type allows it,
    /// otherwise rounded to 8 bits.
    fn pack_whole(&self, input: &Activations) -> PackedWeight {
        let (layout, norm, matrix) = (self.layout, self.norm.as_deref(), &self.matrix);
        if self.numerics.arithmetic == Arithmetic::Blocks {
            // The weights are not changed, so the weight of the norm is multiplied into the input.
            let scaled = norm.map(|norm| input.times(norm));
            let input = scaled.as_ref().unwrap_or(input);
            let fits = matrix.is_blocks() && input.fits_bytes_beside_outliers(BLOCK);
            if let Some(weight) = fits.then(|| matrix.pack_blocks(layout, norm)).flatten() {
                return weight;
            }
        }
        let outliers = input.outliers();
        if self.reads_norm {
            self.has_outliers.set(self.has_outliers.get() || !outliers.is_empty());
        }
        let (n_out, n_in) = (matrix.n_rows, matrix.n_columns);
        let read_row = |o: usize, row: &mut [f32]| matrix.read_scaled_row(o, norm, row);
        let has_bytes = self.numerics.int8 == Arithmetic::Bytes;
        let bytes = has_bytes.then(|| input.fitting_bytes(BYTE_GROUP));
        match bytes.flatten() {
            Some(ByteFit::Plain) => PackedWeight::pack_bytes(n_out, n_in, layout, false, read_row),
            // If the residual stream has outliers, the values that o_proj and down_proj add to them need activations in
            // more than 8 bits.
            Some(ByteFit::Rotated) if !self.has_outliers.get() => {
                PackedWeight::pack_bytes(n_out, n_in, layout, true, read_row)
            }
            _ if matrix.is_q8_0() => matrix.pack_q8_0(layout),
            _ => PackedWeight::pack_int8(n_out, n_in, layout, &outliers, read_row),
        }
    }
}
