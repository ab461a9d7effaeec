//! One function for each operation of the forward pass, on candle tensors.
//!
//! This is the only module that passes tensors to kernels, and the only module of the workspace that checks on which
//! device a tensor is. Results are written to tensors of the caller, so a layer does not allocate. An operation fails
//! if its result is in the buffer of an operand.
//!
//! Tensors are f32, with one exception: the activations between two linear layers may also be bf16, and there may be
//! gaps between their rows. These activations are written by [`rms_norm`], by [`attention`] and by [`Linear`] with
//! SwiGLU, and read by [`Linear`]. On a CUDA device, they may also be f16, and queries, keys and values have the same
//! type as these activations: see [`attention_type`].

mod cuda;
mod linear;
mod recording;
mod scratch;
mod tensors;

use candle_core::{DType, Device, Tensor};

use self::cuda::Cuda;
use self::tensors::{apply, dense, expect, expect_dense, shape_error, type_error};
use crate::cpu::{self, Arithmetic, Heads, Kernels};
use crate::memory::available_bytes;
use crate::{Queries, Ragged, Result};

pub use self::linear::Linear;
pub use self::recording::{Recorder, Recording};
pub use self::scratch::Scratch;

/// Opens the CUDA device with this number. Operations on the device run in the order of the calls, also if several
/// threads call them.
///
/// # Errors
///
/// [`Error::NoCuda`](crate::Error::NoCuda) if this program was built without the feature `cuda`;
/// [`Error::Cuda`](crate::Error::Cuda) if there is no such device or no driver, or if the compute capability of the
/// device is below 8.0.
pub fn open_cuda(ordinal: usize) -> Result<Device> {
    cuda::open(ordinal)
}

/// Whether forward passes on the device should run one after another. A CUDA device computes one forward pass at a
/// time, and each concurrent forward pass would need memory on the device.
pub fn takes_turns(device: &Device) -> bool {
    !device.is_cpu()
}

/// The arithmetic of matrix multiplications with bf16 weights on a device.
pub fn bf16_arithmetic(device: &Device) -> Arithmetic {
    if device.is_cpu() { Kernels::current().bf16_weights } else { Arithmetic::Bf16 }
}

/// The arithmetic of matrix multiplications with 8-bit weights on a device. `None` if there are no kernels for 8-bit
/// weights on the device.
pub fn int8_arithmetic(device: &Device) -> Option<Arithmetic> {
    device.is_cpu().then(|| Kernels::current().int8_weights)
}

/// Whether tensors of a device are in host memory. If so, operations can read memory-mapped files.
pub fn reads_host_memory(device: &Device) -> bool {
    device.is_cpu()
}

/// The type of the activations between linear layers that use this arithmetic.
pub fn activation_type(arithmetic: Arithmetic) -> DType {
    // Linear layers with 8-bit activations quantize f32 and bf16 alike. Attention multiplies in the type of its result,
    // and is faster in bf16 on CPUs that multiply bf16.
    let reads_both = matches!(arithmetic, Arithmetic::Bytes | Arithmetic::Blocks);
    let is_bf16 = reads_both && Kernels::current().bf16_weights == Arithmetic::Bf16;
    if is_bf16 || arithmetic == Arithmetic::Bf16 { DType::BF16 } else { DType::F32 }
}

/// The type of queries, keys and values on a device where linear layers read activations of type `activations`.
pub fn attention_type(device: &Device, activations: DType) -> DType {
    if device.is_cpu() { DType::F32 } else { activations }
}

/// Bytes of memory of a device that are still available. For the CPU, this is the memory that the process can still use
/// without exceeding a limit, or `None` if the system does not tell.
///
/// # Errors
///
/// [`Error::Launch`](crate::Error::Launch) if the driver fails.
pub fn free_bytes(device: &Device) -> Result<Option<usize>> {
    match Cuda::of(device) {
        Some(cuda) => cuda.free_bytes().map(Some),
        None => Ok(available_bytes()),
    }
}

/// The most memory of a device that this process has had for tensors since the last [`forget_peak_bytes`], in bytes. Free
/// memory that is kept for later tensors counts. `None` for the CPU, and for devices that do not report it.
///
/// # Errors
///
/// [`Error::Launch`](crate::Error::Launch) if the driver fails.
pub fn peak_bytes(device: &Device) -> Result<Option<u64>> {
    Cuda::of(device).map_or(Ok(None), |cuda| cuda.peak_bytes())
}

