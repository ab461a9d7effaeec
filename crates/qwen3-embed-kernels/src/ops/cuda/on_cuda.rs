//! The operations on a CUDA device. Each operation checks its operands and launches kernels. Without the feature
//! `cuda`, `without_cuda.rs` replaces this file.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::{CudaDevice, CudaStorage};
use candle_core::{
    CpuStorage, DType, Device, InplaceOp1, Layout as Strides, Storage, Tensor, WithDType,
};
use rayon::prelude::*;

use crate::cpu::{Epilogue, Heads, Layout};
use crate::cuda::device::{self, Operand, address_of_u32, launch, multiply};
use crate::cuda::queue;
pub(in crate::ops) use crate::cuda::recording::{
    Recorder as CudaRecorder, Recording as CudaRecording,
};
use crate::cuda::{self, Attention, AttentionIndex, AttentionKernel, ElementType, Gemm, Shape};
use crate::ops::collect;
use crate::ops::tensors::{expect_elsewhere, matrix, type_error};
use crate::{Error, Queries, Ragged, Result};

/// Opens the device with this number.
pub(in crate::ops) fn open(ordinal: usize) -> Result<Device> {
    device::open(ordinal)
}

/// A CUDA device.
pub(in crate::ops) struct Cuda(CudaDevice);

impl Cuda {
    /// The device, if it is a CUDA device.
    pub(in crate::ops) fn of(device: &Device) -> Option<Self> {
        match device {
            Device::Cuda(device) => Some(Self(device.clone())),
            _ => None,
        }
    }

    pub(in crate::ops) fn free_bytes(&self) -> Result<usize> {
        device::free_bytes(&self.0)
    }

    pub(in crate::ops) fn release_memory(&self) -> Result<()> {
        device::release_memory(&self.0)
    }

    pub(in crate::ops) fn peak_bytes(&self) -> Result<Option<u64>> {
        device::peak_bytes(&self.0)
    }

    pub(in crate::ops) fn forget_peak_bytes(&self) -> Result<()> {
        device::forget_peak_bytes(&self.0)
    }

    pub(in crate::ops) fn name(&self) -> Result<String> {
        device::name(&self.0)
    }

    pub(in crate::ops) fn rms_norm(
        &self,
        x: &Tensor,
        weight: &Tensor,
        eps: f64,
        out: &Tensor,
    ) -> Result<()> {
        apply("rms_norm", out, [x, weight], |device, out, [x, weight]| {
            let plan = cuda::rms_norm(out.element, x.shape, out.shape, eps as f32)?;
            // SAFETY: `ops::rms_norm` has checked the shapes, and that `x` and the weight are f32.
            unsafe { launch(device, &plan, &[x.address, weight.address, out.address]) }
        })
    }

    /// `f32` has the operands that are always f32: the norm weights of queries and of keys, cosines and sines.
    pub(in crate::ops) fn qk_norm_rope(
        &self,
        qkv: &Tensor,
        heads: Heads,
        first_query: usize,
        f32: [&Tensor; 4],
        eps: f64,
    ) -> Result<()> {
        apply("qk_norm_rope", qkv, f32, |device, qkv, f32| {
            let plan = cuda::qk_norm_rope(qkv.element, qkv.shape, heads, first_query, eps as f32)?;
            let [q_norm, k_norm, cos, sin] = f32.map(|operand| operand.address);
            // SAFETY: `ops::qk_norm_rope` has checked the shapes, and that all but `qkv` are contiguous and f32.
            unsafe { launch(device, &plan, &[qkv.address, q_norm, k_norm, cos, sin]) }
        })
    }

    pub(in crate::ops) fn copy_rows(&self, x: &Tensor, out: &Tensor) -> Result<()> {
        apply("copy_rows", out, [x], |device, out, [from]| {
            expect_element("copy_rows", x, from, out.element)?;
            let plan = cuda::copy_rows(out.element, from.shape, out.shape)?;
            // SAFETY: `ops::copy_rows` has checked the shapes, and the types are the same.
            unsafe { launch(device, &plan, &[from.address, out.address]) }
        })
    }

