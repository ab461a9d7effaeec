//! Work that is recorded as a CUDA graph and launched again with one call.
//!
//! A thread records on a stream that only it uses. Therefore other threads can use the device's own stream meanwhile,
//! for example to free memory.

use std::cell::RefCell;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use candle_core::Tensor;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::cublas::result::set_stream;
use candle_core::cuda_backend::cudarc::driver::result::graph;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream};

use super::device::failed;
use crate::{Error, Result};

const OP: &str = "recording";

/// cuBLAS may record allocations of memory. They are freed before the graph is launched again.
const FLAGS: CUgraphInstantiate_flags =
    CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;

/// Work that was recorded.
pub(crate) struct Recording {
    graph: CudaGraph,
    device: CudaDevice,
    /// The matrices whose addresses are in the graph.
    _tensors: Vec<Tensor>,
}

// SAFETY: the driver allows the use of a graph in any thread, but in one thread at a time. `replay` needs `&mut`.
unsafe impl Send for Recording {}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording").finish_non_exhaustive()
    }
}

impl Recording {
    /// Records the launches and multiplications that `operations` queues in this thread. They are not done.
    pub(crate) fn new<E: From<Error>>(
        device: &CudaDevice,
        operations: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        let recorder = Recorder::start(device)?;
        // If this fails or panics, dropping the recorder ends the recording.
        operations()?;
        Ok(recorder.finish()?)
    }

    /// Queues the work on the stream of the device.
    pub(crate) fn replay(&mut self) -> Result<()> {
        let stream = self.device.cuda_stream();
        stream.context().bind_to_thread().map_err(|e| failed(OP, e.into()))?;
        // SAFETY: the graph and the stream are valid. The memory that the graph uses is not freed, and is used only on
        // this stream.
        unsafe { graph::launch(self.graph.cu_graph_exec(), stream.cu_stream()) }
            .map_err(|e| failed(OP, e.into()))
    }
}

/// What this thread records.
struct Recorded {
    stream: Arc<CudaStream>,
    tensors: Vec<Tensor>,
}

thread_local! {
    static RECORDED: RefCell<Option<Recorded>> = const { RefCell::new(None) };
}

/// Held for writing while a thread records, because a cuBLAS handle has one stream, and for reading while other threads
/// use a handle.
static HANDLES: RwLock<()> = RwLock::new(());

/// The stream on which this thread queues work for a device.
pub(super) fn stream(device: &CudaDevice) -> Arc<CudaStream> {
    let recorder = RECORDED.with_borrow(|recorded| Some(recorded.as_ref()?.stream.clone()));
    recorder.unwrap_or_else(|| device.cuda_stream())
}

/// Waits until no other thread records. Call this before a cuBLAS handle is used.
pub(super) fn use_handle() -> Option<RwLockReadGuard<'static, ()>> {
    let records = RECORDED.with_borrow(Option::is_some);
    (!records).then(|| HANDLES.read().unwrap_or_else(PoisonError::into_inner))
}

/// Keeps matrices that an operation uses, if this thread records the operation.
pub(crate) fn keep<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) {
    RECORDED.with_borrow_mut(|recorded| {
        if let Some(recorded) = recorded {
            recorded.tensors.extend(tensors.into_iter().cloned());
        }
    });
}

/// A recording in progress.
struct Recorder<'a> {
    device: &'a CudaDevice,
    stream: Arc<CudaStream>,
    _handles: RwLockWriteGuard<'static, ()>,
}

impl<'a> Recorder<'a> {
    fn start(device: &'a CudaDevice) -> Result<Self> {
        if RECORDED.with_borrow(Option::is_some) {
            let message = "this thread already records operations";
            return Err(candle_core::Error::Msg(message.into()).into());
        }
        let handles = HANDLES.write().unwrap_or_else(PoisonError::into_inner);
        let stream = device.cuda_stream().context().new_stream();
        let stream = stream.map_err(|e| failed(OP, e.into()))?;
        let recorder = Self { device, stream, _handles: handles };
        use_stream(device, &recorder.stream)?;
        // In this mode, other threads can call every function of the driver.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        recorder.stream.begin_capture(mode).map_err(|e| failed(OP, e.into()))?;
        let recorded = Recorded { stream: recorder.stream.clone(), tensors: Vec::new() };
        RECORDED.set(Some(recorded));
        Ok(recorder)
    }

    fn finish(self) -> Result<Recording> {
        let tensors = RECORDED.take().map(|recorded| recorded.tensors).unwrap_or_default();
        let graph = self.stream.end_capture(FLAGS).map_err(|e| failed(OP, e.into()))?;
        let nothing = || candle_core::Error::Msg("nothing was recorded".into());
        let graph = graph.ok_or_else(nothing)?;
        Ok(Recording { graph, device: self.device.clone(), _tensors: tensors })
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        if RECORDED.take().is_some() {
            // The recording has failed already, so another error tells nothing new.
            let _ = self.stream.end_capture(FLAGS);
        }
        // The handle is valid, and so is the stream, so this cannot fail.
        let _ = use_stream(self.device, &self.device.cuda_stream());
    }
}

/// Sets the stream of the device's cuBLAS handle.
fn use_stream(device: &CudaDevice, stream: &CudaStream) -> Result<()> {
    let handle = device.cublas_handle();
    // SAFETY: the handle and the stream are valid, and no other thread uses the handle.
    unsafe { set_stream(*handle.handle(), stream.cu_stream().cast()) }
        .map_err(|e| failed(OP, e.into()))
}
