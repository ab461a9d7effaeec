//! Weights in 4, 5 or 6 bits, as GGUF files store them, for activations in 8 bits.
//!
//! Weights and activations are in blocks of [`BLOCK`] values of `k`. [`Bits`] describes the blocks of weights. Before
//! rows are multiplied with a panel, the panel is unpacked into bytes. A block of activations has one scale, and after
//! the scale the sums of its values. These sums are multiplied with the minima of 4-bit and 5-bit weights, or with the
//! offset of 6-bit weights.
//!
//! An instruction of AVX2 multiplies two unsigned bytes with two signed bytes and adds both products in 16 bits. With
//! 4-bit weights, the sum is at most 2 · 15 · 127, so eight such sums can be added without overflow. With 5-bit
//! weights, four sums can be added. A 6-bit weight is `q - 32`: the sum begins with `-32 · Σ a`, may wrap around, and
//! ends within 32 · 127 · 8 < 2^15 after four additions.
//!
//! ```text
//! for each block of k:
//!     for each part of the block whose sums fit in 16 bits:
//!         for each quad of the part:
//!             partial[row] += row[quad] · panel[quad]                        i8 · u8, in i16
//!         products[row] += partial[row] · s                                  in i32
//!     minima[row] = the groups' Σ a · n                                      in i32
//!     sums[row] += (d · f32(products[row]) - m · f32(minima[row])) · row's scale
//! ```
//!
//! The products of a block are at most 256 · 32 · 127 · 128 < 2^27 in magnitude, its minima 256 · 127 · 255 < 2^23.
//! CPUs with an instruction that adds the products of four bytes in 32 bits have 32-bit partial sums instead. On x86-64,
//! these CPUs convert the partial sums, and add `products` in f32.

mod activations;
mod bits;
mod kernel;
mod pack;
mod unpack;

use std::cell::RefCell;

use rayon::prelude::*;

use self::activations::{BLOCK_ROW, QuantizeRow};
use self::kernel::BlocksKernel;
use self::pack::BlockPanels;
use self::unpack::{unpack, unpacked_panel_size};
use super::WeightFormat;
use crate::cpu::activations::{QuantizeBuffer, Quantized, Rows, Values};
use crate::cpu::aligned::Aligned;
use crate::cpu::arithmetic::Arithmetic;
use crate::cpu::dispatch::Kernels;
use crate::cpu::gemm::GemmTask;
use crate::cpu::packed::PackedWeight;
use crate::cpu::panels::{Layout, PanelGrid};
use crate::cpu::quantize::{GAP, rows_of};
use crate::cpu::simd::{Simd, SimdOp};
use crate::cpu::tile::{Prefetch, TileKernel};

pub use self::bits::{BLOCK, Bits};
pub use self::pack::BlockRow;

impl PackedWeight {
    /// Packs a weight [O, I] that is already quantized to 4, 5 or 6 bits, for activations in 8 bits, in parallel on
    /// rayon's current pool. Row `o` of the weight has `bits(o)`, and `read_row(o, row)` writes the row. If there are
    /// `columns`, activations are multiplied with them before they are quantized.
    ///
    /// `None` if I is not a multiple of [`BLOCK`], or if rows with different bits would be in one panel.
    ///
    /// # Panics
    ///
    /// If O is odd with [`Layout::SwiGlu`], if `read_row` makes a vector of a row shorter, or if `columns` is not
    /// `[I]`.
    pub fn pack_blocks(
        n_out: usize,
        n_in: usize,
        layout: Layout,
        columns: Option<&[f32]>,
        bits: impl Fn(usize) -> Bits,
        read_row: impl Fn(usize, &mut BlockRow) + Sync,
    ) -> Option<Self> {
        assert!(columns.is_none_or(|columns| columns.len() == n_in), "columns are [I = {n_in}]");
        let grid = PanelGrid::new(n_out, n_in, layout, Kernels::current());
        let panels = BlockPanels::pack(grid, bits, read_row)?;
        let columns = columns.map(<[f32]>::to_vec);
        Some(Self::new(grid, BlocksWeight { panels, columns }))
    }
}

