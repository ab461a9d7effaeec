//! Where a thread queues work for a device: on the stream of the device, or on the stream of a
//! [recorder](super::recording).

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::Tensor;
use candle_core::cuda_backend::cudarc::cublas::{CudaBlas, sys as cublas};
use candle_core::cuda_backend::cudarc::driver::CudaStream;
use candle_core::cuda_backend::{CudaDevice, DeviceId};

/// Held while a thread records, and while a cuBLAS handle is created or destroyed, which waits for all streams of the
/// device and would end a recording.
static QUIET: Mutex<()> = Mutex::new(());

/// Waits until no thread records, opens a device or closes a recorder, and keeps other threads from it. `None` if this
/// thread records, and so holds the lock already.
pub(super) fn quiet() -> Option<MutexGuard<'static, ()>> {
    let records = RECORDED.with_borrow(Option::is_some);
    (!records).then(|| QUIET.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A cuBLAS handle that is not destroyed while a thread records.
pub(super) struct Handle(Option<CudaBlas>);

impl Handle {
    pub(super) fn new(blas: CudaBlas) -> Arc<Self> {
        Arc::new(Self(Some(blas)))
    }

    fn raw(&self) -> cublas::cublasHandle_t {
        *self.0.as_ref().expect("only `drop` takes the handle").handle()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let _quiet = quiet();
        self.0.take();
    }
}

/// What this thread records.
struct Recorded {
    device: DeviceId,
    handle: Arc<Handle>,
    stream: Arc<CudaStream>,
    tensors: Vec<Tensor>,
}

thread_local! {
    static RECORDED: RefCell<Option<Recorded>> = const { RefCell::new(None) };
}

/// From now on, this thread queues work for the device on this stream and with this handle.
pub(super) fn start_recording(device: &CudaDevice, handle: Arc<Handle>, stream: Arc<CudaStream>) {
    RECORDED.set(Some(Recorded { device: device.id(), handle, stream, tensors: Vec::new() }));
}

/// From now on, this thread queues work on the streams of devices again. Returns the tensors that the recorded operations
/// use, or `None` if the thread did not record.
pub(super) fn stop_recording() -> Option<Vec<Tensor>> {
    RECORDED.take().map(|recorded| recorded.tensors)
}

/// The stream on which this thread queues work for a device.
pub(super) fn stream(device: &CudaDevice) -> Arc<CudaStream> {
    recorded(device, |recorded| recorded.stream.clone()).unwrap_or_else(|| device.cuda_stream())
}

/// The cuBLAS handle with which this thread queues work for a device. It is valid as long as the device, and as long as
/// this thread records.
pub(super) fn handle(device: &CudaDevice) -> cublas::cublasHandle_t {
    recorded(device, |recorded| recorded.handle.raw())
        .unwrap_or_else(|| *device.cublas_handle().handle())
}

/// Keeps tensors that an operation on a device uses, if this thread records the operation.
pub(crate) fn keep<'a>(device: &CudaDevice, tensors: impl IntoIterator<Item = &'a Tensor>) {
    recorded(device, |recorded| recorded.tensors.extend(tensors.into_iter().cloned()));
}

/// The result of `work` if this thread records for a device.
fn recorded<T>(device: &CudaDevice, work: impl FnOnce(&mut Recorded) -> T) -> Option<T> {
    RECORDED.with_borrow_mut(|recorded| {
        recorded.as_mut().filter(|recorded| recorded.device == device.id()).map(work)
    })
}
