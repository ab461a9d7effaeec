//! The kernels of a CUDA device, in bf16.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor, WithDType};
use half::bf16;

use super::shapes::LayerShapes;
use crate::cpu::{Arithmetic, Epilogue, Layout};
use crate::ops::{self, Linear, Recorder, Recording, Scratch};
use crate::{Error, Queries, Ragged, Result};

/// What a CUDA device computes and copies at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CudaPeaks {
    /// Operations per second of a large matrix multiplication. A multiply-add counts as two operations.
    pub operations_per_s: f64,
    /// Bytes per second that are read or written while a large tensor is copied.
    pub bytes_per_s: f64,
}

/// The speed of one kernel, or of two that are launched together, on a CUDA device.
#[derive(Debug, Clone, PartialEq)]
pub struct CudaMeasurement {
    /// The name of the kernel.
    pub kernel: &'static str,
    /// Texts in the batch.
    pub n_texts: usize,
    /// Tokens of each text.
    pub n_tokens: usize,
    /// The time of the kernel, with the time on the device until the next kernel begins, which is about a microsecond.
    pub seconds: f64,
    /// Operations of matrix multiplications and attention. A multiply-add counts as two. 0 for other kernels.
    pub n_operations: f64,
    /// Bytes of device memory that are read or written at least, if nothing is in a cache.
    pub n_bytes: f64,
    /// Whether the launches were recorded as a graph. If the device cannot record, `seconds` may be the time that the
    /// host needs for a launch.
    pub is_recorded: bool,
}

/// A CUDA device whose speed is measured.
#[derive(Debug)]
pub struct CudaBench {
    device: Device,
    scratch: Scratch,
    /// Is made when a kernel is first measured. `None` if the device cannot record.
    recorder: RefCell<Option<Option<Recorder>>>,
}

impl CudaBench {
    /// Opens the device with this number.
    ///
    /// # Errors
    ///
    /// As [`ops::open_cuda`].
    pub fn open(ordinal: usize) -> Result<Self> {
        let device = ops::open_cuda(ordinal)?;
        Ok(Self { device, scratch: Scratch::default(), recorder: RefCell::default() })
    }

    /// The name of the device, for example `NVIDIA H200`.
    ///
    /// # Errors
    ///
    /// [`Error::Launch`] if the driver fails.
    pub fn name(&self) -> Result<String> {
        Ok(ops::device_name(&self.device)?.unwrap_or_default())
    }

    /// The most memory of the device that this process has had for tensors since the last [`peaks`](Self::peaks), in
    /// bytes. Free memory that is kept for later tensors counts. Memory of the driver and of libraries does not. `None` if
    /// the device does not report it.
    ///
    /// # Errors
    ///
    /// [`Error::Launch`] if the driver fails.
    pub fn peak_bytes(&self) -> Result<Option<u64>> {
        ops::peak_bytes(&self.device)
    }

    /// Measures the peaks, in [`F32`](Arithmetic::F32) or, for every other arithmetic, in bf16. This takes about a second
    /// and less than a GiB of device memory.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`] if the device has no memory for the matrices; [`Error::Launch`] if the driver fails.
    pub fn peaks(&self, arithmetic: Arithmetic) -> Result<CudaPeaks> {
        const SIDE: usize = 8192;
        const COPIED: usize = 256 << 20;
        let peaks = self.peaks_of(arithmetic, SIDE, COPIED);
        ops::forget_peak_bytes(&self.device)?;
        peaks
    }

    /// Measures the kernels of a decoder layer in bf16, each with several batches, and one for each call of the
    /// iterator's `next`.
    ///
    /// The launches of a kernel are recorded, so the time of the host is not measured. Weights of a linear layer are used
    /// in turns, so that they are read from device memory and not from a cache. Activations of few tokens are in the
    /// cache, as they are in a model.
    ///
    /// # Errors
    ///
    /// Each item, if the device has no memory for the tensors, or if the driver fails.
    pub fn layer(
        &self,
        shapes: LayerShapes,
    ) -> impl Iterator<Item = Result<CudaMeasurement>> + use<'_> {
        plan(&BATCHES).into_iter().map(move |(kernel, batch)| self.measure(kernel, shapes, batch))
    }
}

/// The batches that are measured: texts, and tokens of each text.
const BATCHES: [[usize; 2]; 4] = [[1, 32], [32, 512], [1, 4096], [1, 32_768]];

