//! Packs weights of 4, 5 or 6 bits. In a panel, each block has the parts that [`Bits::parts`] describes, each for all
//! columns.

use rayon::prelude::*;

use super::bits::{BLOCK, Bits};
use crate::cpu::aligned::Aligned;
use crate::cpu::panels::PanelGrid;

/// Panels of blocks. All columns of a panel have the same bits.
#[derive(Debug)]
pub(super) struct BlockPanels {
    pub(super) bytes: Aligned<u8>,
    panels: Vec<BlockPanel>,
}

/// The bits of a panel, and the position of the panel in the bytes of all panels.
#[derive(Debug, Clone, Copy)]
struct BlockPanel {
    bits: Bits,
    start: usize,
    size: usize,
}

/// One row of a weight in blocks: see [`Bits`] for the meaning of `q`, `s`, `n`, `d` and `m`. `m` and `minima` are
/// empty for [`Bits::Six`], which has no minima.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct BlockRow {
    /// The integers `q`, I of them.
    pub values: Vec<u8>,
    /// `s` of each group.
    pub scales: Vec<i8>,
    /// `n` of each group.
    pub minima: Vec<u8>,
    /// `d` of each block.
    pub d: Vec<f32>,
    /// `m` of each block.
    pub m: Vec<f32>,
}

impl BlockRow {
    /// A row of zeros.
    fn new(bits: Bits, n_in: usize) -> Self {
        let (n_blocks, n_groups) = (n_in / BLOCK, n_in / bits.group());
        let has_minima = usize::from(bits.has_minima());
        Self {
            values: vec![0; n_in],
            scales: vec![0; n_groups],
            minima: vec![0; has_minima * n_groups],
            d: vec![0.0; n_blocks],
            m: vec![0.0; has_minima * n_blocks],
        }
    }
}

impl BlockPanels {
    /// Packs a weight, in parallel. Row `o` of the weight has `bits(o)`, and `read_row(o, row)` writes the row. `None`
    /// if I is not a multiple of [`BLOCK`], or if rows with different bits would share a panel.
    pub(super) fn pack(
        grid: PanelGrid,
        bits: impl Fn(usize) -> Bits,
        read_row: impl Fn(usize, &mut BlockRow) + Sync,
    ) -> Option<Self> {
        let n_columns = grid.panel_columns();
        let row_at = grid.rows_at_columns();
        let mut panels = Vec::with_capacity(grid.n_panels());
        let mut end = 0;
        for rows in row_at.chunks(n_columns) {
            let mut of_rows = rows.iter().flatten().map(|&o| bits(o));
            let bits = of_rows.next()?;
            if !grid.n_in.is_multiple_of(BLOCK) || of_rows.any(|other| other != bits) {
                return None;
            }
            let size = grid.n_in / BLOCK * bits.packed_size() * n_columns;
            panels.push(BlockPanel { bits, start: end, size });
            end += size;
        }
        let mut bytes = Aligned::zeroed(end);
        let mut rest = &mut *bytes;
        let mut tasks = Vec::with_capacity(panels.len());
        for (panel, rows) in panels.iter().zip(row_at.chunks(n_columns)) {
            let (bytes, after) = rest.split_at_mut(panel.size);
            tasks.push((panel.bits, rows, bytes));
            rest = after;
        }
        tasks.into_par_iter().for_each(|(bits, rows, panel)| {
            let mut row = BlockRow::new(bits, grid.n_in);
            for (column, o) in rows.iter().enumerate() {
                if let Some(o) = *o {
                    read_row(o, &mut row);
                    write_column(bits, &row, panel, [column, n_columns]);
                }
            }
        });
        Some(Self { bytes, panels })
    }

    /// The bits of a panel, and its bytes.
    pub(super) fn panel(&self, panel_idx: usize) -> (Bits, &[u8]) {
        let BlockPanel { bits, start, size } = self.panels[panel_idx];
        (bits, &self.bytes[start..start + size])
    }

