//! One function for each operation of the forward pass, on candle tensors.
//!
//! This is the only place where a tensor meets a kernel, and the only one that knows which device
//! it lies on. Results are written into tensors that the caller keeps, so that a layer allocates
//! nothing. A result must not lie in the same buffer as an operand: that is an error.
//!
//! Tensors are f32; the activations between two products, which is what [`rms_norm`] and
//! [`attention`] write and [`Linear`] reads and, with SwiGLU, writes, may be bf16. Their rows
//! may have a gap between them.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout as Strides, Storage, Tensor};

use crate::cpu::{
    self, Arithmetic, Epilogue, Heads, Kernels, PackedWeight, Quantised, Rows, RowsMut, Values,
    ValuesMut,
};
use crate::{Error, Queries, Ragged, Result};

/// RMSNorm of each row: `out = x / sqrt(mean(x²) + eps) · weight`.
///
/// # Shapes
///
/// `x` and `out` are [T, C] and `weight` is `[C]`.
///
/// # Errors
///
/// [`Error::Shape`] if they are not, [`Error::Type`] if a tensor is of another type.
///
/// # Source
///
/// Zhang and Sennrich, *Root Mean Square Layer Normalization* (2019), equation 4.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, out: &Tensor) -> Result<()> {
    let channels = weight.elem_count();
    if weight.rank() != 1 || x.rank() != 2 || x.dims()[1] != channels {
        return Err(shape_error("rms_norm", format!("[T, C = {channels}]"), x));
    }
    expect("rms_norm out", out, x.dims())?;
    expect_dense("rms_norm", [x, weight])?;
    apply("rms_norm", out, [x, weight], |out, [x, weight]| {
        cpu::rms_norm(Kernels::best(), dense(x), dense(weight), eps as f32, out);
    })
}

/// A linear layer whose weight is packed for the processor's kernels.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: PackedWeight,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// A layer with this weight and no bias.
    pub fn new(weight: PackedWeight) -> Self {
        Self { weight, bias: None }
    }

    /// Bytes of the packed weight.
    pub fn n_bytes(&self) -> usize {
        self.weight.n_bytes()
    }

    /// The layer with a bias.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if it is not `[O]`.
    pub fn with_bias(mut self, bias: Vec<f32>) -> Result<Self> {
        if bias.len() != self.weight.n_out() {
            let expected = format!("[O = {}]", self.weight.n_out());
            return Err(Error::Shape { op: "linear bias", expected, got: vec![bias.len()] });
        }
        self.bias = Some(bias);
        Ok(self)
    }

    /// Applies the layer to every row: `out = x · weightᵀ + bias`, or `out += …`. With
    /// [`SwiGlu`](cpu::Layout::SwiGlu) a column of `out` is `silu(gate) · up`.
    ///
    /// # Shapes
    ///
    /// `x` is [T, I]; `out` is [T, O], or [T, O / 2] with [`SwiGlu`](cpu::Layout::SwiGlu).
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if they are not; [`Error::Type`] if `x` is bf16 and the weight is f32, or if
    /// something is to be added to bf16.
    pub fn forward(
        &self,
        x: &Tensor,
        out: &Tensor,
        epilogue: Epilogue,
        scratch: &Scratch,
    ) -> Result<()> {
        self.forward_columns(x, 0..self.weight.n_columns(), out, epilogue, scratch)
    }

    /// Applies the layer as [`forward`](Self::forward) does, to part of the output: at least these
    /// columns of `out` are computed, and any of their neighbours may be.
    ///
    /// # Shapes
    ///
    /// `x` is [T, I]; `out` is [T, O], or [T, O / 2] with [`SwiGlu`](cpu::Layout::SwiGlu).
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if they are not, or if a column is not one of `out`; [`Error::Type`] as for
    /// [`forward`](Self::forward).
    pub fn forward_columns(
        &self,
        x: &Tensor,
        columns: Range<usize>,
        out: &Tensor,
        epilogue: Epilogue,
        scratch: &Scratch,
    ) -> Result<()> {
        let n_in = self.weight.n_in();
        let n_rows = match x.dims() {
            &[n_rows, columns] if columns == n_in => n_rows,
            _ => return Err(shape_error("linear", format!("[T, I = {n_in}]"), x)),
        };
        expect("linear out", out, &[n_rows, self.weight.n_columns()])?;
        if columns.end > self.weight.n_columns() {
            let expected = format!("[T, more than {} columns]", columns.end - 1);
            return Err(shape_error("linear out", expected, out));
        }
        let is_quantised = self.weight.is_quantised();
        if x.dtype() == DType::BF16 && !is_quantised && !self.weight.accepts(Arithmetic::Bf16) {
            return Err(type_error("linear", "f32", x));
        }
        if epilogue == Epilogue::Add && out.dtype() != DType::F32 {
            return Err(type_error("linear out", "f32", out));
        }
        apply("linear", out, [x], |out, [x]| {
            let quantised = &mut scratch.activations.borrow_mut();
            let x = if is_quantised { quantised.quantise(&self.weight, x) } else { x };
            let bias = self.bias.as_deref();
            self.weight.multiply_columns(x, columns.clone(), bias, out, epilogue);
        })
    }
}