/// Makes [`peak_bytes`] forget memory that is free now. Does nothing for the CPU.
///
/// # Errors
///
/// [`Error::Launch`](crate::Error::Launch) if the driver fails.
pub fn forget_peak_bytes(device: &Device) -> Result<()> {
    Cuda::of(device).map_or(Ok(()), |cuda| cuda.forget_peak_bytes())
}

/// The name of a device. `None` for the CPU.
///
/// # Errors
///
/// [`Error::Launch`](crate::Error::Launch) if the driver fails.
pub fn device_name(device: &Device) -> Result<Option<String>> {
    Cuda::of(device).map(|cuda| cuda.name()).transpose()
}

/// Releases the memory of a device when it is dropped: memory that no tensor uses any more is given back to the system. A
/// CUDA device keeps it otherwise for later tensors. So this should be dropped after the tensors.
#[derive(Debug)]
pub struct ReleaseOnDrop(Device);

impl ReleaseOnDrop {
    /// Releases the memory of `device` later. Has no effect for the CPU.
    pub fn new(device: &Device) -> Self {
        Self(device.clone())
    }
}

impl Drop for ReleaseOnDrop {
    fn drop(&mut self) {
        if let Some(cuda) = Cuda::of(&self.0) {
            // If the device has failed, other calls report it.
            let _ = cuda.release_memory();
        }
    }
}

/// RMSNorm of each row: `out = x / sqrt(mean(x²) + eps) · weight`.
///
/// # Shapes
///
/// `x` and `out` are [T, C] and `weight` is `[C]`.
///
/// # Errors
///
/// [`Error::Shape`](crate::Error::Shape) if a shape is different; [`Error::Type`](crate::Error::Type) if `x` or
/// `weight` is not f32, or `out` is neither f32 nor bf16 (nor f16 on a CUDA device).
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
    if let Some(cuda) = Cuda::of(out.device()) {
        return cuda.rms_norm(x, weight, eps, out);
    }
    apply("rms_norm", out, [x, weight], |out, [x, weight]| {
        cpu::rms_norm(Kernels::current(), dense(x), dense(weight), eps as f32, out);
    })
}

/// Per-head RMSNorm followed by rotary position embedding of the queries and keys of a batch, in place. Lane `i` of a
/// head is paired with lane `i + D/2`. The queries of the rows before `first_query` are left unchanged.
///
/// # Shapes
///
/// `qkv` is [T, (H + 2K) · D]; the weights are `[D]`; `cos` and `sin` are [T, D / 2], a row for each token.
///
/// # Errors
///
/// [`Error::Shape`](crate::Error::Shape) if a shape is different, or if D is odd or K does not divide H;
/// [`Error::Type`](crate::Error::Type) if a tensor is not f32, except for `qkv` on a CUDA device;
/// [`Error::Limit`](crate::Error::Limit) if D is too large for the kernels of the device.
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
    if let Some(cuda) = Cuda::of(qkv.device()) {
        return cuda.qk_norm_rope(qkv, heads, first_query, [q_norm, k_norm, cos, sin], eps);
    }
    expect_dense("qk_norm_rope", [qkv])?;
    apply("qk_norm_rope", qkv, [q_norm, k_norm, cos, sin], |qkv, [q_norm, k_norm, cos, sin]| {
        let qkv = qkv.as_f32().expect("`expect_dense` has checked");
        let (norms, tables) = ([dense(q_norm), dense(k_norm)], [dense(cos), dense(sin)]);
        let kernels = Kernels::current();
        cpu::qk_norm_rope(kernels, qkv, heads, first_query, norms, eps as f32, tables);
    })
}

/// Grouped-query attention within each text: a token sees itself and the tokens before it in its own text, or the whole
/// text in a [bidirectional](Ragged::bidirectional) batch. Query head `h` reads key/value head `h / (H / K)`. With
/// [`Queries::Last`], only the last token of each text has a query.
///
/// Memory grows with the length of a text, not with its square. Queries, keys, weights and values are multiplied in the
/// type of `out`. Sums and the softmax are f32.
///
/// # Shapes
///
/// `qkv` is [P + T, (H + 2K) · D], where queries are already divided by √D; `out` is [T, H · D], or [N, H · D] for
/// [`Queries::Last`].
///
/// # Errors
///
/// [`Error::Shape`](crate::Error::Shape) if a shape is different or does not fit the batch, or if D is odd or K does
/// not divide H; [`Error::Type`](crate::Error::Type), on the CPU, if `qkv` is not f32 or `out` is neither f32 nor bf16,
/// and on a CUDA device if the types of `qkv` and `out` differ; [`Error::Limit`](crate::Error::Limit) if D is too large
/// for the kernels of the device.
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
    if let Some(cuda) = Cuda::of(qkv.device()) {
        let scratch = &mut scratch.cuda.borrow_mut();
        return cuda.attention(qkv, batch, queries, heads, scratch, out);
    }
    expect_dense("attention", [qkv])?;
    apply("attention", out, [qkv], |out, [qkv]| {
        let (kernels, scratch) = (Kernels::current(), &mut scratch.attention.borrow_mut());
        cpu::attention(kernels, dense(qkv), batch, queries, heads, scratch, out);
    })
}

