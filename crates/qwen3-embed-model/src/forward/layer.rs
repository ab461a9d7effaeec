use std::cell::{Cell, OnceCell};
use std::rc::Rc;

use candle_core::Tensor;
use qwen3_embed_kernels::cpu::{
    Arithmetic, BLOCK, BYTE_GROUP, Epilogue, Heads, Layout, PackedWeight,
};
use qwen3_embed_kernels::{Queries, Ragged, ops};

use crate::checkpoint::matrix::Matrix;
use crate::checkpoint::weights::Weights;
use crate::forward::calibration::{Calibration, Fitting, Input};
use crate::forward::workspace::Room;
use crate::numerics::Numerics;
use crate::{Config, Precision, Result};

/// One decoder layer. Names are the checkpoint's. `L` is a linear layer: while loading, one that is yet to
/// be packed.
#[derive(Debug)]
pub(crate) struct DecoderLayer<L = ops::Linear> {
    input_layernorm: Tensor,
    /// q_proj, k_proj and v_proj as one product, [(H + 2K) · D, C].
    qkv_proj: L,
    /// Divided by √D, which attention would else do with every score.
    q_norm: Tensor,
    k_norm: Tensor,
    o_proj: L,
    post_attention_layernorm: Tensor,
    /// gate_proj and up_proj as one product with SwiGLU behind it, [2F, C].
    gate_up_proj: L,
    down_proj: L,
    heads: Heads,
    eps: f64,
}

impl<L: Product> DecoderLayer<L> {
    /// Adds this layer's attention and MLP to the residual stream `x`, [T, C]. Returns the rows that
    /// have queries: all of them, or the last ones, and then the others are left as they are.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        rope: [&Tensor; 2],
        batch: &Ragged,
        queries: Queries,
        room: &Room<'_>,
    ) -> Result<Tensor> {
        let x = self.attend(x, rope, batch, queries, room)?;
        self.feed_forward(&x, &room.first(x.dims()[0])?)?;
        Ok(x)
    }

    /// Adds this layer's attention to the residual stream, for the rows that have queries; returns
    /// them. Keys and values are computed for all rows.
    fn attend(
        &self,
        x: &Tensor,
        rope: [&Tensor; 2],
        batch: &Ragged,
        queries: Queries,
        room: &Room<'_>,
    ) -> Result<Tensor> {
        let Room { hidden, qkv, scratch, .. } = room;
        let (n_tokens, first) = (batch.n_tokens(), batch.first_query(queries) - batch.n_given());
        let with_queries = |rows: &Tensor| rows.narrow(0, first, n_tokens - first);
        let computed = qkv.narrow(0, batch.n_given(), n_tokens)?;
        ops::rms_norm(x, &self.input_layernorm, self.eps, hidden)?;
        let qkv_proj = self.qkv_proj.for_input(hidden)?;
        if first == 0 {
            qkv_proj.forward(hidden, &computed, Epilogue::Store, scratch)?;
        } else {
            let (q, end) = (self.heads.q_columns(), self.heads.qkv_columns());
            let (last, of_last) = (with_queries(hidden)?, with_queries(&computed)?);
            qkv_proj.forward_columns(hidden, q..end, &computed, Epilogue::Store, scratch)?;
            qkv_proj.forward_columns(&last, 0..q, &of_last, Epilogue::Store, scratch)?;
        }
        let norms = [&self.q_norm, &self.k_norm];
        ops::qk_norm_rope(&computed, self.heads, first, norms, self.eps, rope)?;
        let attention = room.attention.narrow(0, 0, n_tokens - first)?;
        ops::attention(qkv, batch, queries, self.heads, scratch, &attention)?;
        let x = with_queries(x)?;
        let o_proj = self.o_proj.for_input(&attention)?;
        o_proj.forward(&attention, &x, Epilogue::Add, scratch)?;
        Ok(x)
    }

    /// Adds this layer's MLP to the residual stream.
    fn feed_forward(&self, x: &Tensor, room: &Room<'_>) -> Result<()> {
        let Room { hidden, ffn, scratch, .. } = room;
        ops::rms_norm(x, &self.post_attention_layernorm, self.eps, hidden)?;
        let gate_up_proj = self.gate_up_proj.for_input(hidden)?;
        gate_up_proj.forward(hidden, ffn, Epilogue::Store, scratch)?;
        let down_proj = self.down_proj.for_input(ffn)?;
        down_proj.forward(ffn, x, Epilogue::Add, scratch)?;
        Ok(())
    }
}

#[cfg(test)]
impl DecoderLayer {
    /// Bytes of the weights.
    pub(crate) fn weight_bytes(&self) -> usize {
        let linear = [&self.qkv_proj, &self.o_proj, &self.gate_up_proj, &self.down_proj];
        let norms =
            [&self.input_layernorm, &self.q_norm, &self.k_norm, &self.post_attention_layernorm];
        linear.map(|linear| linear.n_bytes()).iter().sum::<usize>()
            + size_of::<f32>() * norms.map(Tensor::elem_count).iter().sum::<usize>()
    }
}

/// A linear layer, packed or yet to be.
pub(crate) trait Product {
    /// The packed layer, for this input if it is not packed yet.
    fn for_input(&self, x: &Tensor) -> Result<&ops::Linear>;
}

