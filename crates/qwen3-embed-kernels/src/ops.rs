//! One function for each operation of the forward pass, on candle tensors.
//!
//! This is the only place where a tensor meets a kernel, and the only one that knows which device
//! it lies on. Results are written into tensors that the caller keeps, so that a layer allocates
//! nothing. A result must not lie in the same buffer as an operand: that is an error.
//!
//! Tensors are f32; the activations between two products, which is what [`rms_norm`] and
//! [`attention`] write and [`Linear`] reads and, with SwiGLU, writes, may be bf16. Their rows
//! may have a gap between them. On a CUDA device they may also be f16, and queries, keys and values are
//! of the same type as they are, see [`attention_type`].

#[cfg(feature = "cuda")]
mod on_cuda;

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout as Strides, Storage, Tensor};
use half::bf16;

use crate::cpu::{
    self, Arithmetic, Epilogue, Heads, Kernels, Layout, PackedWeight, Quantised, Rows, RowsMut,
    Values, ValuesMut,
};
use crate::{Error, Queries, Ragged, Result};

/// Opens the CUDA device of this number. Everything on it is done in order, whichever thread asks.
///
/// # Errors
///
/// [`Error::NoCuda`] if this program was built without the feature `cuda`; [`Error::Cuda`] if there is no
/// such device or no driver, or if the device is of an earlier compute capability than 8.0.
pub fn open_cuda(ordinal: usize) -> Result<Device> {
    #[cfg(feature = "cuda")]
    return crate::cuda::device::open(ordinal);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = ordinal;
        Err(Error::NoCuda)
    }
}

/// Whether calls should take turns, because the device computes one at a time anyway and each takes memory.
pub fn takes_turns(device: &Device) -> bool {
    !device.is_cpu()
}

/// How weights in bf16 are multiplied on a device.
pub fn bf16_arithmetic(device: &Device) -> Arithmetic {
    if device.is_cpu() { Kernels::current().bf16_weights } else { Arithmetic::Bf16 }
}

/// How weights in 8 bits are multiplied on a device; `None` where they are not.
pub fn int8_arithmetic(device: &Device) -> Option<Arithmetic> {
    device.is_cpu().then(|| Kernels::current().int8_weights)
}

/// The type of queries, keys and values on a device, where products read activations of type `product`.
pub fn attention_type(device: &Device, product: DType) -> DType {
    if device.is_cpu() { DType::F32 } else { product }
}

/// Bytes of the device's memory that are free; `None` for the processor, whose memory is not counted.
///
/// # Errors
///
/// [`Error::Launch`] if the device does not say.
pub fn free_bytes(device: &Device) -> Result<Option<usize>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => crate::cuda::device::free_bytes(device).map(Some),
        _ => Ok(None),
    }
}

/// Whether an error says that a device has no memory left.
pub(crate) fn is_out_of_memory(error: &candle_core::Error) -> bool {
    #[cfg(feature = "cuda")]
    return crate::cuda::device::is_out_of_memory(error);
    #[cfg(not(feature = "cuda"))]
    matches!(error, candle_core::Error::Cuda(_))
}

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
    #[cfg(feature = "cuda")]
    if out.device().is_cuda() {
        return on_cuda::rms_norm(x, weight, eps, out);
    }
    apply("rms_norm", out, [x, weight], |out, [x, weight]| {
        cpu::rms_norm(Kernels::current(), dense(x), dense(weight), eps as f32, out);
    })
}

/// A linear layer, whose weight is packed for the processor's kernels, or lies on a device.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Vec<f32>>,
}

#[derive(Debug, Clone)]
enum Weight {
    Packed(PackedWeight),
    #[cfg(feature = "cuda")]
    OnCuda(on_cuda::Weight),
}

impl Linear {
    /// A layer on the processor with this weight and no bias.
    pub fn new(weight: PackedWeight) -> Self {
        Self { weight: Weight::Packed(weight), bias: None }
    }

