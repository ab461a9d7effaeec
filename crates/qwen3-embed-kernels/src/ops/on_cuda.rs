//! The operations on a CUDA device: operands are checked, and kernels launched on them.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::{CudaDevice, CudaStorage};
use candle_core::{
    CpuStorage, DType, Device, InplaceOp1, Layout as Strides, Storage, Tensor, WithDType,
};
use rayon::prelude::*;

use super::{expect_elsewhere, matrix, type_error};
use crate::cpu::{Epilogue, Heads, Layout};
use crate::cuda::device::{Operand, address_of, launch, multiply};
use crate::cuda::{self, Attention, Element, Index, Kernel, Product, Shape};
use crate::{Error, Queries, Ragged, Result};

pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, out: &Tensor) -> Result<()> {
    apply("rms_norm", out, [x, weight], |device, out, [x, weight]| {
        let plan = cuda::rms_norm(out.element, x.shape, out.shape, eps as f32)?;
        // SAFETY: `ops::rms_norm` has checked the shapes, and that `x` and the weight are f32.
        unsafe { launch(device, &plan, &[x.address, weight.address, out.address]) }
    })
}

/// `f32` has the weights of queries and keys, cosines and sines.
pub(super) fn qk_norm_rope(
    qkv: &Tensor,
    heads: Heads,
    first_query: usize,
    f32: [&Tensor; 4],
    eps: f64,
) -> Result<()> {
    apply("qk_norm_rope", qkv, f32, |device, qkv, f32| {
        let plan = cuda::qk_norm_rope(qkv.element, qkv.shape, heads, first_query, eps as f32)?;
        let [q_norm, k_norm, cos, sin] = f32.map(|operand| operand.address);
        // SAFETY: `ops::qk_norm_rope` has checked the shapes, and that all but `qkv` are dense and f32.
        unsafe { launch(device, &plan, &[qkv.address, q_norm, k_norm, cos, sin]) }
    })
}

pub(super) fn copy_rows(x: &Tensor, out: &Tensor) -> Result<()> {
    apply("copy_rows", out, [x], |device, out, [from]| {
        expect_element("copy_rows", x, from, out.element)?;
        let plan = cuda::copy_rows(out.element, from.shape, out.shape)?;
        // SAFETY: `ops::copy_rows` has checked the shapes, and the types are the same.
        unsafe { launch(device, &plan, &[from.address, out.address]) }
    })
}

pub(super) fn gather_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    let (_, n_columns) = x.dims2()?;
    let out = Tensor::zeros((rows.len(), n_columns), DType::F32, x.device())?;
    if rows.is_empty() {
        return Ok(out);
    }
    let rows = Tensor::from_slice(rows, rows.len(), x.device())?;
    let numbers = address_of_numbers(&rows)?;
    apply("gather_rows", &out, [x], |device, out, [table]| {
        let plan = cuda::gather_rows(table.element, table.shape, out.shape)?;
        // SAFETY: `ops::gather_rows` has checked the rows' numbers, and there are as many as `out` has rows.
        unsafe { launch(device, &plan, &[table.address, numbers, out.address]) }
    })?;
    Ok(out)
}

pub(super) fn attention(
    qkv: &Tensor,
    batch: &Ragged,
    queries: Queries,
    heads: Heads,
    scratch: &super::Scratch,
    out: &Tensor,
) -> Result<()> {
    let attention = Attention { heads, queries, causal: batch.is_causal() };
    let mut scratch = scratch.on_cuda.borrow_mut();
    apply("attention", out, [qkv], |device, out, [from]| {
        expect_element("attention", qkv, from, out.element)?;
        let kernel = Kernel::choose(out.element, heads, [from, out].map(Operand::place));
        let index = scratch.index(batch, attention, kernel, qkv.device())?;
        let first_query = batch.first_query(attention.queries);
        let shapes = [from.shape, out.shape];
        let n_tiles = index.n_tiles;
        let plan = cuda::attention(out.element, kernel, attention, n_tiles, shapes, first_query)?;
        let [segments, tiles] = index.addresses()?;
        // SAFETY: `ops::attention` has checked the shapes, and the types are the same. The index
        // is this batch's, and so all rows that it names are among those of `qkv`.
        unsafe { launch(device, &plan, &[from.address, out.address, segments, tiles]) }
    })
}

/// The weight of a linear layer, [O, I], and its bias.
#[derive(Debug, Clone)]
pub(super) struct Weight {
    weight: Tensor,
    layout: Layout,
    bias: Option<Tensor>,
}

impl Weight {
    /// Reads the rows, in parallel on rayon's current pool, and sends them to the device.
    pub(super) fn load<T: WithDType>(
        device: &Device,
        [n_out, n_in]: [usize; 2],
        layout: Layout,
        read_row: impl Fn(usize, &mut [T]) + Sync,
    ) -> Result<Self> {
        assert!(layout == Layout::Plain || n_out.is_multiple_of(2), "gates and ups");
        let mut values = vec![T::zero(); n_out * n_in];
        let rows = values.par_chunks_exact_mut(n_in.max(1)).enumerate();
        rows.for_each(|(o, row)| read_row(o, row));
        let weight = Tensor::from_vec(values, (n_out, n_in), device)?;
        Ok(Self { weight, layout, bias: None })
    }

    pub(super) fn n_bytes(&self) -> usize {
        self.weight.elem_count() * self.weight.dtype().size_in_bytes()
    }

    pub(super) fn n_out(&self) -> usize {
        self.weight.dims()[0]
    }

    pub(super) fn n_in(&self) -> usize {
        self.weight.dims()[1]
    }

