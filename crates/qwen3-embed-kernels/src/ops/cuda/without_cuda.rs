//! Replaces `on_cuda.rs` in programs that are built without the feature `cuda`: the same names, but no device can be
//! opened.

use std::ops::Range;

use candle_core::{Device, Tensor};

use crate::cpu::{Epilogue, Heads, Layout};
use crate::{Error, Queries, Ragged, Result};

pub(in crate::ops) fn open(_: usize) -> Result<Device> {
    Err(Error::NoCuda)
}

/// A CUDA device. Without the feature `cuda`, there is no value of this type.
pub(in crate::ops) enum Cuda {}

impl Cuda {
    pub(in crate::ops) fn of(_: &Device) -> Option<Self> {
        None
    }

    pub(in crate::ops) fn free_bytes(&self) -> Result<usize> {
        match *self {}
    }

    pub(in crate::ops) fn release_memory(&self) -> Result<()> {
        match *self {}
    }

    pub(in crate::ops) fn peak_bytes(&self) -> Result<Option<u64>> {
        match *self {}
    }

    pub(in crate::ops) fn forget_peak_bytes(&self) -> Result<()> {
        match *self {}
    }

    pub(in crate::ops) fn name(&self) -> Result<String> {
        match *self {}
    }

    pub(in crate::ops) fn rms_norm(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: f64,
        _: &Tensor,
    ) -> Result<()> {
        match *self {}
    }

    pub(in crate::ops) fn qk_norm_rope(
        &self,
        _: &Tensor,
        _: Heads,
        _: usize,
        _: [&Tensor; 4],
        _: f64,
    ) -> Result<()> {
        match *self {}
    }

    pub(in crate::ops) fn attention(
        &self,
        _: &Tensor,
        _: &Ragged,
        _: Queries,
        _: Heads,
        _: &mut CudaScratch,
        _: &Tensor,
    ) -> Result<()> {
        match *self {}
    }

    pub(in crate::ops) fn copy_rows(&self, _: &Tensor, _: &Tensor) -> Result<()> {
        match *self {}
    }

    pub(in crate::ops) fn gather_rows<const N: usize>(
        &self,
        _: [&Tensor; N],
        _: &[u32],
    ) -> Result<[Tensor; N]> {
        match *self {}
    }

    pub(in crate::ops) fn gather_rows_to<const N: usize>(
        &self,
        _: [&Tensor; N],
        _: &[u32],
        _: [&Tensor; N],
    ) -> Result<()> {
        match *self {}
    }

    pub(in crate::ops) fn recorder(&self) -> Result<CudaRecorder> {
        match *self {}
    }

    pub(in crate::ops) fn load_weight<T>(
        &self,
        _: [usize; 2],
        _: Layout,
        _: impl Fn(usize, &mut [T]) + Sync,
    ) -> Result<CudaWeight> {
        match *self {}
    }
}

/// A weight on a CUDA device. Without the feature `cuda`, there is no value of this type.
#[derive(Debug)]
pub(in crate::ops) enum CudaWeight {}

impl CudaWeight {
    pub(in crate::ops) fn n_bytes(&self) -> usize {
        match *self {}
    }

    pub(in crate::ops) fn n_out(&self) -> usize {
        match *self {}
    }

    pub(in crate::ops) fn n_in(&self) -> usize {
        match *self {}
    }

    pub(in crate::ops) fn n_columns(&self) -> usize {
        match *self {}
    }

    pub(in crate::ops) fn set_bias(&mut self, _: Vec<f32>) -> Result<()> {
        match *self {}
    }

    pub(in crate::ops) fn multiply(
        &self,
        _: &Tensor,
        _: Range<usize>,
        _: &Tensor,
        _: Epilogue,
        _: &mut CudaScratch,
    ) -> Result<()> {
        match *self {}
    }
}

/// Records operations for a CUDA device. Without the feature `cuda`, there is no value of this type.
#[derive(Debug)]
pub(in crate::ops) enum CudaRecorder {}

impl CudaRecorder {
    pub(in crate::ops) fn record<E: From<Error>>(
        &self,
        _: impl FnOnce() -> Result<(), E>,
    ) -> Result<CudaRecording, E> {
        match *self {}
    }
}

/// Operations that were recorded on a CUDA device. Without the feature `cuda`, there is no value of this type.
#[derive(Debug)]
pub(in crate::ops) enum CudaRecording {}

impl CudaRecording {
    pub(in crate::ops) fn replay(&mut self) -> Result<()> {
        match *self {}
    }
}

/// Buffers on a CUDA device. Without the feature `cuda`, there are none.
#[derive(Debug, Default)]
pub(in crate::ops) struct CudaScratch;
