//! Activations in 8 bits: blocks of [`BLOCK`] values, each followed by its scale and by sums of its values.

use super::bits::{BLOCK, GROUPS};
use crate::cpu::activations::Values;
use crate::cpu::quantize::multiples;
use crate::cpu::scalar::FloatScalar;
use crate::cpu::simd::{Simd, SimdOp};
use crate::cpu::vector::{load_part, store_part};

/// The offset of the scale, an f32, in a block of a row.
pub(super) const SCALE: usize = BLOCK;

/// The offset of the sum Σ a of each group, an i16.
pub(super) const SUMS: usize = SCALE + size_of::<f32>();

/// The offset of −32 · Σ a of each half of a group, in pairs of i16. The first i16 of a pair sums the first two values
/// of each quad (four neighboring values), the second i16 sums the last two values.
pub(super) const CENTER: usize = SUMS + GROUPS * size_of::<i16>();

/// Bytes of a block of a row.
pub(super) const BLOCK_ROW: usize = CENTER + 2 * GROUPS * size_of::<[i16; 2]>();

/// Quantizes a row in blocks: the values of a block become multiples of its scale. If there are `columns`, the row is
/// multiplied with them first. The length of the row is a multiple of [`BLOCK`].
pub(super) struct QuantizeRow<'a> {
    pub(super) x: Values<'a>,
    pub(super) columns: Option<&'a [f32]>,
    pub(super) out: &'a mut [i8],
}

impl SimdOp for QuantizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.x {
            Values::F32(x) => quantize_blocks(s, x, self.columns, self.out),
            Values::Bf16(x) => quantize_blocks(s, x, self.columns, self.out),
            Values::Quantized(_) => unreachable!("`Rows::row` returns f32 or bf16"),
        }
    }
}

#[inline(always)]
fn quantize_blocks<S: Simd, T: FloatScalar>(
    s: S,
    x: &[T],
    columns: Option<&[f32]>,
    out: &mut [i8],
) {
    let blocks = x.chunks_exact(BLOCK).zip(out.as_chunks_mut::<BLOCK_ROW>().0);
    for (i, (x, block)) in blocks.enumerate() {
        let scale = match columns {
            None => multiples(s, x, &mut block[..BLOCK]),
            Some(columns) => {
                let columns = &columns[i * BLOCK..][..BLOCK];
                let mut products = [0f32; BLOCK];
                for at in (0..BLOCK).step_by(S::LANES) {
                    let product = s.mul(load_part(s, &x[at..]), load_part(s, &columns[at..]));
                    store_part(s, &mut products[at..], product);
                }
                multiples(s, &products, &mut block[..BLOCK])
            }
        };
        finish_block(block, scale);
    }
}

/// Writes the scale of a block and the sums of its values after the values.
#[inline(always)]
fn finish_block(block: &mut [i8; BLOCK_ROW], scale: f32) {
    write_bytes(block, SCALE, scale.to_ne_bytes());
    for group in 0..GROUPS {
        let mut sum = 0;
        for half in 2 * group..2 * group + 2 {
            // The sum of the first two values of each quad, and the sum of the last two.
            let mut sums = [0i32; 2];
            for quad in 4 * half..4 * half + 4 {
                sums[0] += i32::from(block[4 * quad]) + i32::from(block[4 * quad + 1]);
                sums[1] += i32::from(block[4 * quad + 2]) + i32::from(block[4 * quad + 3]);
            }
            sum += sums[0] + sums[1];
            for (i, sum) in sums.into_iter().enumerate() {
                // The product fits in 16 bits, unless the scale is NaN and the result is NaN anyway.
                write_bytes(block, CENTER + 4 * half + 2 * i, ((-32 * sum) as i16).to_ne_bytes());
            }
        }
        write_bytes(block, SUMS + 2 * group, (sum as i16).to_ne_bytes());
    }
}

#[inline(always)]
fn write_bytes<const N: usize>(block: &mut [i8], at: usize, bytes: [u8; N]) {
    block[at..at + N].copy_from_slice(&bytes.map(u8::cast_signed));
}