    pub(in crate::ops) fn gather_rows<const N: usize>(
        &self,
        tables: [&Tensor; N],
        rows: &[u32],
    ) -> Result<[Tensor; N]> {
        let device = Device::Cuda(self.0.clone());
        let outs = collect(tables.map(|table| {
            let (_, n_columns) = table.dims2()?;
            // SAFETY: the kernels below write all values.
            Ok(unsafe { Tensor::empty((rows.len(), n_columns), DType::F32, &device)? })
        }))?;
        self.gather_rows_to(tables, rows, outs.each_ref())?;
        Ok(outs)
    }

    pub(in crate::ops) fn gather_rows_to<const N: usize>(
        &self,
        tables: [&Tensor; N],
        rows: &[u32],
        outs: [&Tensor; N],
    ) -> Result<()> {
        let on_device = Tensor::from_slice(rows, rows.len(), &Device::Cuda(self.0.clone()))?;
        let indices = address_of_u32(&on_device)?;
        for (table, out) in tables.into_iter().zip(outs) {
            apply("gather_rows", out, [table], |device, out, [table]| {
                let plan = cuda::gather_rows(table.element, table.shape, out.shape)?;
                // SAFETY: `ops` has checked the indices, and there are as many as `out` has rows. `out` is f32.
                unsafe { launch(device, &plan, &[table.address, indices, out.address]) }
            })?;
        }
        Ok(())
    }

    pub(in crate::ops) fn recorder(&self) -> Result<CudaRecorder> {
        CudaRecorder::new(&self.0)
    }

    pub(in crate::ops) fn attention(
        &self,
        qkv: &Tensor,
        batch: &Ragged,
        queries: Queries,
        heads: Heads,
        scratch: &mut CudaScratch,
        out: &Tensor,
    ) -> Result<()> {
        let attention = Attention { heads, queries, causal: batch.is_causal() };
        apply("attention", out, [qkv], |device, out, [from]| {
            expect_element("attention", qkv, from, out.element)?;
            let places = [from, out].map(Operand::place);
            let kernel = AttentionKernel::choose(out.element, heads, places);
            let index = scratch.index(batch, attention, kernel, qkv.device())?;
            let first_query = batch.first_query(attention.queries);
            let (shapes, n_tiles) = ([from.shape, out.shape], index.n_tiles);
            let plan =
                cuda::attention(out.element, kernel, attention, n_tiles, shapes, first_query)?;
            let [segments, tiles] = index.addresses()?;
            // SAFETY: `ops::attention` has checked the shapes, and the types are the same. The index was made for this
            // batch, so `qkv` has all rows in the index.
            unsafe { launch(device, &plan, &[from.address, out.address, segments, tiles]) }
        })
    }

    /// Reads the rows of a weight, in parallel on rayon's current pool, and copies them to the device.
    pub(in crate::ops) fn load_weight<T: WithDType>(
        &self,
        [n_out, n_in]: [usize; 2],
        layout: Layout,
        read_row: impl Fn(usize, &mut [T]) + Sync,
    ) -> Result<CudaWeight> {
        assert!(layout == Layout::Plain || n_out.is_multiple_of(2), "as many gates as ups");
        let mut values = vec![T::zero(); n_out * n_in];
        let rows = values.par_chunks_exact_mut(n_in.max(1)).enumerate();
        rows.for_each(|(o, row)| read_row(o, row));
        let weight = Tensor::from_vec(values, (n_out, n_in), &Device::Cuda(self.0.clone()))?;
        Ok(CudaWeight { weight, layout, bias: None })
    }
}

/// The weight of a linear layer, [O, I], and its bias.
#[derive(Debug)]
pub(in crate::ops) struct CudaWeight {
    weight: Tensor,
    layout: Layout,
    bias: Option<Tensor>,
}

impl CudaWeight {
    pub(in crate::ops) fn n_bytes(&self) -> usize {
        self.weight.elem_count() * self.weight.dtype().size_in_bytes()
    }

    pub(in crate::ops) fn n_out(&self) -> usize {
        self.weight.dims()[0]
    }

    pub(in crate::ops) fn n_in(&self) -> usize {
        self.weight.dims()[1]
    }

    /// Columns of the result.
    pub(in crate::ops) fn n_columns(&self) -> usize {
        match self.layout {
            Layout::Plain => self.n_out(),
            Layout::SwiGlu => self.n_out() / 2,
        }
    }

