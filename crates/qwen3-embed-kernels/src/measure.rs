//! The speed of every kernel at the shapes of a decoder layer: of the current kernel set on one CPU thread, and of a CUDA
//! device.
//!
//! Compare the speed with the measured peak: that of the CPU is in [`Measurement::peak`], and those of a device are in
//! [`CudaPeaks`].

mod cpu;
mod cuda;
mod shapes;

pub use self::cpu::{Format, Kernel, Measurement, measure_layer};
pub use self::cuda::{CudaBench, CudaMeasurement, CudaPeaks};
pub use self::shapes::LayerShapes;
pub use crate::cpu::Heads;
