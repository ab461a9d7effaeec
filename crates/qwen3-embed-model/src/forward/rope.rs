use std::sync::{Arc, RwLock};

use candle_core::{Device, Tensor};
use qwen3_embed_kernels::{Ragged, ops};

use crate::Result;

/// Cosines and sines of the rotary position embedding.
///
/// Angles are computed in f64, and their cosines and sines are stored in f32. The table grows when a text first needs
/// more positions, so short texts need a small table even if the model supports 32k tokens.
#[derive(Debug)]
pub(crate) struct RopeTable {
    head_dim: usize,
    theta: f64,
    max_positions: usize,
    rows: RwLock<Option<Arc<Rows>>>,
}

/// The table for the positions below `n_positions`. Both tensors are [n_positions, D / 2], on the model's device.
#[derive(Debug)]
struct Rows {
    n_positions: usize,
    cos: Tensor,
    sin: Tensor,
}

impl RopeTable {
    pub(crate) fn new(head_dim: usize, theta: f64, max_positions: usize) -> Self {
        Self { head_dim, theta, max_positions, rows: RwLock::default() }
    }

    /// The cosines and the sines for each computed token of a batch, both [T, D / 2].
    pub(crate) fn gather(&self, batch: &Ragged, device: &Device) -> Result<[Tensor; 2]> {
        let rows = self.up_to(batch.max_length(), device)?;
        // `Ragged` has checked that positions fit in u32.
        let positions: Vec<u32> = batch.positions().map(|position| position as u32).collect();
        Ok(ops::gather_rows(device, [&rows.cos, &rows.sin], &positions)?)
    }

    /// A table of at least `n` positions.
    fn up_to(&self, n: usize, device: &Device) -> Result<Arc<Rows>> {
        // Poisoning is ignored: the table is only replaced by a complete one.
        let rows = self.rows.read().unwrap_or_else(|e| e.into_inner()).clone();
        if let Some(rows) = rows.filter(|rows| rows.n_positions >= n) {
            return Ok(rows);
        }
        let n_positions = n.next_power_of_two().min(self.max_positions.max(n));
        let rows = Arc::new(self.compute(n_positions, device)?);
        *self.rows.write().unwrap_or_else(|e| e.into_inner()) = Some(rows.clone());
        Ok(rows)
    }

    fn compute(&self, n_positions: usize, device: &Device) -> Result<Rows> {
        let half = self.head_dim / 2;
        let frequencies: Vec<f64> =
            (0..half).map(|i| self.theta.powf(-2.0 * i as f64 / self.head_dim as f64)).collect();
        let [mut cosines, mut sines] = [const { Vec::new() }; 2];
        for position in 0..n_positions {
            for frequency in &frequencies {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                cosines.push(cos as f32);
                sines.push(sin as f32);
            }
        }
        let on_device = |values| Tensor::from_vec(values, (n_positions, half), device);
        Ok(Rows { n_positions, cos: on_device(cosines)?, sin: on_device(sines)? })
    }
}

#[cfg(test)]
mod tests {
    use qwen3_embed_kernels::ops::to_f32;

    use super::*;

    /// Tables that are computed in bf16 or f32 have larger errors from position 256 on.
    #[test]
    fn tables_are_exact_at_every_position() {
        let (head_dim, theta, length) = (128, 1e6, 32_768);
        let table = RopeTable::new(head_dim, theta, length);
        let batch = Ragged::from_lengths([length]).unwrap();
        let [cos, sin] = table.gather(&batch, &Device::Cpu).unwrap();
        let (cos, sin) = (to_f32(&cos).unwrap(), to_f32(&sin).unwrap());
        for position in [0, 1, 255, 256, 257, 4095, 16_385, 32_767] {
            for i in 0..head_dim / 2 {
                let angle = position as f64 / theta.powf(2.0 * i as f64 / head_dim as f64);
                let at = position * head_dim / 2 + i;
                assert!((f64::from(cos[at]) - angle.cos()).abs() < 1e-7, "{position}, {i}");
                assert!((f64::from(sin[at]) - angle.sin()).abs() < 1e-7, "{position}, {i}");
            }
        }
    }

    #[test]
    fn texts_begin_at_position_zero_and_tables_grow() {
        let table = RopeTable::new(2, 1e4, 8);
        for lengths in [vec![1], vec![2, 3], vec![8, 1, 8]] {
            let batch = Ragged::from_lengths(lengths).unwrap();
            let [cos, _] = table.gather(&batch, &Device::Cpu).unwrap();
            let expected: Vec<f32> = batch.positions().map(|p| (p as f64).cos() as f32).collect();
            assert_eq!(to_f32(&cos).unwrap(), expected);
        }
    }
}