    pub(in crate::ops) fn set_bias(&mut self, bias: Vec<f32>) -> Result<()> {
        let n_out = bias.len();
        self.bias = Some(Tensor::from_vec(bias, n_out, self.weight.device())?);
        Ok(())
    }

    /// The implementation of `ops::Linear::forward_columns`, which has checked the shapes.
    pub(in crate::ops) fn multiply(
        &self,
        x: &Tensor,
        columns: Range<usize>,
        out: &Tensor,
        epilogue: Epilogue,
        scratch: &mut CudaScratch,
    ) -> Result<()> {
        match (self.layout, epilogue) {
            (Layout::Plain, _) => self.product(x, columns, out, epilogue == Epilogue::Add),
            (Layout::SwiGlu, Epilogue::Store) => {
                let gate_up = scratch.gate_up(x, self.n_out())?;
                self.product(x, 0..self.n_out(), &gate_up, false)?;
                apply("swiglu", out, [&gate_up], |device, to, [from]| {
                    expect_element("swiglu", out, to, from.element)?;
                    let plan = cuda::swiglu(to.element, from.shape, to.shape)?;
                    // SAFETY: `gate_up` has twice as many columns as `out`, and the types are the same.
                    unsafe { launch(device, &plan, &[from.address, to.address]) }
                })
            }
            (Layout::SwiGlu, Epilogue::Add) => {
                let message = "linear: the result of SwiGLU cannot be added on a CUDA device";
                Err(candle_core::Error::Msg(message.into()).into())
            }
        }
    }

    fn product(&self, x: &Tensor, columns: Range<usize>, out: &Tensor, add: bool) -> Result<()> {
        let mut add = add;
        if let Some(bias) = &self.bias {
            let (start, n) = (columns.start, columns.len());
            let part = out.narrow(1, start, n)?;
            apply("linear bias", &part, [&bias.narrow(0, start, n)?], |device, part, [bias]| {
                let plan = cuda::bias(part.element, part.shape, add)?;
                // SAFETY: the bias is f32, and the launch has as many columns as the bias.
                unsafe { launch(device, &plan, &[bias.address, part.address]) }
            })?;
            add = true;
        }
        apply("linear", out, [x, &self.weight], |device, to, [from, weight]| {
            expect_element("linear", x, from, weight.element)?;
            if to.element != ElementType::F32 {
                expect_element("linear out", out, to, weight.element)?;
            }
            let gemm = Gemm::new(from.shape, columns.clone(), to.shape)?;
            // SAFETY: the shapes were checked, the weight is contiguous, and the types are the same.
            unsafe { multiply(device, &gemm, weight.address, from, to, add) }
        })
    }
}

/// Buffers on the device that are kept from call to call.
#[derive(Debug, Default)]
pub(in crate::ops) struct CudaScratch {
    /// Gates and ups, [T, 2F], with as many rows as the largest batch so far.
    gate_up: Option<Tensor>,
    /// The indices of recent batches.
    indices: Vec<IndexOnDevice>,
}

/// The number of indices that are kept: one for all layers but the last, and one for the last layer, which has fewer
/// queries.
const INDICES: usize = 2;

/// An [`AttentionIndex`] on the device.
#[derive(Debug)]
struct IndexOnDevice {
    batch: Ragged,
    attention: Attention,
    kernel: AttentionKernel,
    /// The segments, and after them the tiles.
    numbers: Tensor,
    n_segment_numbers: usize,
    n_tiles: usize,
}

impl CudaScratch {
    /// A buffer for the gates and ups of `x`.
    fn gate_up(&mut self, x: &Tensor, n_columns: usize) -> Result<Tensor> {
        let n_rows = x.dims()[0];
        let fits = |room: &Tensor| {
            room.dims()[0] >= n_rows && room.dims()[1] == n_columns && room.dtype() == x.dtype()
        };
        let room = match self.gate_up.take().filter(fits) {
            Some(room) => room,
            None => Tensor::zeros((n_rows, n_columns), x.dtype(), x.device())?,
        };
        Ok(self.gate_up.insert(room).narrow(0, 0, n_rows)?)
    }

