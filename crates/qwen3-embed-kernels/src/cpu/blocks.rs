//! Weights in blocks of few bits, in the order in which products read them.

use rayon::prelude::*;

use super::aligned::Aligned;
use super::packed::Place;
use super::product::{BLOCK, Bits, parts_of};

/// Panels of blocks, each in bits of its own.
#[derive(Debug, Clone)]
pub(super) struct BlockPanels {
    bytes: Aligned<u8>,
    panels: Vec<BlockPanel>,
    /// What activations are multiplied with before they are brought into 8 bits.
    pub(super) columns: Option<Vec<f32>>,
}

/// Where a panel lies.
#[derive(Debug, Clone, Copy)]
struct BlockPanel {
    bits: Bits,
    start: usize,
    size: usize,
}

/// One row of a weight in blocks, to be written: see [`Bits`] for what its parts are. Each is as long as the
/// bits ask for; without minima there is no `m` and no `n`.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct BlockRow {
    /// The whole numbers `q`, I of them.
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
    /// Fills panels, in parallel: `read_row(o, row)` writes the weight's row `o`, which is in `bits(o)`. `None`
    /// if I is not whole blocks, or rows in different bits would share a panel.
    pub(super) fn pack(
        place: Place,
        columns: Option<Vec<f32>>,
        bits: impl Fn(usize) -> Bits,
        read_row: impl Fn(usize, &mut BlockRow) + Sync,
    ) -> Option<Self> {
        let n_columns = place.panel_columns();
        let row_at = place.rows_at_columns();
        let mut panels = Vec::with_capacity(place.n_panels());
        let mut end = 0;
        for rows in row_at.chunks(n_columns) {
            let mut of_rows = rows.iter().flatten().map(|&o| bits(o));
            let bits = of_rows.next()?;
            if !place.n_in.is_multiple_of(BLOCK) || of_rows.any(|other| other != bits) {
                return None;
            }
            let size = place.n_in / BLOCK * bits.packed_size() * n_columns;
            panels.push(BlockPanel { bits, start: end, size });
            end += size;
        }
        let mut bytes = Aligned::zeroed(end);
        let mut rest = &mut *bytes;
        let mut tasks = Vec::with_capacity(panels.len());
        for (panel, rows) in panels.iter().zip(row_at.chunks(n_columns)) {
            let (bytes, behind) = rest.split_at_mut(panel.size);
            tasks.push((panel.bits, rows, bytes));
            rest = behind;
        }
        tasks.into_par_iter().for_each(|(bits, rows, panel)| {
            let mut row = BlockRow::new(bits, place.n_in);
            for (column, o) in rows.iter().enumerate() {
                if let Some(o) = *o {
                    read_row(o, &mut row);
                    write_column(bits, &row, panel, [column, n_columns]);
                }
            }
        });
        Some(Self { bytes, panels, columns })
    }

    /// Bytes of all panels.
    pub(super) fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// A panel, and its bits.
    pub(super) fn panel(&self, panel_idx: usize) -> (Bits, &[u8]) {
        let BlockPanel { bits, start, size } = self.panels[panel_idx];
        (bits, &self.bytes[start..start + size])
    }

    /// The panels for another kernel set. Absent if rows in different bits would share a panel there.
    pub(super) fn repacked(&self, from: Place, place: Place) -> Option<Self> {
        let at = |o: usize| (from.column(o) / from.panel_columns(), from.column(o));
        let bits = |o| self.panel(at(o).0).0;
        Self::pack(place, self.columns.clone(), bits, |o, row| {
            let (panel_idx, column) = at(o);
            let (bits, panel) = self.panel(panel_idx);
            read_column(bits, row, panel, [column % from.panel_columns(), from.panel_columns()]);
        })
    }
}

/// Where value `k` of a block is among bytes that have `bits` of each, `8 / bits` quads apart: the byte, and the
/// first bit.
fn place_of_bits(bits: usize, k: usize, [column, n_columns]: [usize; 2]) -> (usize, usize) {
    let (quad, per_byte) = (k / 4, 8 / bits);
    ((quad / per_byte * n_columns + column) * 4 + k % 4, quad % per_byte * bits)
}

/// Writes a row into a column of a panel of zeros.
fn write_column(bits: Bits, row: &BlockRow, panel: &mut [u8], place: [usize; 2]) {
    let [column, n_columns] = place;
    for (block, out) in panel.chunks_exact_mut(bits.packed_size() * n_columns).enumerate() {
        let mut rest = out;
        let [nibbles, upper, scales, minima, d, m] = bits.parts().map(|size| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(size * n_columns);
            rest = behind;
            part
        });
        for (k, &value) in row.values[block * BLOCK..][..BLOCK].iter().enumerate() {
            let (byte, shift) = place_of_bits(4, k, place);
            nibbles[byte] |= (value & 15) << shift;
            if bits.upper() > 0 {
                let (byte, shift) = place_of_bits(bits.upper(), k, place);
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

/// Reads a row back from a column of a panel.
fn read_column(bits: Bits, row: &mut BlockRow, panel: &[u8], place: [usize; 2]) {
    let [column, n_columns] = place;
    for (block, packed) in panel.chunks_exact(bits.packed_size() * n_columns).enumerate() {
        let [nibbles, upper, scales, minima, d, m] = parts_of(bits, n_columns, packed);
        for (k, value) in row.values[block * BLOCK..][..BLOCK].iter_mut().enumerate() {
            let (byte, shift) = place_of_bits(4, k, place);
            *value = nibbles[byte] >> shift & 15;
            if bits.upper() > 0 {
                let (byte, shift) = place_of_bits(bits.upper(), k, place);
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
