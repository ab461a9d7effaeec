//! CUDA devices. Programs without the feature `cuda` have a stand-in with the same names and no device.

#[cfg(feature = "cuda")]
mod on_cuda;
#[cfg(not(feature = "cuda"))]
mod without_cuda;

#[cfg(feature = "cuda")]
pub(super) use self::on_cuda::{Cuda, CudaScratch, CudaWeight, open};
#[cfg(not(feature = "cuda"))]
pub(super) use self::without_cuda::{Cuda, CudaScratch, CudaWeight, open};
