use candle_core::Device;

use super::cuda::{Cuda, CudaRecorder, CudaRecording};
use crate::{Error, Result};

/// Records operations, so that one call of [`Recording::replay`] runs all of them: on a CUDA device, as a graph. Launching
/// an operation takes a few microseconds, which is longer than a small operation takes on the device.
///
/// # Source
///
/// *CUDA C++ Programming Guide*, section "CUDA Graphs".
#[derive(Debug)]
pub struct Recorder(CudaRecorder);

/// Operations that were [recorded](Recorder::record), with the tensors that they use.
#[derive(Debug)]
pub struct Recording(CudaRecording);

impl Recorder {
    /// A recorder for a device. `None` for the CPU, where launching an operation takes no time.
    ///
    /// # Errors
    ///
    /// [`Error::Launch`] if the driver fails; [`Error::OutOfMemory`] if the device has no memory for the workspace of
    /// cuBLAS, which is 32 MiB.
    pub fn new(device: &Device) -> Result<Option<Self>> {
        Ok(Cuda::of(device).map(|cuda| cuda.recorder()).transpose()?.map(Self))
    }

    /// Records the operations of this module that `operations` calls in this thread, without running them. Their tensors
    /// must be on the device of the recorder.
    ///
    /// Run the same operations once before they are recorded: the first run allocates buffers of
    /// [`Scratch`](super::Scratch) and copies data to the device, which is not recorded. [`to_f32`](super::to_f32) and
    /// operations of candle are not recorded, but run at once.
    ///
    /// # Errors
    ///
    /// The error of `operations`; [`Error::Launch`] if the driver fails; [`Error::OutOfMemory`] if the device has no
    /// memory for the graph; [`Error::Tensor`] if nothing was recorded, or if this thread records already.
    pub fn record<E: From<Error>>(
        &self,
        operations: impl FnOnce() -> Result<(), E>,
    ) -> Result<Recording, E> {
        Ok(Recording(self.0.record(operations)?))
    }
}

impl Recording {
    /// Runs the operations on the current values of the tensors.
    ///
    /// # Errors
    ///
    /// [`Error::Launch`] if the driver fails.
    pub fn replay(&mut self) -> Result<()> {
        self.0.replay()
    }
}