/// The kernels with each batch. Only attention depends on where a text ends, so the other kernels are not measured with
/// two batches of as many tokens, nor with the largest one.
fn plan(batches: &[[usize; 2]; 4]) -> Vec<(Kernel, [usize; 2])> {
    let kernels = Kernel::ALL.into_iter().flat_map(|kernel| {
        let batches = if kernel == Kernel::Attention { &batches[..] } else { &batches[..2] };
        batches.iter().map(move |&batch| (kernel, batch))
    });
    kernels.collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Kernel {
    RmsNorm,
    QkvProj,
    QkNormRope,
    Attention,
    OProj,
    GateUpProj,
    GateUpProjSwiGlu,
    DownProj,
}

impl Kernel {
    /// In the order of the layer. [`Self::GateUpProj`] is a part of the kernel after it.
    const ALL: [Self; 8] = [
        Self::RmsNorm,
        Self::QkvProj,
        Self::QkNormRope,
        Self::Attention,
        Self::OProj,
        Self::GateUpProj,
        Self::GateUpProjSwiGlu,
        Self::DownProj,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::RmsNorm => "rms_norm",
            Self::QkvProj => "qkv_proj",
            Self::QkNormRope => "qk_norm_rope",
            Self::Attention => "attention",
            Self::OProj => "o_proj",
            Self::GateUpProj => "gate_up_proj",
            Self::GateUpProjSwiGlu => "gate_up_proj and swiglu",
            Self::DownProj => "down_proj",
        }
    }
}

/// The time for which a kernel is run before it is measured.
const WARM_UP: Duration = Duration::from_millis(100);

/// The shortest time that is measured.
const SHORTEST: Duration = Duration::from_millis(10);

/// The largest number of launches in a recording.
const MOST_LAUNCHES: usize = 1024;

/// The number of times that a recording is measured. The fastest one counts.
const N_RUNS: usize = 4;

/// Bytes of the weights that are used in turns, which are more than the caches of devices have.
const WEIGHT_BYTES: usize = 192 << 20;

impl CudaBench {
    /// The peaks, with square matrices that have `side` rows, and copies of `n_bytes` bytes.
    fn peaks_of(&self, arithmetic: Arithmetic, side: usize, n_bytes: usize) -> Result<CudaPeaks> {
        Ok(CudaPeaks {
            operations_per_s: 2.0 * (side as f64).powi(3)
                / self.seconds_of_product(arithmetic, side)?,
            bytes_per_s: 2.0 * n_bytes as f64 / self.seconds_of_copy(n_bytes)?,
        })
    }

    fn seconds_of_product(&self, arithmetic: Arithmetic, side: usize) -> Result<f64> {
        let (device, shape) = (&self.device, [side, side]);
        let is_f32 = arithmetic == Arithmetic::F32;
        let tensor = || if is_f32 { self.tensor::<f32>(shape) } else { self.tensor::<bf16>(shape) };
        let layer = if is_f32 {
            Linear::in_f32(device, shape, Layout::Plain, write_row)?
        } else {
            Linear::in_bf16(device, shape, Layout::Plain, write_row)?
        };
        let [x, out] = [tensor()?, tensor()?];
        self.seconds_in_a_queue(|| layer.forward(&x, &out, Epilogue::Store, &self.scratch))
    }

    fn seconds_of_copy(&self, n_bytes: usize) -> Result<f64> {
        let copied = self.tensor::<f32>([1, n_bytes / size_of::<f32>()])?;
        // Each copy uses the memory of the one before it.
        self.seconds_in_a_queue(|| Ok(copied.copy().map(drop)?))
    }

    /// Seconds of `run`, whose launches take much longer on the device than on the host.
    fn seconds_in_a_queue(&self, run: impl Fn() -> Result<()>) -> Result<f64> {
        const N_QUEUED: usize = 16;
        let mut fastest = f64::INFINITY;
        // The first runs allocate memory, and the clock of an idle device is low.
        for _ in 0..=N_RUNS {
            let start = Instant::now();
            (0..N_QUEUED).try_for_each(|_| run())?;
            self.device.synchronize()?;
            fastest = fastest.min(start.elapsed().as_secs_f64());
        }
        Ok(fastest / N_QUEUED as f64)
    }

