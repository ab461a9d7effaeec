use candle_core::Device;

use super::cuda::{Cuda, CudaRecording};
use crate::{Error, Result};

/// Operations that were [recorded](record) on a device, with the tensors that they use.
#[derive(Debug)]
pub struct Recording(CudaRecording);

impl Recording {
    /// Runs the operations on the current values of the tensors.
    ///
    /// # Errors
    ///
    /// [`Error::Launch`] if the driver fails; [`Error::OutOfMemory`] if cuBLAS has no memory.
    pub fn replay(&mut self) -> Result<()> {
        self.0.replay()
    }
}

/// Records the operations of this module that `operations` calls in this thread, without running them, so that one call
/// of [`Recording::replay`] runs all of them: on a CUDA device, as a graph. Starting an operation takes a few
/// microseconds, which is longer than a short batch takes on the device.
///
/// Run the same operations once before they are recorded: the first run allocates buffers of [`Scratch`](super::Scratch)
/// and copies data to the device, which is not recorded. [`to_f32`](super::to_f32) and operations of candle are not
/// recorded, but run at once.
///
/// On the CPU, nothing is recorded, `operations` is not called, and the result is `None`.
///
/// # Errors
///
/// The error of `operations`; [`Error::Launch`] if the driver fails; [`Error::OutOfMemory`] if the device has no memory
/// for the graph; [`Error::Tensor`] if nothing was recorded, or if `operations` records, too.
///
/// # Source
///
/// *CUDA C++ Programming Guide*, section "CUDA Graphs".
pub fn record<E: From<Error>>(
    device: &Device,
    operations: impl FnOnce() -> Result<(), E>,
) -> Result<Option<Recording>, E> {
    let recorded = Cuda::of(device).map(|cuda| cuda.record(operations));
    Ok(recorded.transpose()?.map(Recording))
}
