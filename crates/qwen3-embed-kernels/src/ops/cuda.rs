//! CUDA devices. Without the feature `cuda`, this module has types with the same names that cannot be constructed.

#[cfg(feature = "cuda")]
mod on_cuda;
#[cfg(not(feature = "cuda"))]
mod without_cuda;

#[cfg(feature = "cuda")]
pub(super) use self::on_cuda::{Cuda, CudaRecorder, CudaRecording, CudaScratch, CudaWeight, open};
#[cfg(not(feature = "cuda"))]
pub(super) use self::without_cuda::{
    Cuda, CudaRecorder, CudaRecording, CudaScratch, CudaWeight, open,
};