/// Per-head RMSNorm followed by rotary position embedding of a batch's queries and keys, in place.
/// Lane `i` of a head is paired with lane `i + D/2`. The rows before `first_query` have no queries.
///
/// # Shapes
///
/// `qkv` is [T, (H + 2K) · D]; the weights are `[D]`; `cos` and `sin` are [T, D / 2], a row for
/// each token.
///
/// # Errors
///
/// [`Error::Shape`] if they are not, or if D is odd or K does not divide H; [`Error::Type`] if a
/// tensor is not f32.
///
/// # Source
///
/// Su et al., *RoFormer* (2021), equation 34, with the half-split pairing of GPT-NeoX.
pub fn qk_norm_rope(
    qkv: &Tensor,
    heads: Heads,
    first_query: usize,
    [q_norm, k_norm]: [&Tensor; 2],
    eps: f64,
    [cos, sin]: [&Tensor; 2],
) -> Result<()> {
    let n_rows = check_qkv("qk_norm_rope", qkv, heads)?;
    for norm in [q_norm, k_norm] {
        expect("qk_norm_rope weight", norm, &[heads.head_dim])?;
    }
    for table in [cos, sin] {
        expect("qk_norm_rope tables", table, &[n_rows, heads.head_dim / 2])?;
    }
    expect_dense("qk_norm_rope", [qkv, q_norm, k_norm, cos, sin])?;
    apply("qk_norm_rope", qkv, [q_norm, k_norm, cos, sin], |qkv, [q_norm, k_norm, cos, sin]| {
        let qkv = qkv.as_f32().expect("`expect_dense` has looked");
        let (norms, tables) = ([dense(q_norm), dense(k_norm)], [dense(cos), dense(sin)]);
        let kernels = Kernels::best();
        cpu::qk_norm_rope(kernels, qkv, heads, first_query, norms, eps as f32, tables);
    })
}

/// Room that operations work in, kept from call to call.
#[derive(Debug, Default)]
pub struct Scratch {
    attention: RefCell<cpu::AttentionScratch>,
    /// What a weight in 8 bits multiplies.
    activations: RefCell<Quantised>,
}

/// Grouped-query attention within each text: a token sees itself and what comes before it in its own
/// text, or all of it in a [bidirectional](Ragged::bidirectional) batch, and query head `h` reads
/// key/value head `h / (H / K)`. With [`Queries::Last`] only the last token of each text has a query.
///
/// Memory grows with a text's length, not with its square. Products are computed in the type of
/// `out`, sums and the softmax in f32.
///
/// # Shapes
///
/// `qkv` is [P + T, (H + 2K) · D], its queries divided by √D; `out` is [T, H · D], or [N, H · D] for
/// [`Queries::Last`].
///
/// # Errors
///
/// [`Error::Shape`] if they are not, if the rows are not the batch's, or if D is odd or K does not divide H;
/// [`Error::Type`] if `qkv` is not f32, or `out` neither f32 nor bf16.
///
/// # Source
///
/// Ainslie et al., *GQA* (2023); softmax(q·kᵀ)·v of Vaswani et al. (2017), equation 1.
pub fn attention(
    qkv: &Tensor,
    batch: &Ragged,
    queries: Queries,
    heads: Heads,
    scratch: &Scratch,
    out: &Tensor,
) -> Result<()> {
    let n_rows = check_qkv("attention", qkv, heads)?;
    if n_rows != batch.n_rows() {
        let expected = format!("[P + T = {}, ..]", batch.n_rows());
        return Err(shape_error("attention", expected, qkv));
    }
    let n_queries = n_rows - batch.first_query(queries);
    expect("attention out", out, &[n_queries, heads.q_columns()])?;
    expect_dense("attention", [qkv])?;
    apply("attention", out, [qkv], |out, [qkv]| {
        let (kernels, scratch) = (Kernels::best(), &mut scratch.attention.borrow_mut());
        cpu::attention(kernels, dense(qkv), batch, queries, heads, scratch, out);
    })
}

/// The number of rows of packed queries, keys and values.
fn check_qkv(op: &'static str, qkv: &Tensor, heads: Heads) -> Result<usize> {
    let Heads { n_heads, n_kv_heads, head_dim } = heads;
    match qkv.dims() {
        &[n_rows, columns] if heads.is_whole() && columns == heads.qkv_columns() => Ok(n_rows),
        _ => {
            let expected = format!("[T, ({n_heads} + 2 · {n_kv_heads}) · {head_dim}]");
            Err(shape_error(op, expected, qkv))
        }
    }
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
    let n_rows = x.dims().first().copied().unwrap_or(0);
    if let Some(row) = rows.iter().find(|&&row| row as usize >= n_rows) {
        return Err(shape_error("gather_rows", format!("more than {row} rows"), x));
    }
    let rows = Tensor::from_slice(rows, rows.len(), x.device())?;
    Ok(x.index_select(&rows, 0)?)
}