/// A weight in blocks of 4, 5 or 6 bits, for activations in 8 bits.
#[derive(Debug)]
struct BlocksWeight {
    panels: BlockPanels,
    /// Factors of the input features, with which activations are multiplied before they are quantized.
    columns: Option<Vec<f32>>,
}

impl WeightFormat for BlocksWeight {
    fn n_bytes(&self) -> usize {
        self.panels.bytes.len()
    }

    fn quantize<'a>(
        &self,
        kernels: &Kernels,
        x: Rows<'a>,
        buffer: &'a mut QuantizeBuffer,
    ) -> Rows<'a> {
        let row_size = x.n_columns / BLOCK * BLOCK_ROW;
        let columns = self.columns.as_deref();
        rows_of(&mut buffer.i8, x.n_rows, row_size).enumerate().for_each(|(i, out)| {
            kernels.run(QuantizeRow { x: x.row(i), columns, out });
        });
        let values = Values::Quantized(Quantized { arithmetic: Arithmetic::Blocks, buffer });
        Rows { values, n_rows: x.n_rows, n_columns: x.n_columns, stride: row_size + GAP }
    }

    fn multiply(&self, kernels: &Kernels, task: &GemmTask<'_>) {
        let x = &task.x.quantized_for(Arithmetic::Blocks).i8;
        let mut unpacked = UNPACKED.take();
        for panel_idx in task.panels.clone() {
            let (bits, packed) = self.panels.panel(panel_idx);
            let unpacked = &mut unpacked;
            let operands = BlockOperands { x, bits, packed, unpacked, task, panel_idx };
            match bits {
                Bits::Four => kernels.run(MultiplyBlocks(BlocksKernel::<8, false>, operands)),
                Bits::Five => kernels.run(MultiplyBlocks(BlocksKernel::<4, false>, operands)),
                Bits::Six => kernels.run(MultiplyBlocks(BlocksKernel::<4, true>, operands)),
            }
        }
        UNPACKED.set(unpacked);
    }

    fn repacked(&self, from: PanelGrid, to: PanelGrid) -> Box<dyn WeightFormat> {
        let panels = self.panels.repacked(from, to).expect("the panels have the same bits");
        Box::new(Self { panels, columns: self.columns.clone() })
    }
}

thread_local! {
    /// A buffer for an unpacked panel, kept so that tasks do not allocate.
    static UNPACKED: RefCell<Aligned<u8>> = RefCell::default();
}

/// The rows of a task and one of its panels.
struct BlockOperands<'a> {
    x: &'a [i8],
    bits: Bits,
    packed: &'a [u8],
    unpacked: &'a mut Aligned<u8>,
    task: &'a GemmTask<'a>,
    panel_idx: usize,
}

/// Unpacks a panel, and multiplies the rows of a task with it. The kernel is a part of the type, so that each kernel is
/// compiled in a function of its own: the time to compile a function grows faster than its size.
struct MultiplyBlocks<'a, K>(K, BlockOperands<'a>);

impl<K: TileKernel<Left = i8, Right = u8>> SimdOp for MultiplyBlocks<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(kernel, BlockOperands { x, bits, packed, unpacked, task, panel_idx }) = self;
        let size = unpacked_panel_size::<S>(bits, task.x.n_columns);
        unpacked.reserve(size);
        let panel = &mut unpacked[..size];
        unpack(s, bits, packed, panel);
        let next = Prefetch { start: packed.as_ptr_range().end, size: packed.len() };
        // SAFETY: `BlocksWeight::quantize` has written all rows with their scales and sums, and the panel was unpacked
        // for as many values of `k`.
        unsafe { task.multiply_panel(s, kernel, x, (panel_idx, panel), next, None) };
    }
}