    fn measure(
        &self,
        kernel: Kernel,
        shapes: LayerShapes,
        batch: [usize; 2],
    ) -> Result<CudaMeasurement> {
        let LayerShapes { hidden_size: c, intermediate_size: f, heads } = shapes;
        let [n_texts, n_tokens] = batch;
        let t = n_texts * n_tokens;
        let (q, qkv) = (heads.q_columns(), heads.qkv_columns());
        let (seconds, n_operations, n_bytes) = match kernel {
            Kernel::RmsNorm => (self.rms_norm(t, c)?, 0, t * 6 * c),
            Kernel::QkNormRope => {
                let n_normed = qkv - heads.n_kv_heads * heads.head_dim;
                let seconds = self.qk_norm_rope(t, shapes)?;
                (seconds, 0, t * (4 * n_normed + 4 * heads.head_dim))
            }
            Kernel::Attention => {
                // Scores and weighted values of the causal half of all pairs.
                let n_operations = 2 * t * (n_tokens + 1) * q;
                (self.attention(batch, shapes)?, n_operations, t * 2 * (qkv + q))
            }
            Kernel::QkvProj => self.linear(t, [qkv, c], Layout::Plain, Epilogue::Store)?,
            Kernel::OProj => self.linear(t, [c, q], Layout::Plain, Epilogue::Add)?,
            Kernel::GateUpProj => self.linear(t, [2 * f, c], Layout::Plain, Epilogue::Store)?,
            Kernel::GateUpProjSwiGlu => {
                let product = self.linear(t, [2 * f, c], Layout::SwiGlu, Epilogue::Store)?;
                let (seconds, n_operations, n_bytes) = product;
                (seconds, n_operations, n_bytes + t * 6 * f)
            }
            Kernel::DownProj => self.linear(t, [c, f], Layout::Plain, Epilogue::Add)?,
        };
        let (n_operations, n_bytes) = (n_operations as f64, n_bytes as f64);
        let kernel = kernel.name();
        let is_recorded = matches!(&*self.recorder.borrow(), Some(Some(_)));
        Ok(CudaMeasurement {
            kernel,
            n_texts,
            n_tokens,
            seconds,
            n_operations,
            n_bytes,
            is_recorded,
        })
    }

    /// Seconds, operations and bytes of a linear layer with a weight [O, I].
    fn linear(
        &self,
        n_rows: usize,
        [n_out, n_in]: [usize; 2],
        layout: Layout,
        epilogue: Epilogue,
    ) -> Result<(f64, usize, usize)> {
        let n_weight_bytes = n_out * n_in * size_of::<bf16>();
        let n_layers = WEIGHT_BYTES.div_ceil(n_weight_bytes).min(64);
        let layer = |_| Linear::in_bf16(&self.device, [n_out, n_in], layout, write_row);
        let layers: Vec<Linear> = (0..n_layers).map(layer).collect::<Result<_>>()?;
        let x = self.tensor::<bf16>([n_rows, n_in])?;
        let n_columns = if layout == Layout::SwiGlu { n_out / 2 } else { n_out };
        // A result that is added is f32, and is read, too.
        let (out, bytes_of_a_result) = match epilogue {
            Epilogue::Add => (self.tensor::<f32>([n_rows, n_columns])?, 8),
            Epilogue::Store => (self.tensor::<bf16>([n_rows, n_columns])?, 2),
        };
        let run = |i: usize| layers[i % n_layers].forward(&x, &out, epilogue, &self.scratch);
        let n_bytes = n_weight_bytes + n_rows * (2 * n_in + bytes_of_a_result * n_out);
        Ok((self.seconds(run)?, 2 * n_rows * n_out * n_in, n_bytes))
    }

    fn rms_norm(&self, n_rows: usize, hidden_size: usize) -> Result<f64> {
        let x = self.tensor::<f32>([n_rows, hidden_size])?;
        let weight = self.tensor::<f32>([1, hidden_size])?.get(0)?;
        let out = self.tensor::<bf16>([n_rows, hidden_size])?;
        self.seconds(|_| ops::rms_norm(&x, &weight, 1e-6, &out))
    }

    fn qk_norm_rope(&self, n_rows: usize, shapes: LayerShapes) -> Result<f64> {
        let heads = shapes.heads;
        let qkv = self.tensor::<bf16>([n_rows, heads.qkv_columns()])?;
        let norm = self.tensor::<f32>([1, heads.head_dim])?.get(0)?;
        let table = self.tensor::<f32>([n_rows, heads.head_dim / 2])?;
        self.seconds(|_| ops::qk_norm_rope(&qkv, heads, 0, [&norm; 2], 1e-6, [&table; 2]))
    }

