//! One function for each operation of the forward pass, on candle tensors.
//!
//! The implementation is the portable one: composed from candle's operations, it runs on any
//! device and in any floating-point type that candle has. A kernel that is faster on some device
//! is called from here and from nowhere else; no other module branches on the device.
//!
//! # Determinism
//!
//! On the CPU a row's result depends on that row alone (for attention: on its text alone), bit for
//! bit: not on the rest of the batch, nor on the number of threads. candle's matrix product keeps
//! that promise as long as it takes the same path for every number of rows; [`Linear`] sees to it.

use candle_core::{D, DType, Tensor};

use crate::{Error, Ragged, Result};

/// RMSNorm of each row of the last dimension: `y = x / sqrt(mean(x²) + eps) · weight`.
///
/// # Shapes
///
/// `x` is [.., C] and `weight` is `[C]`; the result is [.., C].
///
/// # Errors
///
/// [`Error::Shape`] if the last dimension of `x` is not C.
///
/// # Source
///
/// Zhang and Sennrich, *Root Mean Square Layer Normalization* (2019), equation 4.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let channels = weight.elem_count();
    if weight.rank() != 1 || x.dims().last() != Some(&channels) {
        return Err(shape_error("rms_norm", format!("[.., C = {channels}]"), x));
    }
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    Ok(candle_nn::ops::rms_norm(&x.contiguous()?, weight, eps as f32)?)
}

/// A linear layer, `y = x · weightᵀ + bias`.
///
/// The weight may be kept in another type than the activations, bf16 for instance: it is then
/// converted block by block as it is used, so that the product is computed in the type of `x`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

/// Output features that are converted at a time when the weight has another type than `x`.
const CONVERTED_COLUMNS: usize = 1024;

impl Linear {
    /// A layer with this weight and bias.
    ///
    /// # Shapes
    ///
    /// `weight` is [O, I] and `bias` is `[O]`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if they are not.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        if weight.rank() != 2 {
            return Err(shape_error("linear weight", "[O, I]".into(), &weight));
        }
        if let Some(bias) = &bias
            && bias.dims() != [weight.dims()[0]]
        {
            return Err(shape_error("linear bias", format!("[O = {}]", weight.dims()[0]), bias));
        }
        Ok(Self { weight, bias })
    }

    /// Applies the layer to every row.
    ///
    /// # Shapes
    ///
    /// `x` is [T, I]; the result is [T, O].
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if `x` is not [T, I].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (n_out, n_in) = self.weight.dims2()?;
        let n_rows = match x.dims() {
            &[n_rows, columns] if columns == n_in => n_rows,
            _ => return Err(shape_error("linear", format!("[T, I = {n_in}]"), x)),
        };
        if n_rows == 0 {
            return Ok(Tensor::zeros((0, n_out), x.dtype(), x.device())?);
        }
        let padding = min_rows(n_out).saturating_sub(n_rows);
        let x = if padding > 0 { x.pad_with_zeros(0, 0, padding)? } else { x.contiguous()? };
        let y = if self.weight.dtype() == x.dtype() {
            x.matmul(&self.weight.t()?)?
        } else {
            self.converted_product(&x)?
        };
        let y = y.narrow(0, 0, n_rows)?;
        match &self.bias {
            Some(bias) => Ok(y.broadcast_add(&bias.to_dtype(y.dtype())?)?),
            None => Ok(y),
        }
    }

    /// The product with a weight of another type than `x`.
    fn converted_product(&self, x: &Tensor) -> Result<Tensor> {
        let n_out = self.weight.dim(0)?;
        let mut blocks = Vec::with_capacity(n_out.div_ceil(CONVERTED_COLUMNS));
        for start in (0..n_out).step_by(CONVERTED_COLUMNS) {
            let columns = CONVERTED_COLUMNS.min(n_out - start);
            let weight = self.weight.narrow(0, start, columns)?.to_dtype(x.dtype())?;
            blocks.push(x.matmul(&weight.t()?)?);
        }
        Ok(Tensor::cat(&blocks, 1)?)
    }
}

/// The least number of rows with which the CPU's matrix product is asked for `n_out` columns.
///
/// The `gemm` crate, which candle calls, sums in another order when the result is a vector, when it
/// has at most 256 elements, or when it is at most 64 × 64. Fewer rows than this are padded with
/// zeros, so that one text alone is computed in the same order as in a batch. For the published
/// models the number is 2.
fn min_rows(n_out: usize) -> usize {
    let last_block = (n_out - 1) % CONVERTED_COLUMNS + 1;
    match last_block {
        0..=64 => 65.max(256 / last_block + 1),
        _ => 2.max(256 / last_block + 1),
    }
}

