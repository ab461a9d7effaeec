//! Launches on a GPU, through the device of candle.
//!
//! A device has one stream of its own. All work on the device is run on that stream, in the order of the calls. Work can
//! also be [recorded](super::recording), to be run later.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{LazyLock, PoisonError, RwLock};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::cublas::result::{CublasError, gemm_ex};
use candle_core::cuda_backend::cudarc::cublas::{CudaBlas, sys as cublas};
use candle_core::cuda_backend::cudarc::driver::DevicePtr;
use candle_core::cuda_backend::cudarc::driver::result::device::get_mem_pool;
use candle_core::cuda_backend::cudarc::driver::result::{launch_kernel, mem_pool};
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUdevice_attribute, CUfunction, CUmemPool_attribute, CUmemoryPool,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaError, CudaStorage, DeviceId};
use candle_core::{DType, Device, Storage, Tensor};
use half::{bf16, f16};

use super::{ElementType, Gemm, Launch, Shape, queue};
use crate::error::says_out_of_memory;
use crate::{Error, Result};

/// The name of each compiled file of kernels, its PTX, and its operations.
const MODULES: [(&str, &str, &[&str]); 3] = [
    (
        "qwen3_embed_rows",
        include_str!(concat!(env!("OUT_DIR"), "/rows.ptx")),
        &["rms_norm", "qk_norm_rope", "swiglu", "bias", "copy_rows", "gather_rows"],
    ),
    (
        "qwen3_embed_attention",
        include_str!(concat!(env!("OUT_DIR"), "/attention.ptx")),
        &["attention"],
    ),
    (
        "qwen3_embed_flash",
        include_str!(concat!(env!("OUT_DIR"), "/flash.ptx")),
        &["flash_attention"],
    ),
];

/// The lowest compute capability for which the kernels were compiled, without the period: 80 for 8.0.
const LEAST_CAPABILITY: &str = env!("QWEN3_EMBED_CUDA_CAPABILITY");

/// Opens the GPU with this number, with a stream of its own.
pub(crate) fn open(ordinal: usize) -> Result<Device> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Cuda { ordinal, source };
    // The driver numbers devices with `i32`, and candle wraps numbers that do not fit.
    i32::try_from(ordinal).map_err(|e| failed(Box::new(e)))?;
    let _quiet = queue::quiet();
    let device = CudaDevice::new_with_stream(ordinal)
        .map_err(|error| failed(Box::new(without_backtrace(error))))?;
    // SAFETY: memory of this device is used only on the device's own stream. This function is the only one that makes a
    // CUDA device, and candle and this module run all work on the device's stream, also work that was recorded on
    // another one.
    unsafe { device.disable_event_tracking() };
    let stream = device.cuda_stream();
    let attribute =
        |attribute| stream.context().attribute(attribute).map_err(|e| failed(Box::new(e)));
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let capability = 10 * major + minor;
    if LEAST_CAPABILITY.parse().is_ok_and(|least: i32| capability < least) {
        let message = format!(
            "the device has compute capability {major}.{minor}, but the kernels of this program were compiled for \
             compute capability {LEAST_CAPABILITY} (written without the period) or later"
        );
        return Err(failed(message.into()));
    }
    set_math_mode(&device.cublas_handle()).map_err(|e| failed(Box::new(e)))?;
    keep_free_memory(&device)?;
    Ok(Device::Cuda(device))
}

/// Makes cuBLAS keep sums in f32 even if it splits a matrix multiplication along `k` and adds the parts.
pub(super) fn set_math_mode(blas: &CudaBlas) -> std::result::Result<(), CublasError> {
    let math = cublas::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    // SAFETY: the handle is valid.
    unsafe { cublas::cublasSetMathMode(*blas.handle(), math) }.result()
}

/// Bytes of free memory of the GPU, after all queued work is done.
pub(crate) fn free_bytes(device: &CudaDevice) -> Result<usize> {
    release_memory(device)?;
    let (free, _total) =
        device.cuda_stream().context().mem_get_info().map_err(|e| failed(MEMORY, e.into()))?;
    Ok(free)
}

/// Makes the driver keep memory that candle has freed, until [`release_memory`]. By default, the driver gives it back to
/// the system whenever the host waits for the GPU, and needs up to milliseconds to get it again for the next batch.
/// If the program has chosen otherwise, this is not changed.
fn keep_free_memory(device: &CudaDevice) -> Result<()> {
    const THRESHOLD: CUmemPool_attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    match attribute(device, THRESHOLD)? {
        Some(0) => set_attribute(device, THRESHOLD, u64::MAX),
        _ => Ok(()),
    }
}

/// Gives memory that candle has freed back to the system, after all queued work is done.
pub(crate) fn release_memory(device: &CudaDevice) -> Result<()> {
    device.cuda_stream().synchronize().map_err(|e| failed(MEMORY, e.into()))?;
    let Some(pool) = pool(device)? else { return Ok(()) };
    // SAFETY: the pool is valid.
    unsafe { mem_pool::trim_to(pool, 0) }.map_err(|e| failed(MEMORY, e.into()))
}