    /// The index of a batch. The first layer makes the index, and the other layers use it again.
    fn index(
        &mut self,
        batch: &Ragged,
        attention: Attention,
        kernel: AttentionKernel,
        device: &Device,
    ) -> Result<&IndexOnDevice> {
        let is_it = |index: &IndexOnDevice| {
            index.attention == attention && index.kernel == kernel && index.batch == *batch
        };
        let at = match self.indices.iter().position(is_it) {
            Some(at) => at,
            None => {
                let index = AttentionIndex::new(batch, attention, kernel);
                let (n_segment_numbers, n_tiles) = (index.segments.len(), index.tiles.len() / 3);
                let mut numbers = [index.segments, index.tiles].concat();
                // A device cannot allocate a tensor without elements.
                numbers.resize(numbers.len().max(1), 0);
                let n_numbers = numbers.len();
                if self.indices.len() == INDICES {
                    self.indices.remove(0);
                }
                self.indices.push(IndexOnDevice {
                    batch: batch.clone(),
                    attention,
                    kernel,
                    numbers: Tensor::from_vec(numbers, n_numbers, device)?,
                    n_segment_numbers,
                    n_tiles,
                });
                self.indices.len() - 1
            }
        };
        Ok(&self.indices[at])
    }
}

impl IndexOnDevice {
    /// The addresses of the segments and of the tiles.
    fn addresses(&self) -> Result<[u64; 2]> {
        let segments = address_of_u32(&self.numbers)?;
        Ok([segments, segments + (self.n_segment_numbers * size_of::<u32>()) as u64])
    }
}

/// Runs `run`, which writes `out` and reads `inputs`. The inputs must be in other buffers of the same device.
fn apply<const N: usize>(
    op: &'static str,
    out: &Tensor,
    inputs: [&Tensor; N],
    run: impl FnMut(&CudaDevice, Operand, [Operand; N]) -> Result<()>,
) -> Result<()> {
    let Device::Cuda(of_out) = out.device() else { return Err(elsewhere(op)) };
    let guards = inputs.map(Tensor::storage_and_layout);
    let mut operands = Vec::with_capacity(N);
    for (storage, strides) in &guards {
        match &**storage {
            Storage::Cuda(storage) if storage.device().same_device(of_out) => {
                operands.push(operand(op, storage, strides)?);
            }
            _ => return Err(elsewhere(op)),
        }
    }
    expect_elsewhere(op, out, guards.iter().map(|(storage, _)| &**storage))?;
    queue::keep(of_out, inputs.into_iter().chain([out]));
    let Ok(operands) = <[Operand; N]>::try_from(operands) else { return Err(elsewhere(op)) };
    let operation = Operation { op, operands, run: RefCell::new(run), error: RefCell::default() };
    let result = out.inplace_op1(&operation);
    match operation.error.into_inner() {
        Some(error) => Err(error),
        None => Ok(result?),
    }
}

/// Work on the device as an operation of candle.
struct Operation<F, const N: usize> {
    op: &'static str,
    operands: [Operand; N],
    run: RefCell<F>,
    /// The error of `run`, which the error type of candle cannot hold.
    error: RefCell<Option<Error>>,
}

impl<F, const N: usize> InplaceOp1 for Operation<F, N>
where
    F: FnMut(&CudaDevice, Operand, [Operand; N]) -> Result<()>,
{
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Strides) -> candle_core::Result<()> {
        candle_core::bail!("{}: the result is not on a CUDA device", self.op)
    }

    fn cuda_fwd(&self, out: &mut CudaStorage, strides: &Strides) -> candle_core::Result<()> {
        let device = out.device().clone();
        let result = operand(self.op, out, strides)
            .and_then(|out| (self.run.borrow_mut())(&device, out, self.operands));
        result.map_err(|error| {
            *self.error.borrow_mut() = Some(error);
            candle_core::Error::Msg(self.op.into())
        })
    }
}

fn operand(op: &'static str, storage: &CudaStorage, strides: &Strides) -> Result<Operand> {
    let (start, [n_rows, n_columns], stride) = matrix(strides)?;
    Operand::new(op, storage, start, Shape { n_rows, n_columns, stride })
}

fn expect_element(
    op: &'static str,
    tensor: &Tensor,
    operand: Operand,
    element: ElementType,
) -> Result<()> {
    if operand.element == element { Ok(()) } else { Err(type_error(op, element.name(), tensor)) }
}

fn elsewhere(op: &'static str) -> Error {
    candle_core::Error::Msg(format!("{op}: not all operands are on the same CUDA device")).into()
}