    /// A layer with a weight [O, I] that is kept in f32, and no bias. `read_row(o, row)` writes all `I`
    /// values of the weight's row `o`, in parallel on rayon's current pool.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`] if the device has no room for it.
    ///
    /// # Panics
    ///
    /// If O is odd with [`SwiGlu`](cpu::Layout::SwiGlu).
    pub fn in_f32(
        device: &Device,
        [n_out, n_in]: [usize; 2],
        layout: Layout,
        read_row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            return Self::on_cuda(on_cuda::Weight::load(device, [n_out, n_in], layout, read_row)?);
        }
        expect_cpu("linear", device)?;
        Ok(Self::new(PackedWeight::pack_f32(n_out, n_in, layout, read_row)))
    }

    /// A layer with a weight [O, I] that is kept in bf16, as [`in_f32`](Self::in_f32).
    ///
    /// # Errors
    ///
    /// As [`in_f32`](Self::in_f32).
    ///
    /// # Panics
    ///
    /// As [`in_f32`](Self::in_f32).
    pub fn in_bf16(
        device: &Device,
        [n_out, n_in]: [usize; 2],
        layout: Layout,
        read_row: impl Fn(usize, &mut [bf16]) + Sync,
    ) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            return Self::on_cuda(on_cuda::Weight::load(device, [n_out, n_in], layout, read_row)?);
        }
        expect_cpu("linear", device)?;
        Ok(Self::new(PackedWeight::pack_bf16(n_out, n_in, layout, read_row)))
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(weight: on_cuda::Weight) -> Result<Self> {
        Ok(Self { weight: Weight::OnCuda(weight), bias: None })
    }

    /// Bytes of the packed weight.
    pub fn n_bytes(&self) -> usize {
        match &self.weight {
            Weight::Packed(weight) => weight.n_bytes(),
            #[cfg(feature = "cuda")]
            Weight::OnCuda(weight) => weight.n_bytes(),
        }
    }

    /// The layer with a bias.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if it is not `[O]`; [`Error::OutOfMemory`] if the device has no room for it.
    pub fn with_bias(mut self, bias: Vec<f32>) -> Result<Self> {
        let n_out = match &self.weight {
            Weight::Packed(weight) => weight.n_out(),
            #[cfg(feature = "cuda")]
            Weight::OnCuda(weight) => weight.n_out(),
        };
        if bias.len() != n_out {
            let expected = format!("[O = {n_out}]");
            return Err(Error::Shape { op: "linear bias", expected, got: vec![bias.len()] });
        }
        match &mut self.weight {
            Weight::Packed(_) => self.bias = Some(bias),
            #[cfg(feature = "cuda")]
            Weight::OnCuda(weight) => weight.set_bias(bias)?,
        }
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
        let (_, n_columns) = self.size();
        self.forward_columns(x, 0..n_columns, out, epilogue, scratch)
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
        let (n_in, n_columns) = self.size();
        let n_rows = match x.dims() {
            &[n_rows, columns] if columns == n_in => n_rows,
            _ => return Err(shape_error("linear", format!("[T, I = {n_in}]"), x)),
        };
        expect("linear out", out, &[n_rows, n_columns])?;
        if columns.end > n_columns {
            let expected = format!("[T, more than {} columns]", columns.end - 1);
            return Err(shape_error("linear out", expected, out));
        }
        if epilogue == Epilogue::Add && out.dtype() != DType::F32 {
            return Err(type_error("linear out", "f32", out));
        }
        #[cfg_attr(
            not(feature = "cuda"),
            expect(clippy::infallible_destructuring_match, reason = "`cuda` adds another")
        )]
        let weight = match &self.weight {
            Weight::Packed(weight) => weight,
            #[cfg(feature = "cuda")]
            Weight::OnCuda(weight) => return weight.multiply(x, columns, out, epilogue, scratch),
        };
        let is_quantised = weight.is_quantised();
        if x.dtype() == DType::BF16 && !is_quantised && !weight.accepts(Arithmetic::Bf16) {
            return Err(type_error("linear", "f32", x));
        }
        apply("linear", out, [x], |out, [x]| {
            let quantised = &mut scratch.activations.borrow_mut();
            let x = if is_quantised { quantised.quantise(weight, x) } else { x };
            let bias = self.bias.as_deref();
            weight.multiply_columns(x, columns.clone(), bias, out, epilogue);
        })
    }
}