/// Copies a matrix into another, `out = x`, both f32 and in rows that may have a gap between them.
///
/// # Errors
///
/// [`Error::Shape`] if they are not of one shape, [`Error::Type`] if one is not f32.
pub fn copy_rows(x: &Tensor, out: &Tensor) -> Result<()> {
    expect("copy_rows out", out, x.dims())?;
    for tensor in [x, out] {
        if tensor.dtype() != DType::F32 {
            return Err(type_error("copy_rows", "f32", tensor));
        }
    }
    apply("copy_rows", out, [x], |out, [x]| cpu::copy_rows(x, out))
}

/// A tensor's values in f32, row by row.
///
/// # Errors
///
/// [`Error::Tensor`] if they cannot be copied from the device.
pub fn to_f32(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// Runs a kernel that writes `out` and reads `inputs`, which must be other tensors: their locks are
/// held while the result's is taken.
fn apply<const N: usize>(
    name: &'static str,
    out: &Tensor,
    inputs: [&Tensor; N],
    kernel: impl Fn(&mut RowsMut<'_>, [Rows<'_>; N]),
) -> Result<()> {
    let guards = inputs.map(Tensor::storage_and_layout);
    let mut rows = [Rows::new(&[] as &[f32], [0, 0], 0); N];
    for ((rows, input), (storage, strides)) in rows.iter_mut().zip(inputs).zip(&guards) {
        let (start, shape, stride) = matrix(strides)?;
        let values = match &**storage {
            Storage::Cpu(CpuStorage::F32(values)) => Values::F32(&values[start..]),
            Storage::Cpu(CpuStorage::BF16(values)) => Values::Bf16(&values[start..]),
            Storage::Cpu(_) => return Err(type_error(name, "f32 or bf16", input)),
            _ => return Err(candle_core::Error::Msg(format!("{name}: not on the CPU")).into()),
        };
        *rows = Rows::new(values, shape, stride);
    }
    if !matches!(out.dtype(), DType::F32 | DType::BF16) {
        return Err(type_error(name, "f32 or bf16", out));
    }
    // The operands' locks are held: the result's would be waited for without end.
    let is_an_operand = {
        let (of_out, _) = out.storage_and_layout();
        guards.iter().any(|(storage, _)| std::ptr::eq(&**storage, &*of_out))
    };
    if is_an_operand {
        let message = format!("{name}: the result lies in the buffer of an operand");
        return Err(candle_core::Error::Msg(message).into());
    }
    let kernel = |out: &mut RowsMut<'_>| kernel(out, rows);
    Ok(out.inplace_op1(&Operation { name, kernel })?)
}

/// A kernel as candle calls it.
struct Operation<F> {
    name: &'static str,
    kernel: F,
}

impl<F: Fn(&mut RowsMut<'_>)> InplaceOp1 for Operation<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, strides: &Strides) -> candle_core::Result<()> {
        let (start, shape, stride) = matrix(strides)?;
        let values = match out {
            CpuStorage::F32(values) => ValuesMut::F32(&mut values[start..]),
            CpuStorage::BF16(values) => ValuesMut::Bf16(&mut values[start..]),
            _ => candle_core::bail!("{}: the result is neither f32 nor bf16", self.name),
        };
        (self.kernel)(&mut RowsMut::new(values, shape, stride));
        Ok(())
    }
}

/// Where a vector or matrix begins, its shape, and how far apart its rows are.
fn matrix(strides: &Strides) -> candle_core::Result<(usize, [usize; 2], usize)> {
    let (shape, stride) = match (strides.dims(), strides.stride()) {
        (&[n], &[1]) => ([1, n], n),
        (&[n_rows, n_columns], &[stride, 1]) if stride >= n_columns => {
            ([n_rows, n_columns], stride)
        }
        (dims, strides) => {
            candle_core::bail!("a tensor of shape {dims:?} with strides {strides:?} has no rows")
        }
    };
    Ok((strides.start_offset(), shape, stride))
}

/// The values of an operand that [`expect_dense`] has looked at.
fn dense(rows: Rows<'_>) -> &[f32] {
    rows.as_f32().expect("`expect_dense` has looked")
}

/// Checks that tensors are f32 and without gaps.
fn expect_dense<const N: usize>(op: &'static str, tensors: [&Tensor; N]) -> Result<()> {
    for tensor in tensors {
        if tensor.dtype() != DType::F32 {
            return Err(type_error(op, "f32", tensor));
        }
        if !tensor.is_contiguous() {
            return Err(candle_core::Error::Msg(format!("{op}: a tensor has gaps")).into());
        }
    }
    Ok(())
}

fn expect(op: &'static str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.dims() == shape { Ok(()) } else { Err(shape_error(op, format!("{shape:?}"), tensor)) }
}

fn shape_error(op: &'static str, expected: String, got: &Tensor) -> Error {
    Error::Shape { op, expected, got: got.dims().to_vec() }
}

fn type_error(op: &'static str, expected: &'static str, got: &Tensor) -> Error {
    Error::Type { op, expected, got: got.dtype().as_str() }
}
