#[cfg(feature = "cuda")]
use candle_core::cuda_backend::CudaError;

use crate::cpu::UnknownKernels;

/// An error of an operation or of a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor does not have the shape that the operation needs.
    #[error("{op}: expected {expected}, got a tensor of shape {got:?}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The shape that the operation needs, in the letters of the documentation of this crate.
        expected: String,
        /// The shape of the tensor.
        got: Vec<usize>,
    },
    /// A tensor does not have the type that the operation needs.
    #[error("{op}: expected a tensor of {expected}, got one of {got}")]
    Type {
        /// The operation.
        op: &'static str,
        /// The type that the operation needs.
        expected: &'static str,
        /// The type of the tensor.
        got: &'static str,
    },
    /// A segment of a batch has no tokens. Every text needs at least one token, because its vector comes from its
    /// tokens.
    #[error("text {text} of the batch has no tokens")]
    EmptyText {
        /// Index of the segment, which is the index of the text if texts share no segments.
        text: usize,
    },
    /// A segment of a batch continues itself or a later segment, or continues a segment in a bidirectional batch.
    #[error(
        "segment {segment} of the batch continues segment {parent}: a segment may continue only an earlier \
         segment, and none in a bidirectional batch"
    )]
    Parent {
        /// Index of the segment.
        segment: usize,
        /// Index of the segment that it continues.
        parent: usize,
    },
    /// The batch has more tokens than 32-bit row indices can address.
    #[error("a batch of {n_tokens} tokens is over the limit of {} tokens", u32::MAX)]
    BatchTooLarge {
        /// Tokens in the batch, or `usize::MAX` if their number overflows.
        n_tokens: usize,
    },
    /// A size is beyond the limit of the kernels of the device.
    #[error("{op}: {what} is {got}, but the kernels of the device support at most {limit}")]
    Limit {
        /// The operation.
        op: &'static str,
        /// The size that is too large.
        what: &'static str,
        /// The value of the size.
        got: usize,
        /// The largest value that the kernels support.
        limit: usize,
    },
    /// The environment names a CPU kernel set that does not exist or that this CPU cannot run.
    #[error(transparent)]
    UnknownKernels(#[from] UnknownKernels),
    /// A CUDA device was requested, but this program was built without the feature `cuda`.
    #[error("this program was built without the feature `cuda`: use the device `cpu`")]
    NoCuda,
    /// A CUDA device cannot be used: it does not exist, it is too old, or there is no driver.
    #[error(
        "cannot use CUDA device {ordinal}: check that it exists and that its driver is installed"
    )]
    Cuda {
        /// The number of the device.
        ordinal: usize,
        /// The error of the driver.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The device could not run an operation.
    #[error("{op}: the device could not run the operation")]
    Launch {
        /// The operation.
        op: &'static str,
        /// The error of the driver or of a library.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The device has no memory left for an allocation.
    #[error("the device has no memory left")]
    OutOfMemory(#[source] candle_core::Error),
    /// candle failed: a bug in this crate, or a device that stopped working.
    #[error("tensor operation failed")]
    Tensor(#[source] candle_core::Error),
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        if is_out_of_memory(&error) { Self::OutOfMemory(error) } else { Self::Tensor(error) }
    }
}

/// Whether an error of candle says that a device has no memory left.
#[cfg(feature = "cuda")]
fn is_out_of_memory(error: &candle_core::Error) -> bool {
    match error {
        candle_core::Error::WithBacktrace { inner, .. }
        | candle_core::Error::WithPath { inner, .. }
        | candle_core::Error::Context { inner, .. } => is_out_of_memory(inner),
        candle_core::Error::Cuda(error) => error.downcast_ref().is_some_and(says_out_of_memory),
        _ => false,
    }
}

/// Whether an error of the driver or of cuBLAS says that a device has no memory left.
#[cfg(feature = "cuda")]
pub(crate) fn says_out_of_memory(error: &CudaError) -> bool {
    use candle_core::cuda_backend::cudarc::cublas::{result::CublasError, sys::cublasStatus_t};
    use candle_core::cuda_backend::cudarc::driver::{result::DriverError, sys::CUresult};
    match error {
        CudaError::Cuda(DriverError(status)) => *status == CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        CudaError::Cublas(CublasError(status)) => {
            *status == cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED
        }
        _ => false,
    }
}

/// Without the feature `cuda`, no device returns [`candle_core::Error::Cuda`]. Only tests construct this error, to
/// stand for a device without free memory.
#[cfg(not(feature = "cuda"))]
fn is_out_of_memory(error: &candle_core::Error) -> bool {
    matches!(error, candle_core::Error::Cuda(_))
}

/// A result with the error of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