impl Product for ops::Linear {
    fn for_input(&self, _: &Tensor) -> Result<&ops::Linear> {
        Ok(self)
    }
}

/// Reads one layer's weights.
pub(crate) struct LayerLoader<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) config: &'a Config,
    pub(crate) layer_idx: usize,
    pub(crate) numerics: Numerics,
    pub(crate) device: &'a candle_core::Device,
}

/// A linear layer in its file, and how it is to be packed.
struct Projection {
    numerics: Numerics,
    device: candle_core::Device,
    matrix: Matrix,
    layout: Layout,
    /// The weight of the norm before it, if that is to become part of the product.
    norm: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
    /// Whether the residual stream of this layer has outliers, which its norms' products find out before the products
    /// behind them are packed.
    has_outliers: Rc<Cell<bool>>,
    /// Once it is packed.
    linear: OnceCell<ops::Linear>,
}

impl LayerLoader<'_> {
    /// Reads and packs the layer. With a calibration, which is at this layer then, each product is packed
    /// as its input, which the products before it have computed, asks for.
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
        let q_norm = self.vector("self_attn.q_norm", heads.head_dim)?;
        let layer = DecoderLayer {
            input_layernorm,
            qkv_proj,
            q_norm: (self.tensor(q_norm)? / (heads.head_dim as f64).sqrt())?,
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

    /// A norm's weight, or ones where it becomes part of the product behind the norm, as in 8 bits:
    /// where a channel's norm weight is large and its columns are small, only together do they show
    /// what the channel is worth.
    fn norm(&self, module: &str, length: usize, behind: &mut Projection) -> Result<Tensor> {
        let weight = self.vector(module, length)?;
        if self.numerics.precision != Precision::Int8 || behind.matrix.is_q8_0() {
            return self.tensor(weight);
        }
        behind.norm = Some(weight);
        self.tensor(vec![1.0; length])
    }

    /// Modules of [rows, columns] as one linear layer.
    fn projection(
        &self,
        modules: &[(&str, usize)],
        n_columns: usize,
        has_bias: bool,
        layout: Layout,
    ) -> Result<Projection> {
        let parts: Vec<_> =
            modules.iter().map(|&(module, rows)| (self.name(module, "weight"), rows)).collect();
        let matrix = self.weights.matrix(&parts, n_columns)?;
        let mut bias = Vec::new();
        for &(module, rows) in modules.iter().filter(|_| has_bias) {
            bias.extend(self.weights.vector(&self.name(module, "bias"), rows)?);
        }
        Ok(Projection {
            numerics: self.numerics,
            device: self.device.clone(),
            matrix,
            layout,
            norm: None,
            bias: has_bias.then_some(bias),
            has_outliers: Rc::default(),
            linear: OnceCell::new(),
        })
    }
}

impl DecoderLayer<Projection> {
    /// The layer for use. What has not met an input is packed without one.
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

/// It is packed when it meets its first input, which says how.
impl Product for Projection {
    fn for_input(&self, x: &Tensor) -> Result<&ops::Linear> {
        if let Some(linear) = self.linear.get() {
            return Ok(linear);
        }
        let linear = self.pack(&Input::of(x)?)?;
        Ok(self.linear.get_or_init(|| linear))
    }
}

impl Projection {
    /// The linear layer, packed.
    fn packed(mut self) -> Result<ops::Linear> {
        let linear = match self.linear.take() {
            Some(linear) => linear,
            None => self.pack(&Input::default())?,
        };
        Ok(linear)
    }

    /// Packs it for such an input.
    fn pack(&self, input: &Input) -> Result<ops::Linear> {
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

    /// Packs it in whole numbers, for such an input: as it is in the file, if that is in few bits or in 8,
    /// or rounded to 8 bits.
    fn pack_whole(&self, input: &Input) -> PackedWeight {
        let (layout, norm, matrix) = (self.layout, self.norm.as_deref(), &self.matrix);
        if self.numerics.arithmetic == Arithmetic::Blocks {
            // What multiplies the columns of such a weight is its input.
            let scaled = norm.map(|norm| input.times(norm));
            let input = scaled.as_ref().unwrap_or(input);
            let fits = matrix.is_blocks() && input.fits_bytes_beside_outliers(BLOCK);
            if let Some(weight) = fits.then(|| matrix.pack_blocks(layout, norm)).flatten() {
                return weight;
            }
        }
        let outliers = input.outliers();
        self.has_outliers.set(self.has_outliers.get() || !outliers.is_empty());
        let (n_out, n_in) = (matrix.n_rows, matrix.n_columns);
        let read_row = |o: usize, row: &mut [f32]| matrix.read_scaled_row(o, norm, row);
        let reads_bytes = self.numerics.int8 == Arithmetic::Bytes;
        let bytes = reads_bytes.then(|| input.fitting_bytes(BYTE_GROUP));
        match bytes.flatten() {
            Some(Fitting::Plain) => PackedWeight::pack_bytes(n_out, n_in, layout, false, read_row),
            // Where a few channels hold most of the residual stream, what is added to them must be more exact.
            Some(Fitting::Rotated) if !self.has_outliers.get() => {
                PackedWeight::pack_bytes(n_out, n_in, layout, true, read_row)
            }
            _ if matrix.is_q8_0() => matrix.pack_q8_0(layout),
            _ => PackedWeight::pack_int8(n_out, n_in, layout, &outliers, read_row),
        }
    }
}
