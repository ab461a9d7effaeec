use candle_core::Tensor;
use qwen3_embed_kernels::cpu::{Epilogue, Heads};
use qwen3_embed_kernels::{Queries, Ragged, ops};

use crate::Result;
use crate::forward::workspace::Room;

/// One decoder layer, with the names of the checkpoint. `L` is the type of its linear layers. While a model is loaded,
/// they are packed when they receive their first input.
#[derive(Debug)]
pub(crate) struct DecoderLayer<L = ops::Linear> {
    pub(crate) input_layernorm: Tensor,
    /// q_proj, k_proj and v_proj as one matrix [(H + 2K) · D, C].
    pub(crate) qkv_proj: L,
    /// Divided by √D, so that attention need not divide every score.
    pub(crate) q_norm: Tensor,
    pub(crate) k_norm: Tensor,
    pub(crate) o_proj: L,
    pub(crate) post_attention_layernorm: Tensor,
    /// gate_proj and up_proj as one matrix [2F, C], followed by SwiGLU.
    pub(crate) gate_up_proj: L,
    pub(crate) down_proj: L,
    pub(crate) heads: Heads,
    pub(crate) eps: f64,
}

impl<L: Projection> DecoderLayer<L> {
    /// Adds the attention and the MLP of this layer to the residual stream `x`, [T, C].
    ///
    /// With [`Queries::Last`], only the rows of last tokens, at the end of the batch, are computed and returned. Keys
    /// and values are computed for all rows.
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

    /// Adds the attention to the residual stream in the rows that have queries, and returns these rows.
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

    /// Adds the MLP to the residual stream.
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
    /// The size of the weights in bytes.
    pub(crate) fn weight_bytes(&self) -> usize {
        let linear = [&self.qkv_proj, &self.o_proj, &self.gate_up_proj, &self.down_proj];
        let norms =
            [&self.input_layernorm, &self.q_norm, &self.k_norm, &self.post_attention_layernorm];
        linear.map(|linear| linear.n_bytes()).iter().sum::<usize>()
            + size_of::<f32>() * norms.map(Tensor::elem_count).iter().sum::<usize>()
    }
}

/// A linear layer of the decoder.
pub(crate) trait Projection {
    /// The packed layer. A layer that is not packed yet is packed for activations like `x`.
    fn for_input(&self, x: &Tensor) -> Result<&ops::Linear>;
}

impl Projection for ops::Linear {
    fn for_input(&self, _: &Tensor) -> Result<&ops::Linear> {
        Ok(self)
    }
}
