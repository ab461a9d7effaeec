use candle_core::Tensor;
use qwen3_embed_kernels::cpu::{Epilogue, Heads};
use qwen3_embed_kernels::{Queries, Ragged, ops};

use crate::Result;
use crate::forward::workspace::Room;

/// One decoder layer. Names are the checkpoint's. `L` is a linear layer: while loading, one that is yet to
/// be packed.
#[derive(Debug)]
pub(crate) struct DecoderLayer<L = ops::Linear> {
    pub(crate) input_layernorm: Tensor,
    /// q_proj, k_proj and v_proj as one product, [(H + 2K) · D, C].
    pub(crate) qkv_proj: L,
    /// Divided by √D, which attention would else do with every score.
    pub(crate) q_norm: Tensor,
    pub(crate) k_norm: Tensor,
    pub(crate) o_proj: L,
    pub(crate) post_attention_layernorm: Tensor,
    /// gate_proj and up_proj as one product with SwiGLU behind it, [2F, C].
    pub(crate) gate_up_proj: L,
    pub(crate) down_proj: L,
    pub(crate) heads: Heads,
    pub(crate) eps: f64,
}

impl<L: Projection> DecoderLayer<L> {
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
pub(crate) trait Projection {
    /// The packed layer, for this input if it is not packed yet.
    fn for_input(&self, x: &Tensor) -> Result<&ops::Linear>;
}

impl Projection for ops::Linear {
    fn for_input(&self, _: &Tensor) -> Result<&ops::Linear> {
        Ok(self)
    }
}