    fn attention(&self, [n_texts, n_tokens]: [usize; 2], shapes: LayerShapes) -> Result<f64> {
        let (heads, n_rows) = (shapes.heads, n_texts * n_tokens);
        let batch = Ragged::from_lengths(vec![n_tokens; n_texts])?;
        let qkv = self.tensor::<bf16>([n_rows, heads.qkv_columns()])?;
        let out = self.tensor::<bf16>([n_rows, heads.q_columns()])?;
        self.seconds(|_| ops::attention(&qkv, &batch, Queries::All, heads, &self.scratch, &out))
    }

    /// Seconds of `run`, which gets the number of the run.
    fn seconds(&self, run: impl Fn(usize) -> Result<()>) -> Result<f64> {
        // The first run allocates buffers. Until the device is warm, its clock is low.
        let start = Instant::now();
        while start.elapsed() < WARM_UP {
            run(0)?;
            self.device.synchronize()?;
        }
        let mut n_launches = 1;
        loop {
            let launch = || (0..n_launches).try_for_each(&run);
            let mut recording = self.record(launch);
            let mut fastest = Duration::MAX;
            for _ in 0..N_RUNS {
                self.device.synchronize()?;
                let start = Instant::now();
                recording.as_mut().map_or_else(launch, Recording::replay)?;
                self.device.synchronize()?;
                fastest = fastest.min(start.elapsed());
            }
            if fastest >= SHORTEST || n_launches == MOST_LAUNCHES {
                return Ok(fastest.as_secs_f64() / n_launches as f64);
            }
            n_launches *= 2;
        }
    }

    /// Records operations. `None` if the device cannot record, which is not tried again then.
    fn record(&self, operations: impl FnOnce() -> Result<()>) -> Option<Recording> {
        let mut recorder = self.recorder.borrow_mut();
        let recorder = recorder.get_or_insert_with(|| Recorder::new(&self.device).ok().flatten());
        let recording = recorder.as_ref()?.record::<Error>(operations).ok();
        if recording.is_none() {
            *recorder = None;
        }
        recording
    }

    /// A matrix of random values.
    fn tensor<T: WithDType + Random>(&self, [n_rows, n_columns]: [usize; 2]) -> Result<Tensor> {
        let mut values = vec![T::zero(); n_rows * n_columns];
        values.chunks_mut(n_columns).enumerate().for_each(|(row, values)| write_row(row, values));
        Ok(Tensor::from_vec(values, (n_rows, n_columns), &self.device)?)
    }
}

/// A type of random values.
trait Random: Copy {
    fn from_f32(value: f32) -> Self;
}

impl Random for f32 {
    fn from_f32(value: f32) -> Self {
        value
    }
}

impl Random for bf16 {
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
}

/// Writes the values of a row of a random matrix, between −1 and 1. Devices multiply zeros and equal values faster than
/// others.
fn write_row<T: Random>(row: usize, values: &mut [T]) {
    let mut state = row as u64 + 1;
    for value in values {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *value = T::from_f32((state >> 40) as f32 / (1 << 23) as f32 - 1.0);
    }
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use super::*;
    use crate::cpu::Heads;

    #[test]
    #[ignore = "needs a CUDA device"]
    fn every_kernel_and_both_peaks_are_measured() {
        let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 16 };
        let shapes = LayerShapes { hidden_size: 32, intermediate_size: 48, heads };
        let bench = CudaBench::open(0).unwrap();
        for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
            let peaks = bench.peaks_of(arithmetic, 64, 1 << 20).unwrap();
            for peak in [peaks.operations_per_s, peaks.bytes_per_s] {
                assert!(peak.is_finite() && peak > 0.0, "{peaks:?}");
            }
        }
        let plan = plan(&[[1, 3], [2, 5], [1, 10], [1, 20]]);
        assert_eq!(plan.len(), 7 * 2 + 4);
        for (kernel, batch) in plan {
            let measured = bench.measure(kernel, shapes, batch).unwrap();
            assert!(
                measured.is_recorded && measured.seconds > 0.0 && measured.n_bytes > 0.0,
                "{measured:?}"
            );
            let multiplies = !matches!(kernel, Kernel::RmsNorm | Kernel::QkNormRope);
            assert_eq!(measured.n_operations > 0.0, multiplies, "{measured:?}");
        }
        assert!(!bench.name().unwrap().is_empty());
        drop(bench.tensor::<f32>([64, 1 << 20]).unwrap());
        let peak = bench.peak_bytes().unwrap().unwrap();
        assert!(peak >= 256 << 20, "{peak}");
        ops::forget_peak_bytes(&bench.device).unwrap();
        let peak = bench.peak_bytes().unwrap().unwrap();
        assert!(peak < 256 << 20, "{peak}");
    }
}