impl Linear {
    /// Columns of what is multiplied, and of the product.
    fn size(&self) -> (usize, usize) {
        match &self.weight {
            Weight::Packed(weight) => (weight.n_in(), weight.n_columns()),
            #[cfg(feature = "cuda")]
            Weight::OnCuda(weight) => (weight.n_in(), weight.n_columns()),
        }
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
/// tensor is not f32, but `qkv` on a CUDA device; [`Error::Limit`] if the device's kernels have no room for
/// so wide a head.
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
    expect_dense("qk_norm_rope", [q_norm, k_norm, cos, sin])?;
    #[cfg(feature = "cuda")]
    if qkv.device().is_cuda() {
        return on_cuda::qk_norm_rope(qkv, heads, first_query, [q_norm, k_norm, cos, sin], eps);
    }
    expect_dense("qk_norm_rope", [qkv])?;
    apply("qk_norm_rope", qkv, [q_norm, k_norm, cos, sin], |qkv, [q_norm, k_norm, cos, sin]| {
        let qkv = qkv.as_f32().expect("`expect_dense` has looked");
        let (norms, tables) = ([dense(q_norm), dense(k_norm)], [dense(cos), dense(sin)]);
        let kernels = Kernels::current();
        cpu::qk_norm_rope(kernels, qkv, heads, first_query, norms, eps as f32, tables);
    })
}

/// Room that operations work in, kept from call to call.
#[derive(Debug, Default)]
pub struct Scratch {
    attention: RefCell<cpu::AttentionScratch>,
    /// What a weight in 8 bits multiplies.
    activations: RefCell<Quantised>,
    #[cfg(feature = "cuda")]
    on_cuda: RefCell<on_cuda::Scratch>,
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
/// [`Error::Type`] if `qkv` is not f32, or `out` neither f32 nor bf16; on a CUDA device, if they are not of
/// one type. [`Error::Limit`] if the device's kernels have no room for so wide a head.
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
    #[cfg(feature = "cuda")]
    if qkv.device().is_cuda() {
        return on_cuda::attention(qkv, batch, queries, heads, scratch, out);
    }
    expect_dense("attention", [qkv])?;
    apply("attention", out, [qkv], |out, [qkv]| {
        let (kernels, scratch) = (Kernels::current(), &mut scratch.attention.borrow_mut());
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

/// The rows of `x` at `rows`, in that order, in f32. `x` may be f32 or 16 bits wide.
///
/// # Shapes
///
/// `x` is [T, C]; the result is [rows, C].
///
/// # Errors
///
/// [`Error::Shape`] if a row is not below T; [`Error::Type`] if `x` is of another type on a CUDA device.
pub fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let n_rows = x.dims().first().copied().unwrap_or(0);
    if let Some(row) = rows.iter().find(|&&row| row as usize >= n_rows) {
        return Err(shape_error("gather_rows", format!("more than {row} rows"), x));
    }
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return on_cuda::gather_rows(x, rows);
    }
    let rows = Tensor::from_slice(rows, rows.len(), x.device())?;
    Ok(x.index_select(&rows, 0)?.to_dtype(DType::F32)?)
}

/// Copies a matrix into another, `out = x`, both f32, or on a CUDA device of any one type, in rows that may
/// have a gap between them.
///
/// # Errors
///
/// [`Error::Shape`] if they are not of one shape, [`Error::Type`] if one is of another type.
pub fn copy_rows(x: &Tensor, out: &Tensor) -> Result<()> {
    expect("copy_rows out", out, x.dims())?;
    #[cfg(feature = "cuda")]
    if out.device().is_cuda() {
        return on_cuda::copy_rows(x, out);
    }
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
    expect_elsewhere(name, out, guards.iter().map(|(storage, _)| &**storage))?;
    let kernel = |out: &mut RowsMut<'_>| kernel(out, rows);
    Ok(out.inplace_op1(&Operation { name, kernel })?)
}

/// Checks that a result lies in none of the storages of its operands. Their locks are held: the result's
/// would be waited for without end.
fn expect_elsewhere<'a>(
    op: &'static str,
    out: &Tensor,
    mut operands: impl Iterator<Item = &'a Storage>,
) -> Result<()> {
    let (of_out, _) = out.storage_and_layout();
    if operands.any(|storage| std::ptr::eq(storage, &*of_out)) {
        let message = format!("{op}: the result lies in the buffer of an operand");
        return Err(candle_core::Error::Msg(message).into());
    }
    Ok(())
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

/// Checks that this is the processor: there are no kernels for other devices in this program.
fn expect_cpu(op: &'static str, device: &Device) -> Result<()> {
    if device.is_cpu() {
        return Ok(());
    }
    let message = format!("{op}: no kernels for {:?}", device.location());
    Err(candle_core::Error::Msg(message).into())
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
