//! Weight formats: one file for each way to store the weight of a linear layer and to multiply with it.
//!
//! A format packs a weight into panels, quantizes activations if it multiplies integers, and multiplies. The file of a
//! format adds its constructor, `pack_…`, to [`PackedWeight`](super::packed::PackedWeight). All other code uses a
//! format through [`WeightFormat`].

mod blocks;
mod bytes;
mod float;
mod groups;
mod int8;

use std::fmt;

use super::activations::{QuantizeBuffer, Rows};
use super::dispatch::Kernels;
use super::gemm::GemmTask;
use super::panels::PanelGrid;

pub use blocks::{BLOCK, Bits, BlockRow};
pub use bytes::BYTE_GROUP;
pub(super) use float::{Bf16Kernel, F32Kernel};

/// A weight, packed into panels of one format.
pub(super) trait WeightFormat: fmt::Debug + Send + Sync {
    /// Bytes of the panels.
    fn n_bytes(&self) -> usize;

    /// Whether activations may be bf16, not only f32.
    fn accepts_bf16(&self) -> bool {
        true
    }

    /// Values in a row of activations as the tile kernel reads it: I values, and the values that the format adds.
    fn n_k(&self, n_in: usize) -> usize {
        n_in
    }

    /// Quantizes activations [T, I] for this weight, in parallel on rayon's current pool. Formats that multiply
    /// floating-point activations return `x`.
    fn quantize<'a>(
        &self,
        kernels: &Kernels,
        x: Rows<'a>,
        buffer: &'a mut QuantizeBuffer,
    ) -> Rows<'a> {
        let _ = (kernels, buffer);
        x
    }

    /// Multiplies the rows of a task with the panels of the task. Panics if the activations have a type that this
    /// format does not multiply.
    fn multiply(&self, kernels: &Kernels, task: &GemmTask<'_>);

    /// The same weight in the panels of another kernel set.
    fn repacked(&self, from: PanelGrid, to: PanelGrid) -> Box<dyn WeightFormat>;
}