/// The most bytes that the GPU's pool of memory, from which candle allocates, has had since the last
/// [`forget_peak_bytes`]. `None` if the GPU has no pool.
pub(crate) fn peak_bytes(device: &CudaDevice) -> Result<Option<u64>> {
    attribute(device, PEAK_BYTES)
}

/// Releases memory, and sets the peak to the bytes that the pool has then.
pub(crate) fn forget_peak_bytes(device: &CudaDevice) -> Result<()> {
    release_memory(device)?;
    set_attribute(device, PEAK_BYTES, 0)
}

/// The name of operations on the memory of a GPU in errors.
const MEMORY: &str = "memory";

const PEAK_BYTES: CUmemPool_attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH;

/// The pool from which candle allocates. `None` if the GPU has no pools, so that candle allocates from the system.
fn pool(device: &CudaDevice) -> Result<Option<CUmemoryPool>> {
    let stream = device.cuda_stream();
    if !stream.context().has_async_alloc() {
        return Ok(None);
    }
    // SAFETY: the device exists.
    let pool = unsafe { get_mem_pool(stream.context().cu_device()) };
    pool.map(Some).map_err(|e| failed(MEMORY, e.into()))
}

/// An attribute of the pool whose value is u64. `None` if the GPU has no pool.
fn attribute(device: &CudaDevice, attribute: CUmemPool_attribute) -> Result<Option<u64>> {
    let Some(pool) = pool(device)? else { return Ok(None) };
    let mut value = 0u64;
    // SAFETY: the pool is valid, and the value of the attribute is u64.
    unsafe { mem_pool::get_attribute(pool, attribute, (&raw mut value).cast()) }
        .map_err(|e| failed(MEMORY, e.into()))?;
    Ok(Some(value))
}

/// Sets an attribute of the pool whose value is u64, if the GPU has a pool.
fn set_attribute(
    device: &CudaDevice,
    attribute: CUmemPool_attribute,
    mut value: u64,
) -> Result<()> {
    let Some(pool) = pool(device)? else { return Ok(()) };
    // SAFETY: the pool is valid, and the value of the attribute is u64.
    unsafe { mem_pool::set_attribute(pool, attribute, (&raw mut value).cast()) }
        .map_err(|e| failed(MEMORY, e.into()))
}

/// The name of the GPU.
pub(crate) fn name(device: &CudaDevice) -> Result<String> {
    device.cuda_stream().context().name().map_err(|e| failed("name", e.into()))
}

/// A matrix on the GPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand {
    /// The address of the first element.
    pub(crate) address: u64,
    pub(crate) element: ElementType,
    pub(crate) shape: Shape,
    /// The offset of the first element in the matrix's allocation, in elements. Allocations are aligned to 256 bytes.
    pub(crate) start: usize,
}

impl Operand {
    /// A matrix in a storage.
    pub(crate) fn new(
        op: &'static str,
        storage: &CudaStorage,
        start: usize,
        shape: Shape,
    ) -> Result<Self> {
        let (element, address) = match storage.dtype() {
            DType::F32 => (ElementType::F32, address_of::<f32>(storage, start)?),
            DType::BF16 => (ElementType::Bf16, address_of::<bf16>(storage, start)?),
            DType::F16 => (ElementType::F16, address_of::<f16>(storage, start)?),
            other => {
                let (expected, got) = ("f32, bf16 or f16", other.as_str());
                return Err(Error::Type { op, expected, got });
            }
        };
        Ok(Self { address, element, shape, start })
    }

    /// The distance between its rows, and the offset of the first row, in elements.
    pub(crate) fn place(self) -> [usize; 2] {
        [self.shape.stride, self.start]
    }
}

/// The address of an element of a storage of this type.
pub(crate) fn address_of<T: CudaDType>(storage: &CudaStorage, start: usize) -> Result<u64> {
    let slice = storage.as_cuda_slice::<T>()?;
    let stream = storage.device().cuda_stream();
    // Event tracking is disabled, because all work is on one stream. So the second value, which records the use of the
    // slice, has no effect and can be dropped.
    let (address, _) = slice.slice(start..).device_ptr(&stream);
    Ok(address)
}

/// The address of a tensor of u32 on a device.
pub(crate) fn address_of_u32(tensor: &Tensor) -> Result<u64> {
    let (storage, strides) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => {
            queue::keep(storage.device(), [tensor]);
            address_of::<u32>(storage, strides.start_offset())
        }
        _ => Err(candle_core::Error::Msg("a tensor of u32 is not on a CUDA device".into()).into()),
    }
}