/// Per-head RMSNorm followed by rotary position embedding, for queries or keys. Lane `i` of a head
/// is paired with lane `i + D/2`.
///
/// # Shapes
///
/// `x` is [T, heads · D], `weight` is `[D]`, `cos` and `sin` are [T, D / 2], one row for each token;
/// the result is [T, heads, D].
///
/// # Errors
///
/// [`Error::Shape`] if the columns of `x` are not whole heads or the tables do not fit.
///
/// # Source
///
/// Su et al., *RoFormer* (2021), equation 34, with the half-split pairing of GPT-NeoX.
pub fn qk_norm_rope(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    cos: &Tensor,
    sin: &Tensor,
) -> Result<Tensor> {
    let head_dim = weight.elem_count();
    let (n_rows, n_heads) = match x.dims() {
        &[rows, columns] if columns % head_dim == 0 => (rows, columns / head_dim),
        _ => return Err(shape_error("qk_norm_rope", format!("[T, heads · {head_dim}]"), x)),
    };
    for table in [cos, sin] {
        if table.dims() != [n_rows, head_dim / 2] {
            let expected = format!("[T = {n_rows}, D / 2 = {}]", head_dim / 2);
            return Err(shape_error("qk_norm_rope tables", expected, table));
        }
    }
    if n_rows == 0 {
        return Ok(x.reshape((0, n_heads, head_dim))?);
    }
    let heads = x.contiguous()?.reshape((1, n_rows, n_heads, head_dim))?;
    let normed = rms_norm(&heads, weight, eps)?;
    Ok(candle_nn::rotary_emb::rope_thd(&normed, cos, sin)?.squeeze(0)?)
}

/// Scores that are held at a time, over all heads: 64 MiB in f32.
const MAX_SCORES: usize = 1 << 24;

/// Queries of one text that are computed together, memory permitting.
const QUERY_BLOCK: usize = 128;

/// Causal grouped-query attention within each text: a token sees itself and what comes before it
/// in its own text, and query head `h` reads key/value head `h / (H / K)`.
///
/// Queries are taken in blocks, so that memory grows with a text's length and not with its square.
///
/// # Shapes
///
/// `q` is [T, H, D]; `k` and `v` are [T, K, D]; the result is [T, H · D].
///
/// # Errors
///
/// [`Error::Shape`] if they are not, or if T is not the batch's.
///
/// # Source
///
/// Ainslie et al., *GQA* (2023); softmax(q·kᵀ / √D)·v of Vaswani et al. (2017), equation 1.
pub fn causal_attention(q: &Tensor, k: &Tensor, v: &Tensor, batch: &Ragged) -> Result<Tensor> {
    let n_tokens = batch.n_tokens();
    let (n_heads, head_dim) = match q.dims() {
        &[rows, heads, dim] if rows == n_tokens && dim > 0 => (heads, dim),
        _ => return Err(shape_error("causal_attention q", format!("[T = {n_tokens}, H, D]"), q)),
    };
    for operand in [k, v] {
        match operand.dims() {
            &[rows, kv_heads, dim]
                if rows == n_tokens
                    && dim == head_dim
                    && kv_heads > 0
                    && n_heads % kv_heads == 0 => {}
            _ => {
                let expected = format!("[T = {n_tokens}, K dividing {n_heads}, D = {head_dim}]");
                return Err(shape_error("causal_attention k and v", expected, operand));
            }
        }
    }
    if n_tokens == 0 {
        return Ok(q.reshape((0, n_heads * head_dim))?);
    }
    let q = (q / (head_dim as f64).sqrt())?;
    let mut blocks = Vec::new();
    for text in batch.ranges() {
        // [K, D, t] and [K, t, D]
        let keys = k.narrow(0, text.start, text.len())?.permute((1, 2, 0))?.contiguous()?;
        let values = v.narrow(0, text.start, text.len())?.transpose(0, 1)?.contiguous()?;
        let mut start = 0;
        while start < text.len() {
            let longest = (start + QUERY_BLOCK).min(text.len());
            let rows = (MAX_SCORES / (n_heads * longest)).clamp(1, QUERY_BLOCK);
            let end = (start + rows).min(text.len());
            let queries = q.narrow(0, text.start + start, end - start)?;
            blocks.push(attention_block(&queries, &keys, &values, start)?);
            start = end;
        }
    }
    Ok(Tensor::cat(&blocks, 0)?)
}

