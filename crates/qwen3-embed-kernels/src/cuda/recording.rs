//! Work that is recorded as a CUDA graph by stream capture, and launched again with one call.
//!
//! A recorder has a stream and a cuBLAS handle of its own, on which nothing is ever run. So other threads can use the
//! device meanwhile, for example to free memory.

use std::sync::{Arc, MutexGuard};

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::cublas::{CudaBlas, sys as cublas};
use candle_core::cuda_backend::cudarc::driver::result::graph;
use candle_core::cuda_backend::cudarc::driver::sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream, DriverError};
use candle_core::{DType, Device, Tensor};

use super::device::{address_of_u32, failed, set_math_mode};
use super::queue::{Handle, quiet, start_recording, stop_recording};
use crate::{Error, Result};

const OP: &str = "recording";

/// Bytes of the workspace of cuBLAS that NVIDIA recommends for Hopper. Without a workspace, cuBLAS would record
/// allocations of memory.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Records work for a device.
pub(crate) struct Recorder {
    device: CudaDevice,
    handle: Arc<Handle>,
    stream: Arc<CudaStream>,
    /// The workspace of cuBLAS. Recordings share it, because they are run one after another.
    workspace: Tensor,
}

/// Work that was recorded.
pub(crate) struct Recording {
    graph: CudaGraph,
    device: CudaDevice,
    /// The tensors whose addresses are in the graph.
    _tensors: Vec<Tensor>,
    /// cuBLAS may have memory of its own.
    _handle: Arc<Handle>,
}

// SAFETY: the driver allows the use of a graph in any thread, but in one thread at a time. `replay` needs `&mut`.
unsafe impl Send for Recording {}

impl Recorder {
    pub(crate) fn new(device: &CudaDevice) -> Result<Self> {
        let _quiet = quiet();
        let n_values = WORKSPACE_BYTES / size_of::<u32>();
        let workspace = Tensor::zeros(n_values, DType::U32, &Device::Cuda(device.clone()))?;
        let stream = device.cuda_stream().context().new_stream();
        let stream = stream.map_err(|e| failed(OP, e.into()))?;
        let blas = CudaBlas::new(stream.clone()).map_err(|e| failed(OP, e.into()))?;
        set_math_mode(&blas).map_err(|e| failed(OP, e.into()))?;
        let address = address_of_u32(&workspace)? as *mut std::ffi::c_void;
        // SAFETY: the handle is valid, and the recorder and its recordings keep the workspace.
        unsafe { cublas::cublasSetWorkspace_v2(*blas.handle(), address, WORKSPACE_BYTES) }
            .result()
            .map_err(|e| failed(OP, e.into()))?;
        Ok(Self { device: device.clone(), handle: Handle::new(blas), stream, workspace })
    }

    /// Records the launches and matrix multiplications that `operations` queues for the device in this thread. They are
    /// not run.
    pub(crate) fn record<E: From<Error>>(
        &self,
        operations: impl FnOnce() -> Result<(), E>,
    ) -> Result<Recording, E> {
        let capture = Capture::start(self)?;
        // If this fails or panics, dropping `capture` ends the recording.
        operations()?;
        Ok(capture.finish()?)
    }
}

impl Recording {
    /// Queues the work on the stream of the device.
    pub(crate) fn replay(&mut self) -> Result<()> {
        let stream = self.device.cuda_stream();
        stream.context().bind_to_thread().map_err(|e| failed(OP, e.into()))?;
        // SAFETY: the graph and the stream are valid. The memory that the graph uses is kept, and is used only on this
        // stream.
        unsafe { graph::launch(self.graph.cu_graph_exec(), stream.cu_stream()) }
            .map_err(|e| failed(OP, e.into()))
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording").finish_non_exhaustive()
    }
}

/// A recording in progress.
struct Capture<'a> {
    recorder: &'a Recorder,
    _quiet: MutexGuard<'static, ()>,
}

impl<'a> Capture<'a> {
    fn start(recorder: &'a Recorder) -> Result<Self> {
        let Some(quiet) = quiet() else {
            let message = "this thread already records operations";
            return Err(candle_core::Error::Msg(message.into()).into());
        };
        let Recorder { device, handle, stream, .. } = recorder;
        // In this mode, all threads can use other streams, for example to allocate memory.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        stream.begin_capture(mode).map_err(|e| failed(OP, e.into()))?;
        start_recording(device, handle.clone(), stream.clone());
        Ok(Self { recorder, _quiet: quiet })
    }

    fn finish(self) -> Result<Recording> {
        let mut tensors = stop_recording().unwrap_or_default();
        tensors.push(self.recorder.workspace.clone());
        let nothing = || candle_core::Error::Msg("nothing was recorded".into());
        let graph = self.end().map_err(|e| failed(OP, e.into()))?.ok_or_else(nothing)?;
        let Recorder { device, handle, .. } = self.recorder;
        let (device, _handle) = (device.clone(), handle.clone());
        Ok(Recording { graph, device, _tensors: tensors, _handle })
    }

    /// Ends the recording, also if there was an error.
    fn end(&self) -> std::result::Result<Option<CudaGraph>, DriverError> {
        let stream = &self.recorder.stream;
        let end = || stream.end_capture(CUgraphInstantiate_flags(0));
        let ended = end();
        // cudarc reports errors of earlier calls first, and does nothing else then.
        if ended.is_err() && stream.capture_status() != Ok(CU_STREAM_CAPTURE_STATUS_NONE) {
            let _ = end();
        }
        ended
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        // The tensors are dropped after the end of the recording.
        if let Some(_tensors) = stop_recording() {
            // The recording has failed already, so another error tells nothing new.
            let _ = self.end();
        }
    }
}