/// Checks the shape of `qkv`, which has queries, keys and values side by side in a row. Returns the number of rows.
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

/// The rows of each table with the indices `rows`, in that order, in f32. Tables may be f32, bf16 or f16. All of them
/// must be on `device`.
///
/// # Shapes
///
/// A table is [T, C]; its result is [rows, C].
///
/// # Errors
///
/// [`Error::Shape`](crate::Error::Shape) if an index is not below T; [`Error::Type`](crate::Error::Type) if a table has
/// another type on a CUDA device.
pub fn gather_rows<const N: usize>(
    device: &Device,
    tables: [&Tensor; N],
    rows: &[u32],
) -> Result<[Tensor; N]> {
    expect_rows(tables, rows)?;
    if let Some(cuda) = Cuda::of(device) {
        return cuda.gather_rows(tables, rows);
    }
    let rows = Tensor::from_slice(rows, rows.len(), device)?;
    let gather = |table: &Tensor| table.index_select(&rows, 0)?.to_dtype(DType::F32);
    collect(tables.map(|table| Ok(gather(table)?)))
}

/// Gathers rows as [`gather_rows`] does, and writes them to `out`.
///
/// # Shapes
///
/// `table` is [T, C]; `out` is [rows, C].
///
/// # Errors
///
/// As [`gather_rows`]; [`Error::Shape`](crate::Error::Shape) if `out` has another shape;
/// [`Error::Type`](crate::Error::Type) if `out` is not f32.
pub fn gather_rows_to(table: &Tensor, rows: &[u32], out: &Tensor) -> Result<()> {
    expect_rows([table], rows)?;
    expect("gather_rows out", out, &[rows.len(), table.dim(1)?])?;
    expect_dense("gather_rows out", [out])?;
    if let Some(cuda) = Cuda::of(out.device()) {
        return cuda.gather_rows_to([table], rows, [out]);
    }
    let [gathered] = gather_rows(out.device(), [table], rows)?;
    copy_rows(&gathered, out)
}

/// Checks that tables have rows with these indices.
fn expect_rows<const N: usize>(tables: [&Tensor; N], rows: &[u32]) -> Result<()> {
    let last = rows.iter().max().copied();
    for table in tables {
        let n_rows = table.dims().first().copied().unwrap_or(0);
        if let Some(row) = last.filter(|&row| row as usize >= n_rows) {
            return Err(shape_error("gather_rows", format!("more than {row} rows"), table));
        }
    }
    Ok(())
}

/// The values of all results, or the first error.
fn collect<const N: usize>(results: [Result<Tensor>; N]) -> Result<[Tensor; N]> {
    let tensors: Vec<Tensor> = results.into_iter().collect::<Result<_>>()?;
    Ok(tensors.try_into().expect("there are N results"))
}

/// Copies a matrix: `out = x`. There may be gaps between the rows of both matrices. On the CPU, both are f32. On a CUDA
/// device, both are f32, bf16 or f16, and have the same type.
///
/// # Errors
///
/// [`Error::Shape`](crate::Error::Shape) if the shapes differ; [`Error::Type`](crate::Error::Type) if a type is
/// different.
pub fn copy_rows(x: &Tensor, out: &Tensor) -> Result<()> {
    expect("copy_rows out", out, x.dims())?;
    if let Some(cuda) = Cuda::of(out.device()) {
        return cuda.copy_rows(x, out);
    }
    for tensor in [x, out] {
        if tensor.dtype() != DType::F32 {
            return Err(type_error("copy_rows", "f32", tensor));
        }
    }
    apply("copy_rows", out, [x], |out, [x]| cpu::copy_rows(x, out))
}

/// The values of a tensor in f32, row by row.
///
/// # Errors
///
/// [`Error::Tensor`](crate::Error::Tensor) if the values cannot be copied from the device.
pub fn to_f32(x: &Tensor) -> Result<Vec<f32>> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}