/// Launches a kernel with these pointers, or records the launch.
///
/// # Safety
///
/// `pointers` are the pointers in the documentation of the function that returned `launch`. They point to matrices with
/// the shapes that were passed to this function. Only the stream of the device uses the matrices. If this thread records,
/// [`queue::keep`] was called for them.
pub(crate) unsafe fn launch(device: &CudaDevice, launch: &Launch, pointers: &[u64]) -> Result<()> {
    if launch.is_empty() {
        return Ok(());
    }
    let function = function(device, launch)?;
    let pointers = pointers.iter().map(|pointer| (&raw const *pointer).cast_mut().cast());
    let numbers = launch.numbers.iter().map(|number| (&raw const *number).cast_mut().cast());
    let floats = launch.floats.iter().map(|float| (&raw const *float).cast_mut().cast());
    let mut arguments: Vec<*mut c_void> = pointers.chain(numbers).chain(floats).collect();
    let stream = queue::stream(device);
    stream.context().bind_to_thread().map_err(|e| failed(launch.operation, e.into()))?;
    let ([x, y, z], block) = (launch.grid, (launch.block, 1, 1));
    // SAFETY: the kernel has these pointers as parameters, as the caller promises, and after them the scalars in the
    // order of the launch. Tests run every launch on the emulator, which checks their number. The arguments are read
    // before the call returns.
    unsafe { launch_kernel(function.0, (x, y, z), block, 0, stream.cu_stream(), &mut arguments) }
        .map_err(|e| failed(launch.operation, e.into()))
}

/// A kernel that was loaded. The device keeps its module.
#[derive(Clone, Copy)]
struct Function(CUfunction);

// SAFETY: the driver allows the use of its handles in any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// The kernel of a launch. The driver looks up its name only at its first launch on a device.
fn function(device: &CudaDevice, launch: &Launch) -> Result<Function> {
    type Functions = HashMap<(DeviceId, &'static str, ElementType), Function>;
    /// The kernels of all devices. Ids are never used again, so a kernel of a device that was closed is never found.
    static FUNCTIONS: LazyLock<RwLock<Functions>> = LazyLock::new(RwLock::default);

    let key = (device.id(), launch.operation, launch.element);
    // Poisoning is ignored: an entry is complete as soon as it is inserted.
    let known = FUNCTIONS.read().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
    if let Some(function) = known {
        return Ok(function);
    }
    let name = launch.name();
    let module = MODULES.iter().find(|(_, _, operations)| operations.contains(&launch.operation));
    let &(module, ptx, _) = module
        .ok_or_else(|| candle_core::Error::Msg(format!("no module has the kernel {name}")))?;
    let loaded = device.get_or_load_custom_func(&name, module, ptx)?;
    let function = Function(loaded.into_cuda_function().cu_function());
    FUNCTIONS.write().unwrap_or_else(PoisonError::into_inner).insert(key, function);
    Ok(function)
}

/// Multiplies on the GPU: `out = x · weightᵀ`, or `out += …`, with sums in f32.
///
/// # Safety
///
/// `product` was made for the shapes of `x` and `out`. `weight` is the address of a contiguous weight of the type of
/// `x`.
pub(crate) unsafe fn multiply(
    device: &CudaDevice,
    product: &Gemm,
    weight: u64,
    x: Operand,
    out: Operand,
    add: bool,
) -> Result<()> {
    const OP: &str = "linear";
    if product.is_empty() {
        return Ok(());
    }
    device.cuda_stream().context().bind_to_thread().map_err(|e| failed(OP, e.into()))?;
    let handle = queue::handle(device);
    let (one, beta) = (1f32, if add { 1f32 } else { 0f32 });
    let at = |address: u64, offset: usize, element: ElementType| {
        (address + (offset * element.size()) as u64) as *mut c_void
    };
    let [lda, ldb, ldc] = product.strides;
    // SAFETY: the matrices are on this GPU and have the size of the product, as the caller promises. The factors are
    // read before the call returns.
    let status = unsafe {
        gemm_ex(
            handle,
            cublas::cublasOperation_t::CUBLAS_OP_T,
            cublas::cublasOperation_t::CUBLAS_OP_N,
            product.m,
            product.n,
            product.k,
            (&raw const one).cast(),
            at(weight, product.offsets[0], x.element),
            data_type(x.element),
            lda,
            at(x.address, 0, x.element),
            data_type(x.element),
            ldb,
            (&raw const beta).cast(),
            at(out.address, product.offsets[1], out.element),
            data_type(out.element),
            ldc,
            cublas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublas::cublasGemmAlgo_t::CUBLAS_GEMM_DFALT,
        )
    };
    status.map_err(|e| failed(OP, e.into()))
}

fn data_type(element: ElementType) -> cublas::cudaDataType {
    match element {
        ElementType::F32 => cublas::cudaDataType::CUDA_R_32F,
        ElementType::Bf16 => cublas::cudaDataType::CUDA_R_16BF,
        ElementType::F16 => cublas::cudaDataType::CUDA_R_16F,
    }
}

/// The error of an operation that failed on the GPU.
pub(super) fn failed(op: &'static str, error: CudaError) -> Error {
    if says_out_of_memory(&error) {
        return Error::OutOfMemory(candle_core::Error::Cuda(Box::new(error)));
    }
    Error::Launch { op, source: Box::new(error) }
}

/// The error without its backtrace, which is not useful because a missing device is not a bug.
fn without_backtrace(error: candle_core::Error) -> candle_core::Error {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => *inner,
        error => error,
    }
}
