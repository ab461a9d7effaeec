use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use half::bf16;

use super::cuda::{Cuda, CudaWeight};
use super::scratch::Scratch;
use super::tensors::{apply, expect, shape_error, type_error};
use crate::cpu::{Epilogue, Layout, PackedWeight};
use crate::{Error, Result};

/// A linear layer. Its weight is packed for the CPU kernels, or is in the memory of a CUDA device.
#[derive(Debug)]
pub struct Linear(Weight);

#[derive(Debug)]
enum Weight {
    Cpu { packed: PackedWeight, bias: Option<Vec<f32>> },
    Cuda(CudaWeight),
}

impl Linear {
    /// A layer on the CPU with this weight and no bias.
    pub fn new(packed: PackedWeight) -> Self {
        Self(Weight::Cpu { packed, bias: None })
    }

    /// A layer with a weight [O, I] in f32, and no bias. `read_row(o, row)` writes the `I` values of the row `o` of the
    /// weight, in parallel on rayon's current pool.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`] if the device has no room for the weight.
    ///
    /// # Panics
    ///
    /// If O is odd with [`SwiGlu`](Layout::SwiGlu).
    pub fn in_f32(
        device: &Device,
        [n_out, n_in]: [usize; 2],
        layout: Layout,
        read_row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self> {
        if let Some(cuda) = Cuda::of(device) {
            return Ok(Self(Weight::Cuda(cuda.load_weight([n_out, n_in], layout, read_row)?)));
        }
        expect_cpu("linear", device)?;
        Ok(Self::new(PackedWeight::pack_f32(n_out, n_in, layout, read_row)))
    }

    /// As [`in_f32`](Self::in_f32), with a weight [O, I] in bf16.
    ///
    /// # Errors
    ///
    /// As [`in_f32`](Self::in_f32).
    ///
    /// # Panics
    ///
    /// As [`in_f32`](Self::in_f32).
    pub fn in_bf16(
        device: &Device,
        [n_out, n_in]: [usize; 2],
        layout: Layout,
        read_row: impl Fn(usize, &mut [bf16]) + Sync,
    ) -> Result<Self> {
        if let Some(cuda) = Cuda::of(device) {
            return Ok(Self(Weight::Cuda(cuda.load_weight([n_out, n_in], layout, read_row)?)));
        }
        expect_cpu("linear", device)?;
        Ok(Self::new(PackedWeight::pack_bf16(n_out, n_in, layout, read_row)))
    }

    /// Bytes of the packed weight.
    pub fn n_bytes(&self) -> usize {
        match &self.0 {
            Weight::Cpu { packed, .. } => packed.n_bytes(),
            Weight::Cuda(weight) => weight.n_bytes(),
        }
    }

    /// The layer with a bias.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if the bias is not `[O]`; [`Error::OutOfMemory`] if the device has no room for the bias.
    pub fn with_bias(mut self, new_bias: Vec<f32>) -> Result<Self> {
        let n_out = match &self.0 {
            Weight::Cpu { packed, .. } => packed.n_out(),
            Weight::Cuda(weight) => weight.n_out(),
        };
        if new_bias.len() != n_out {
            let (expected, got) = (format!("[O = {n_out}]"), vec![new_bias.len()]);
            return Err(Error::Shape { op: "linear bias", expected, got });
        }
        match &mut self.0 {
            Weight::Cpu { bias, .. } => *bias = Some(new_bias),
            Weight::Cuda(weight) => weight.set_bias(new_bias)?,
        }
        Ok(self)
    }

    /// Applies the layer to every row: `out = x · weightᵀ + bias`, or `out += …`. With [`SwiGlu`](Layout::SwiGlu), a
    /// column of `out` is `silu(gate) · up`.
    ///
    /// # Shapes
    ///
    /// `x` is [T, I]; `out` is [T, O], or [T, O / 2] with [`SwiGlu`](Layout::SwiGlu).
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if a shape is different; [`Error::Type`] if `x` is bf16 and the weight is f32, or if the
    /// epilogue is [`Epilogue::Add`] and `out` is not f32.
    pub fn forward(
        &self,
        x: &Tensor,
        out: &Tensor,
        epilogue: Epilogue,
        scratch: &Scratch,
    ) -> Result<()> {
        let (_, n_columns) = self.size();
        self.forward_columns(x, 0..n_columns, out, epilogue, scratch)
    }

    /// Applies the layer as [`forward`](Self::forward) does, but computes only some columns of `out`. Other columns may
    /// be written too.
    ///
    /// # Shapes
    ///
    /// `x` is [T, I]; `out` is [T, O], or [T, O / 2] with [`SwiGlu`](Layout::SwiGlu).
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if a shape is different, or if a column is beyond the columns of `out`; [`Error::Type`] as for
    /// [`forward`](Self::forward).
    pub fn forward_columns(
        &self,
        x: &Tensor,
        columns: Range<usize>,
        out: &Tensor,
        epilogue: Epilogue,
        scratch: &Scratch,
    ) -> Result<()> {
        let (n_in, n_columns) = self.size();
        let n_rows = match x.dims() {
            &[n_rows, columns] if columns == n_in => n_rows,
            _ => return Err(shape_error("linear", format!("[T, I = {n_in}]"), x)),
        };
        expect("linear out", out, &[n_rows, n_columns])?;
        if columns.end > n_columns {
            let expected = format!("[T, more than {} columns]", columns.end - 1);
            return Err(shape_error("linear out", expected, out));
        }
        if epilogue == Epilogue::Add && out.dtype() != DType::F32 {
            return Err(type_error("linear out", "f32", out));
        }
        let (packed, bias) = match &self.0 {
            Weight::Cpu { packed, bias } => (packed, bias.as_deref()),
            Weight::Cuda(weight) => {
                let scratch = &mut scratch.cuda.borrow_mut();
                return weight.multiply(x, columns, out, epilogue, scratch);
            }
        };
        if x.dtype() == DType::BF16 && !packed.accepts_bf16() {
            return Err(type_error("linear", "f32", x));
        }
        apply("linear", out, [x], |out, [x]| {
            let buffer = &mut scratch.activations.borrow_mut();
            let x = packed.quantize(x, buffer);
            packed.multiply_columns(x, columns.clone(), bias, out, epilogue);
        })
    }

    /// Columns of the input and of the result.
    fn size(&self) -> (usize, usize) {
        match &self.0 {
            Weight::Cpu { packed, .. } => (packed.n_in(), packed.n_columns()),
            Weight::Cuda(weight) => (weight.n_in(), weight.n_columns()),
        }
    }
}

/// Checks that a device is the CPU. This program has no kernels for other devices, such as Metal.
fn expect_cpu(op: &'static str, device: &Device) -> Result<()> {
    if device.is_cpu() {
        return Ok(());
    }
    let message = format!("{op}: no kernels for {:?}", device.location());
    Err(candle_core::Error::Msg(message).into())
}