    /// Columns of the product.
    pub(super) fn n_columns(&self) -> usize {
        match self.layout {
            Layout::Plain => self.n_out(),
            Layout::SwiGlu => self.n_out() / 2,
        }
    }

    pub(super) fn set_bias(&mut self, bias: Vec<f32>) -> Result<()> {
        let n_out = bias.len();
        self.bias = Some(Tensor::from_vec(bias, n_out, self.weight.device())?);
        Ok(())
    }

    /// Multiplies, as `ops::Linear::forward_columns`, which has checked the shapes.
    pub(super) fn multiply(
        &self,
        x: &Tensor,
        columns: Range<usize>,
        out: &Tensor,
        epilogue: Epilogue,
        scratch: &super::Scratch,
    ) -> Result<()> {
        match (self.layout, epilogue) {
            (Layout::Plain, _) => self.product(x, columns, out, epilogue == Epilogue::Add),
            (Layout::SwiGlu, Epilogue::Store) => {
                let gate_up = scratch.on_cuda.borrow_mut().gate_up(x, self.n_out())?;
                self.product(x, 0..self.n_out(), &gate_up, false)?;
                apply("swiglu", out, [&gate_up], |device, to, [from]| {
                    expect_element("swiglu", out, to, from.element)?;
                    let plan = cuda::swiglu(to.element, from.shape, to.shape)?;
                    // SAFETY: `gate_up` has twice as many columns as `out`, and the types are the same.
                    unsafe { launch(device, &plan, &[from.address, to.address]) }
                })
            }
            (Layout::SwiGlu, Epilogue::Add) => {
                let message = "linear: SwiGLU adds to nothing on a CUDA device";
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
                // SAFETY: the bias is f32, and the launch is for as many columns as it has.
                unsafe { launch(device, &plan, &[bias.address, part.address]) }
            })?;
            add = true;
        }
        apply("linear", out, [x, &self.weight], |device, to, [from, weight]| {
            expect_element("linear", x, from, weight.element)?;
            if to.element != Element::F32 {
                expect_element("linear out", out, to, weight.element)?;
            }
            let product = Product::new(from.shape, columns.clone(), to.shape)?;
            // SAFETY: the shapes were checked, the weight has no gaps, and the types are the same.
            unsafe { multiply(device, &product, weight.address, from, to, add) }
        })
    }
}

/// What operations keep on the device from call to call.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Gates and ups, [T, 2F], of as many rows as the largest batch so far.
    gate_up: Option<Tensor>,
    /// Where the tokens of the batch are, for all queries and for the last ones.
    indices: Vec<OnDevice>,
}

/// Batches whose index is kept: one for all layers but the last, one for that.
const INDICES: usize = 2;

/// An [`Index`] on the device.
#[derive(Debug)]
struct OnDevice {
    batch: Ragged,
    attention: Attention,
    kernel: Kernel,
    segments: Tensor,
    tiles: Tensor,
    n_tiles: usize,
}

impl Scratch {
    /// Room for the gates and ups of `x`.
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

    /// The index of a batch, which is made for the first of its layers.
    fn index(
        &mut self,
        batch: &Ragged,
        attention: Attention,
        kernel: Kernel,
        device: &Device,
    ) -> Result<&OnDevice> {
        let is_it = |index: &OnDevice| {
            index.attention == attention && index.kernel == kernel && index.batch == *batch
        };
        let at = match self.indices.iter().position(is_it) {
            Some(at) => at,
            None => {
                let index = Index::new(batch, attention, kernel);
                let upload = |values: Vec<u32>| {
                    let n = values.len();
                    // There is no tensor without elements on a device.
                    let values = if n == 0 { vec![0] } else { values };
                    Tensor::from_vec(values, n.max(1), device)
                };
                let n_tiles = index.tiles.len() / 3;
                if self.indices.len() == INDICES {
                    self.indices.remove(0);
                }
                self.indices.push(OnDevice {
                    batch: batch.clone(),
                    attention,
                    kernel,
                    segments: upload(index.segments)?,
                    tiles: upload(index.tiles)?,
                    n_tiles,
                });
                self.indices.len() - 1
            }
        };
        Ok(&self.indices[at])
    }
}

impl OnDevice {
    fn addresses(&self) -> Result<[u64; 2]> {
        Ok([address_of_numbers(&self.segments)?, address_of_numbers(&self.tiles)?])
    }
}

/// The address of whole numbers on the device.
fn address_of_numbers(tensor: &Tensor) -> Result<u64> {
    let (storage, strides) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => address_of::<u32>(storage, strides.start_offset()),
        _ => Err(elsewhere("whole numbers")),
    }
}

/// Runs something that writes `out` and reads `inputs`, which lie in other buffers of the same device.
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
    let Ok(operands) = <[Operand; N]>::try_from(operands) else { return Err(elsewhere(op)) };
    let operation = Operation { op, operands, run: RefCell::new(run), error: RefCell::default() };
    let result = out.inplace_op1(&operation);
    match operation.error.into_inner() {
        Some(error) => Err(error),
        None => Ok(result?),
    }
}

/// Something to be done on the device, as candle calls it.
struct Operation<F, const N: usize> {
    op: &'static str,
    operands: [Operand; N],
    run: RefCell<F>,
    /// What went wrong: candle's own errors cannot carry it.
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
    element: Element,
) -> Result<()> {
    if operand.element == element { Ok(()) } else { Err(type_error(op, element.name(), tensor)) }
}

fn elsewhere(op: &'static str) -> Error {
    candle_core::Error::Msg(format!("{op}: not all operands are on the same CUDA device")).into()
}
