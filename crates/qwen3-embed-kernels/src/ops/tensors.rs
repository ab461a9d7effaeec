//! Access to the memory of candle tensors.

use candle_core::{CpuStorage, DType, InplaceOp1, Layout as Strides, Storage, Tensor};

use crate::cpu::{Rows, RowsMut, Values, ValuesMut};
use crate::{Error, Result};

/// Runs a CPU kernel that writes `out` and reads `inputs`. The inputs must not be in the buffer of `out`, because the
/// locks of their buffers are held while the lock of the buffer of `out` is taken.
pub(super) fn apply<const N: usize>(
    name: &'static str,
    out: &Tensor,
    inputs: [&Tensor; N],
    kernel: impl Fn(&mut RowsMut<'_>, [Rows<'_>; N]),
) -> Result<()> {
    let guards = inputs.map(Tensor::storage_and_layout);
    let mut rows = [Rows::new(&[] as &[f32], [0, 0], 0); N];
    for ((rows, input), (storage, strides)) in rows.iter_mut().zip(inputs).zip(&guards) {
        let (start, shape, stride) = matrix(strides)?;
        let values = match &**storage {
            Storage::Cpu(CpuStorage::F32(values)) => Values::F32(&values[start..]),
            Storage::Cpu(CpuStorage::BF16(values)) => Values::Bf16(&values[start..]),
            Storage::Cpu(_) => return Err(type_error(name, "f32 or bf16", input)),
            _ => {
                return Err(
                    candle_core::Error::Msg(format!("{name}: a tensor is not on the CPU")).into()
                );
            }
        };
        *rows = Rows::new(values, shape, stride);
    }
    if !matches!(out.dtype(), DType::F32 | DType::BF16) {
        return Err(type_error(name, "f32 or bf16", out));
    }
    expect_elsewhere(name, out, guards.iter().map(|(storage, _)| &**storage))?;
    let kernel = |out: &mut RowsMut<'_>| kernel(out, rows);
    Ok(out.inplace_op1(&Operation { name, kernel })?)
}

/// Checks that a result is in none of the buffers of its operands. The locks of these buffers are held for reading, so
/// locking the same buffer for writing would be a deadlock.
pub(super) fn expect_elsewhere<'a>(
    op: &'static str,
    out: &Tensor,
    mut operands: impl Iterator<Item = &'a Storage>,
) -> Result<()> {
    let (of_out, _) = out.storage_and_layout();
    if operands.any(|storage| std::ptr::eq(storage, &*of_out)) {
        let message = format!("{op}: the result is in the buffer of an operand");
        return Err(candle_core::Error::Msg(message).into());
    }
    Ok(())
}

/// A kernel as an operation of candle.
struct Operation<F> {
    name: &'static str,
    kernel: F,
}

impl<F: Fn(&mut RowsMut<'_>)> InplaceOp1 for Operation<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, out: &mut CpuStorage, strides: &Strides) -> candle_core::Result<()> {
        let (start, shape, stride) = matrix(strides)?;
        let values = match out {
            CpuStorage::F32(values) => ValuesMut::F32(&mut values[start..]),
            CpuStorage::BF16(values) => ValuesMut::Bf16(&mut values[start..]),
            _ => candle_core::bail!("{}: the result is neither f32 nor bf16", self.name),
        };
        (self.kernel)(&mut RowsMut::new(values, shape, stride));
        Ok(())
    }
}

/// The offset of a vector or matrix, its shape, and the distance between its rows.
pub(super) fn matrix(strides: &Strides) -> candle_core::Result<(usize, [usize; 2], usize)> {
    let (shape, stride) = match (strides.dims(), strides.stride()) {
        (&[n], &[1]) => ([1, n], n),
        (&[n_rows, n_columns], &[stride, 1]) if stride >= n_columns => {
            ([n_rows, n_columns], stride)
        }
        (dims, strides) => {
            candle_core::bail!(
                "a tensor of shape {dims:?} with strides {strides:?} is not a matrix with contiguous rows"
            )
        }
    };
    Ok((strides.start_offset(), shape, stride))
}

/// The values of an operand that [`expect_dense`] has checked.
pub(super) fn dense(rows: Rows<'_>) -> &[f32] {
    rows.as_f32().expect("`expect_dense` has checked")
}

/// Checks that tensors are f32 and contiguous.
pub(super) fn expect_dense<const N: usize>(op: &'static str, tensors: [&Tensor; N]) -> Result<()> {
    for tensor in tensors {
        if tensor.dtype() != DType::F32 {
            return Err(type_error(op, "f32", tensor));
        }
        if !tensor.is_contiguous() {
            return Err(candle_core::Error::Msg(format!("{op}: a tensor is not contiguous")).into());
        }
    }
    Ok(())
}

pub(super) fn expect(op: &'static str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.dims() == shape { Ok(()) } else { Err(shape_error(op, format!("{shape:?}"), tensor)) }
}

pub(super) fn shape_error(op: &'static str, expected: String, got: &Tensor) -> Error {
    Error::Shape { op, expected, got: got.dims().to_vec() }
}

pub(super) fn type_error(op: &'static str, expected: &'static str, got: &Tensor) -> Error {
    Error::Type { op, expected, got: got.dtype().as_str() }
}
