//! Matrices in memory-mapped files. Rows are converted to another type when they are read.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use half::bf16;
use qwen3_embed_kernels::cpu::{Layout, PackedWeight};
use qwen3_embed_kernels::ops;

use crate::Result;
use crate::checkpoint::file::MappedFile;
use crate::checkpoint::low_rank::LowRankUpdate;
use crate::checkpoint::stored_type::{self as blocks, MAX_BLOCK, StoredType};

/// A tensor in its file. Its rows are whole blocks of its type, and `range` contains the bytes of all blocks.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) file: Arc<MappedFile>,
    pub(crate) range: Range<usize>,
    pub(crate) stored_type: StoredType,
    pub(crate) shape: Vec<usize>,
}

/// A weight matrix, made of one or several matrices in files.
pub(crate) struct Matrix {
    /// The matrices, concatenated by rows.
    pub(crate) parts: Vec<Part>,
    pub(crate) n_rows: usize,
    pub(crate) n_columns: usize,
}

/// A weight in its file, and the update of an adapter that is added to it.
pub(crate) struct Part {
    pub(crate) stored: Stored,
    pub(crate) update: Option<Arc<LowRankUpdate>>,
}

impl Matrix {
    /// Packs the matrix in f32 for a device.
    pub(crate) fn in_f32(&self, device: &Device, layout: Layout) -> Result<ops::Linear> {
        let shape = [self.n_rows, self.n_columns];
        Ok(ops::Linear::in_f32(device, shape, layout, |o, row| self.read_row(o, row))?)
    }

    /// Packs the matrix in bf16 for a device.
    pub(crate) fn in_bf16(&self, device: &Device, layout: Layout) -> Result<ops::Linear> {
        let shape = [self.n_rows, self.n_columns];
        Ok(ops::Linear::in_bf16(device, shape, layout, |o, row| self.read_row(o, row))?)
    }

    /// Whether the whole matrix is stored in Q8_0.
    pub(crate) fn is_q8_0(&self) -> bool {
        let is_q8_0 = |part: &Part| part.stored.stored_type == StoredType::Q8_0;
        self.parts.iter().all(|part| is_q8_0(part) && part.update.is_none())
    }

    /// Packs a matrix in Q8_0 without conversion.
    pub(crate) fn pack_q8_0(&self, layout: Layout) -> PackedWeight {
        PackedWeight::pack_q8(self.n_rows, self.n_columns, layout, |o, values, scales| {
            if let Some((part, row_idx)) = self.part_of(o) {
                blocks::read_q8_0(
                    part.stored.bytes_of(row_idx * values.len(), values.len()),
                    values,
                    scales,
                );
            }
        })
    }

    /// Packs a matrix in Q4_K, Q5_K or Q6_K without conversion. Activations are multiplied by `columns` if there are
    /// any. `None` if the matrix is stored in another type, or if the kernels do not support its shape.
    pub(crate) fn pack_blocks(
        &self,
        layout: Layout,
        columns: Option<&[f32]>,
    ) -> Option<PackedWeight> {
        if !self.is_blocks() {
            return None;
        }
        let bits = |o| {
            let bits = self.part_of(o).and_then(|(part, _)| part.stored.stored_type.block_bits());
            bits.expect("every part is in blocks")
        };
        PackedWeight::pack_blocks(self.n_rows, self.n_columns, layout, columns, bits, |o, row| {
            if let Some((part, row_idx)) = self.part_of(o) {
                let bytes = part.stored.bytes_of(row_idx * self.n_columns, self.n_columns);
                blocks::read_block_row(part.stored.stored_type, bytes, row);
            }
        })
    }

    /// Whether the whole matrix is stored in Q4_K, Q5_K or Q6_K.
    pub(crate) fn is_blocks(&self) -> bool {
        let is_blocks = |part: &Part| part.stored.stored_type.block_bits().is_some();
        self.parts.iter().all(|part| is_blocks(part) && part.update.is_none())
    }

    /// Tells the system that the matrix is packed and its pages of the file are not needed any more.
    pub(crate) fn release(&self) {
        self.parts.iter().for_each(|part| part.stored.release());
    }

    /// Reads a row in f32. Its columns are multiplied by `columns` if there are any.
    pub(crate) fn read_scaled_row(&self, row_idx: usize, columns: Option<&[f32]>, out: &mut [f32]) {
        self.read_row(row_idx, out);
        for (weight, column) in out.iter_mut().zip(columns.into_iter().flatten()) {
            *weight *= column;
        }
    }

    fn read_row<T: FromStored>(&self, row_idx: usize, out: &mut [T]) {
        if let Some((part, row_idx)) = self.part_of(row_idx) {
            part.read_row(row_idx, out);
        }
    }

    /// The part that contains row `row_idx`, and the index of the row in the part.
    fn part_of(&self, mut row_idx: usize) -> Option<(&Part, usize)> {
        for part in &self.parts {
            if row_idx < part.stored.shape[0] {
                return Some((part, row_idx));
            }
            row_idx -= part.stored.shape[0];
        }
        None
    }
}