    /// The panels for another kernel set. `None` if rows with different bits would share a panel of this set.
    pub(super) fn repacked(&self, from: PanelGrid, to: PanelGrid) -> Option<Self> {
        let bits = |o| self.panel(from.position(o).0).0;
        Self::pack(to, bits, |o, row| {
            let (panel_idx, column) = from.position(o);
            let (bits, panel) = self.panel(panel_idx);
            read_column(bits, row, panel, [column, from.panel_columns()]);
        })
    }
}

/// The index of the byte that has value `k` of a column of a block, and the position of the value's lowest bit in the
/// byte. Each value has `bits` bits, and a byte has the values at the same place of `8 / bits` neighboring quads.
fn position_of_bits(bits: usize, k: usize, [column, n_columns]: [usize; 2]) -> (usize, usize) {
    let (quad, per_byte) = (k / 4, 8 / bits);
    ((quad / per_byte * n_columns + column) * 4 + k % 4, quad % per_byte * bits)
}

/// Writes a row to a column of a panel, which must be zero.
fn write_column(bits: Bits, row: &BlockRow, panel: &mut [u8], position: [usize; 2]) {
    let [column, n_columns] = position;
    for (block, out) in panel.chunks_exact_mut(bits.packed_size() * n_columns).enumerate() {
        let mut rest = out;
        let [nibbles, upper, scales, minima, d, m] = bits.parts().map(|size| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(size * n_columns);
            rest = after;
            part
        });
        for (k, &value) in row.values[block * BLOCK..][..BLOCK].iter().enumerate() {
            let (byte, shift) = position_of_bits(4, k, position);
            nibbles[byte] |= (value & 15) << shift;
            if bits.upper() > 0 {
                let (byte, shift) = position_of_bits(bits.upper(), k, position);
                upper[byte] |= (value >> 4 & ((1 << bits.upper()) - 1)) << shift;
            }
        }
        let n_groups = BLOCK / bits.group();
        for group in 0..n_groups {
            scales[group * n_columns + column] =
                row.scales[block * n_groups + group].cast_unsigned();
        }
        d[4 * column..][..4].copy_from_slice(&row.d[block].to_ne_bytes());
        if bits.has_minima() {
            for group in 0..n_groups {
                minima[group * n_columns + column] = row.minima[block * n_groups + group];
            }
            m[4 * column..][..4].copy_from_slice(&row.m[block].to_ne_bytes());
        }
    }
}

/// Reads a row from a column of a panel.
fn read_column(bits: Bits, row: &mut BlockRow, panel: &[u8], position: [usize; 2]) {
    let [column, n_columns] = position;
    for (block, packed) in panel.chunks_exact(bits.packed_size() * n_columns).enumerate() {
        let [nibbles, upper, scales, minima, d, m] = bits.split(n_columns, packed);
        for (k, value) in row.values[block * BLOCK..][..BLOCK].iter_mut().enumerate() {
            let (byte, shift) = position_of_bits(4, k, position);
            *value = nibbles[byte] >> shift & 15;
            if bits.upper() > 0 {
                let (byte, shift) = position_of_bits(bits.upper(), k, position);
                *value |= (upper[byte] >> shift & ((1 << bits.upper()) - 1)) << 4;
            }
        }
        let n_groups = BLOCK / bits.group();
        for group in 0..n_groups {
            row.scales[block * n_groups + group] = scales[group * n_columns + column].cast_signed();
        }
        let f32_at =
            |bytes: &[u8]| f32::from_ne_bytes(std::array::from_fn(|i| bytes[4 * column + i]));
        row.d[block] = f32_at(d);
        if bits.has_minima() {
            for group in 0..n_groups {
                row.minima[block * n_groups + group] = minima[group * n_columns + column];
            }
            row.m[block] = f32_at(m);
        }
    }
}