/// Attention of a block of one text's queries, the first of which stands at position `start`.
///
/// # Shapes
///
/// `q` is [b, H, D], `keys` is [K, D, t], `values` is [K, t, D]; the result is [b, H · D].
fn attention_block(q: &Tensor, keys: &Tensor, values: &Tensor, start: usize) -> Result<Tensor> {
    let (n_queries, n_heads, head_dim) = q.dims3()?;
    let n_kv_heads = keys.dim(0)?;
    let group = n_heads / n_kv_heads;
    let end = start + n_queries;
    // The query heads that share a key/value head lie below one another: [K, group · b, D].
    let q = q.reshape((n_queries, n_kv_heads, group, head_dim))?.permute((1, 2, 0, 3))?;
    let q = q.contiguous()?.reshape((n_kv_heads, group * n_queries, head_dim))?;
    let scores = q.matmul(&keys.narrow(2, 0, end)?.contiguous()?)?;
    let scores = scores.reshape((n_kv_heads, group, n_queries, end))?;
    let scores = match causal_mask(start, n_queries, &scores)? {
        Some(mask) => scores.broadcast_add(&mask)?,
        None => scores,
    };
    let weights = candle_nn::ops::softmax_last_dim(&scores)?;
    let weights = weights.reshape((n_kv_heads, group * n_queries, end))?;
    let y = weights.matmul(&values.narrow(1, 0, end)?.contiguous()?)?;
    let y = y.reshape((n_kv_heads, group, n_queries, head_dim))?.permute((2, 0, 1, 3))?;
    Ok(y.contiguous()?.reshape((n_queries, n_heads * head_dim))?)
}

/// Zero where a query may look and −∞ where it may not, [b, t], in the type of `like`; nothing if
/// the only query is the text's last token so far.
fn causal_mask(start: usize, n_queries: usize, like: &Tensor) -> Result<Option<Tensor>> {
    if n_queries == 1 {
        return Ok(None);
    }
    let end = start + n_queries;
    let mask: Vec<f32> = (start..end)
        .flat_map(|row| {
            (0..end).map(move |column| if column > row { f32::NEG_INFINITY } else { 0.0 })
        })
        .collect();
    let mask = Tensor::from_vec(mask, (n_queries, end), like.device())?;
    Ok(Some(mask.to_dtype(like.dtype())?))
}

/// SwiGLU: `silu(gate) · up`, where `silu(x) = x / (1 + exp(−x))`.
///
/// # Shapes
///
/// `gate_up` is [T, 2F], each row its F gate values and then its F up values; the result is
/// [T, F].
///
/// # Errors
///
/// [`Error::Shape`] if `gate_up` has no even number of columns.
///
/// # Source
///
/// Shazeer, *GLU Variants Improve Transformer* (2020), equation 6.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    let ffn_size = match gate_up.dims() {
        &[_, columns] if columns % 2 == 0 => columns / 2,
        _ => return Err(shape_error("swiglu", "[T, 2F]".into(), gate_up)),
    };
    let gate = gate_up.narrow(D::Minus1, 0, ffn_size)?;
    let up = gate_up.narrow(D::Minus1, ffn_size, ffn_size)?;
    Ok((gate.silu()? * up)?)
}

/// The rows of `x` at `rows`, in that order.
///
/// # Shapes
///
/// `x` is [T, C]; the result is [rows, C].
///
/// # Errors
///
/// [`Error::Shape`] if a row is not below T.
pub fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    if let Some(row) =
        rows.iter().find(|&&row| row as usize >= x.dims().first().copied().unwrap_or(0))
    {
        return Err(shape_error("gather_rows", format!("more than {row} rows"), x));
    }
    let rows = Tensor::from_slice(rows, rows.len(), x.device())?;
    Ok(x.index_select(&rows, 0)?)
}

/// A tensor's values in f32, row by row.
///
/// # Errors
///
/// [`Error::Tensor`] if they cannot be copied from the device.
pub fn to_f32(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

fn shape_error(op: &'static str, expected: String, got: &Tensor) -> Error {
    Error::Shape { op, expected, got: got.dims().to_vec() }
}