impl Part {
    fn read_row<T: FromStored>(&self, row_idx: usize, out: &mut [T]) {
        let start = row_idx * out.len();
        let Some(update) = &self.update else {
            return self.stored.read(start, out);
        };
        let mut row = vec![0f32; out.len()];
        self.stored.read(start, &mut row);
        update.add_to(row_idx, &mut row);
        out.iter_mut().zip(row).for_each(|(out, value)| *out = T::from_f32(value));
    }
}

/// A matrix whose rows are read when they are used, from the memory-mapped file or from a copy.
#[derive(Debug)]
pub(crate) struct MappedRows {
    pub(crate) stored: Stored,
    pub(crate) n_columns: usize,
}

impl MappedRows {
    /// Copies the rows into memory. The file is not used after that.
    pub(crate) fn copied(self) -> Result<Self> {
        let Stored { file, range, stored_type, shape } = self.stored;
        let copy = file.copy_of(&range)?;
        file.release(&range);
        let range = 0..range.len();
        let stored = Stored { file: Arc::new(copy), range, stored_type, shape };
        Ok(Self { stored, n_columns: self.n_columns })
    }

    /// The rows `ids` in f32, with the shape [ids, columns]. Every id must be below the number of rows.
    pub(crate) fn gather(&self, ids: &[u32]) -> Vec<f32> {
        let mut values = vec![0f32; ids.len() * self.n_columns];
        for (row, id) in values.chunks_exact_mut(self.n_columns).zip(ids) {
            self.stored.read(*id as usize * self.n_columns, row);
        }
        values
    }

    /// Copies all rows to a device, in bf16 if they are stored in bf16, otherwise in f32.
    pub(crate) fn to_tensor(&self, device: &Device) -> Result<Tensor> {
        let tensor = match self.stored.stored_type {
            StoredType::BF16 => {
                Tensor::from_vec(self.stored.values::<bf16>(), self.stored.shape.clone(), device)
            }
            _ => Tensor::from_vec(self.stored.values::<f32>(), self.stored.shape.clone(), device),
        };
        self.stored.release();
        Ok(tensor?)
    }
}

impl Stored {
    /// Tells the system that the pages of the tensor are not needed any more.
    fn release(&self) {
        self.file.release(&self.range);
    }

    /// All values.
    pub(crate) fn values<T: FromStored>(&self) -> Vec<T> {
        let mut values = vec![T::default(); self.shape.iter().product()];
        self.read(0, &mut values);
        values
    }

    /// Finds a value that is not finite, and its index. At most `max_parts` parts of the tensor, of 256 values each, are
    /// read. They have equal distances, and the first and the last part are among them.
    pub(crate) fn find_not_finite(&self, max_parts: usize) -> Option<(usize, f32)> {
        let n_values: usize = self.shape.iter().product();
        let n_parts = n_values.div_ceil(MAX_BLOCK);
        let n_read = n_parts.min(max_parts);
        let mut values = [0f32; MAX_BLOCK];
        (0..n_read).find_map(|i| {
            let part = if n_read == n_parts { i } else { i * (n_parts - 1) / (n_read - 1) };
            let start = part * MAX_BLOCK;
            let values = &mut values[..MAX_BLOCK.min(n_values - start)];
            self.read(start, values);
            let at = values.iter().position(|value| !value.is_finite())?;
            Some((start + at, values[at]))
        })
    }

    /// Converts the values from `start` on. `start` and the length of `out` must be whole blocks.
    fn read<T: FromStored>(&self, start: usize, out: &mut [T]) {
        T::dequantize(self.stored_type, self.bytes_of(start, out.len()), out);
    }

    /// The bytes of `n` values from `start` on. Both must be whole blocks.
    fn bytes_of(&self, start: usize, n: usize) -> &[u8] {
        let (values, size) =
            (self.stored_type.values_per_block(), self.stored_type.bytes_per_block());
        &self.file.bytes()[self.range.clone()][start / values * size..][..n / values * size]
    }
}

/// A floating-point type to which stored values are converted.
pub(crate) trait FromStored: Copy + Default + Send + Sync {
    /// Converts whole blocks.
    fn dequantize(stored_type: StoredType, bytes: &[u8], out: &mut [Self]);

    fn from_f32(value: f32) -> Self;
}

impl FromStored for f32 {
    fn dequantize(stored_type: StoredType, bytes: &[u8], out: &mut [Self]) {
        stored_type.dequantize(bytes, out);
    }

    fn from_f32(value: f32) -> Self {
        value
    }
}

impl FromStored for bf16 {
    fn dequantize(stored_type: StoredType, bytes: &[u8], out: &mut [Self]) {
        if stored_type == StoredType::BF16 {
            let values = bytes.as_chunks().0.iter();
            return out.iter_mut().zip(values).for_each(|(o, &v)| *o = Self::from_le_bytes(v));
        }
        // Values are converted to f32 first, in chunks that stay in the L1 cache.
        let n_bytes = MAX_BLOCK / stored_type.values_per_block() * stored_type.bytes_per_block();
        let mut values = [0f32; MAX_BLOCK];
        for (bytes, out) in bytes.chunks(n_bytes).zip(out.chunks_mut(MAX_BLOCK)) {
            let values = &mut values[..out.len()];
            stored_type.dequantize(bytes, values);
            out.iter_mut().zip(values).for_each(|(o, v)| *o = Self::from_f32(*v));
        }
    }

    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
}
