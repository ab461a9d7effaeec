//! The types in which files store weights, and the conversion of stored values to f32.
//!
//! Besides floating-point types, there are the block types of ggml: 32 or 256 consecutive values of a row share scales.
//! With `d` for the f16 scale of a block and `q` for the small integer of a value, a value is
//!
//! ```text
//! Q8_0   d · q               d, 32 signed bytes
//! Q5_0   d · (q − 16)        d, 32 fifth bits, 32 nibbles
//! Q4_K   d·s · q − m·n       d, m, eight pairs (s, n) of six bits, 256 nibbles
//! Q5_K   d·s · q − m·n       the same with 256 fifth bits before the nibbles
//! Q6_K   d·s · (q − 32)      256 nibbles, 256 pairs of upper bits, 16 signed bytes s, d
//! ```
//!
//! The factors are multiplied in the same order as in the `gguf` Python package, and each product is rounded. So the
//! values are the same as in this package, bit for bit.

use half::{bf16, f16};
use qwen3_embed_kernels::cpu::{Bits, BlockRow};
use safetensors::Dtype;

use crate::Precision;

/// A type in which weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the names of the format")]
pub(crate) enum StoredType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q5_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// The supported types in safetensors files.
pub(crate) const SAFETENSORS_TYPES: &str = "BF16, F16 or F32";

/// The supported types in GGUF files.
pub(crate) const GGUF_TYPES: &str = "F32, F16, BF16, Q8_0, Q5_0, Q4_K, Q5_K or Q6_K";

/// The size of the largest block in values.
pub(crate) const MAX_BLOCK: usize = 256;

impl StoredType {
    /// The type with this name in a safetensors file. `None` if it is not supported.
    pub(crate) fn of_safetensors(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    /// The type with this number in a GGUF file. `None` if it is not supported.
    pub(crate) fn of_gguf(id: u32) -> Option<Self> {
        match id {
            0 => Some(Self::F32),
            1 => Some(Self::F16),
            6 => Some(Self::Q5_0),
            8 => Some(Self::Q8_0),
            12 => Some(Self::Q4_K),
            13 => Some(Self::Q5_K),
            14 => Some(Self::Q6_K),
            30 => Some(Self::BF16),
            _ => None,
        }
    }

    /// The number of values in a block. It is 1 for floating-point types.
    pub(crate) fn values_per_block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q5_0 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => MAX_BLOCK,
        }
    }

    /// The size of a block in bytes.
    pub(crate) fn bytes_per_block(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q5_0 => 22,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// The precision that is used for weights of this type by default. It represents their values exactly, except for
    /// the last bits of f16.
    pub(crate) fn precision(self) -> Precision {
        match self {
            Self::F32 => Precision::F32,
            Self::F16 | Self::BF16 => Precision::Bf16,
            _ => Precision::Int8,
        }
    }

    /// The number of bits, if the kernels use blocks of this type without conversion.
    pub(crate) fn block_bits(self) -> Option<Bits> {
        match self {
            Self::Q4_K => Some(Bits::Four),
            Self::Q5_K => Some(Bits::Five),
            Self::Q6_K => Some(Bits::Six),
            Self::F32 | Self::F16 | Self::BF16 | Self::Q8_0 | Self::Q5_0 => None,
        }
    }

    /// Converts whole blocks to f32.
    ///
    /// # Panics
    ///
    /// Panics if `bytes` and `out` are not the same number of whole blocks.
    pub(crate) fn dequantize(self, bytes: &[u8], out: &mut [f32]) {
        let n_blocks = out.len() / self.values_per_block();
        assert_eq!(out.len(), n_blocks * self.values_per_block(), "whole blocks of values");
        assert_eq!(bytes.len(), n_blocks * self.bytes_per_block(), "bytes of as many blocks");
        match self {
            Self::F32 => each_block(bytes, out, |b, o| *o = [f32::from_le_bytes(*b)]),
            Self::F16 => each_block(bytes, out, |b, o| *o = [f16::from_le_bytes(*b).to_f32()]),
            Self::BF16 => each_block(bytes, out, |b, o| *o = [bf16::from_le_bytes(*b).to_f32()]),
            Self::Q8_0 => each_block(bytes, out, q8_0),
            Self::Q5_0 => each_block(bytes, out, q5_0),
            Self::Q4_K => each_block(bytes, out, q4_k),
            Self::Q5_K => each_block(bytes, out, q5_k),
            Self::Q6_K => each_block(bytes, out, q6_k),
        }
    }
}

/// Calls `block` with the bytes and the values of each block. Their lengths are constants, so the compiler unrolls the
/// loops over a block and removes the bounds checks.
#[inline]
fn each_block<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; B], &mut [f32; N]),
) {
    let (bytes, values) = (bytes.as_chunks::<B>().0, out.as_chunks_mut::<N>().0);
    bytes.iter().zip(values).for_each(|(bytes, values)| block(bytes, values));
}

/// The f16 scale at byte `at` of a block.
fn scale<const B: usize>(block: &[u8; B], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Layout: d, 32 signed bytes.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    for (o, &q) in out.iter_mut().zip(&block[2..]) {
        *o = d * f32::from(q.cast_signed());
    }
}

/// Reads the integers and the scale of each block of Q8_0.
///
/// # Panics
///
/// Panics if `bytes` and `values` are not the same number of blocks, or if `scales` is shorter.
pub(crate) fn read_q8_0(bytes: &[u8], values: &mut [i8], scales: &mut [f32]) {
    let (blocks, values) = (bytes.as_chunks::<34>().0, values.as_chunks_mut::<32>().0);
    assert_eq!(blocks.len(), values.len(), "a block for every 32 values");
    for (i, (block, values)) in blocks.iter().zip(values).enumerate() {
        scales[i] = scale(block, 0);
        values.iter_mut().zip(&block[2..]).for_each(|(value, q)| *value = q.cast_signed());
    }
}

/// Layout: d, the fifth bit of each value, 16 bytes. The lower nibbles of the bytes are the first 16 values.
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = scale(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let nibbles = &block[6..];
    for i in 0..16 {
        let low_bit = ((high >> i) & 1) as u8;
        let high_bit = ((high >> (i + 16)) & 1) as u8;
        out[i] = d * (f32::from(nibbles[i] & 15 | low_bit << 4) - 16.0);
        out[i + 16] = d * (f32::from(nibbles[i] >> 4 | high_bit << 4) - 16.0);
    }
}

/// The scale and the minimum of each of eight groups of 32 values, as multiples of d and m.
///
/// They are pairs of six bits in the 12 bytes after d and m. Each number of the first four pairs is the lower six bits
/// of a byte. The two upper bits of the same byte are the upper bits of a number of the last four pairs, whose lower
/// four bits are a nibble.
fn scales_and_minima<const B: usize>(block: &[u8; B]) -> [(u8, u8); 8] {
    let packed = &block[4..16];
    std::array::from_fn(|group| {
        if group < 4 {
            return (packed[group] & 63, packed[group + 4] & 63);
        }
        let nibbles = packed[group + 4];
        let (s, n) = (packed[group - 4] >> 6, packed[group] >> 6);
        (nibbles & 15 | s << 4, nibbles >> 4 | n << 4)
    })
}

/// The values of a block with minima, from its integers.
fn scaled<const B: usize>(block: &[u8; B], values: &[u8; 256], out: &mut [f32; 256]) {
    let (d, m) = (scale(block, 0), scale(block, 2));
    let groups = out.as_chunks_mut::<32>().0.iter_mut().zip(values.as_chunks::<32>().0);
    for ((out, values), (s, n)) in groups.zip(scales_and_minima(block)) {
        let (d, m) = (d * f32::from(s), m * f32::from(n));
        out.iter_mut().zip(values).for_each(|(o, &q)| *o = d * f32::from(q) - m);
    }
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    scaled(block, &q4_k_values(block), out);
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    scaled(block, &q5_k_values(block), out);
}

fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (d, values) = (scale(block, 208), q6_k_values(block));
    let groups = out.as_chunks_mut::<16>().0.iter_mut().zip(values.as_chunks::<16>().0);
    for ((out, values), s) in groups.zip(&block[192..]) {
        let scale = d * f32::from(s.cast_signed());
        out.iter_mut().zip(values).for_each(|(o, &q)| *o = scale * (f32::from(q) - 32.0));
    }
}

/// Layout: d, m, 12 bytes of scales, 32 bytes for every two groups. The lower nibbles belong to the first group.
fn q4_k_values(block: &[u8; 144]) -> [u8; 256] {
    let mut out = [0; 256];
    let nibbles = block[16..].as_chunks::<32>().0;
    for (group, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let shift = 4 * (group % 2);
        for (o, &q) in values.iter_mut().zip(&nibbles[group / 2]) {
            *o = (q >> shift) & 15;
        }
    }
    out
}

/// Layout: as Q4_K, with 32 bytes before the nibbles. Bit `g` of byte `i` is the fifth bit of value `i` in group `g`.
fn q5_k_values(block: &[u8; 176]) -> [u8; 256] {
    let mut out = [0; 256];
    let (high, nibbles) = (&block[16..48], block[48..].as_chunks::<32>().0);
    for (group, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let shift = 4 * (group % 2);
        for ((o, &q), &bits) in values.iter_mut().zip(&nibbles[group / 2]).zip(high) {
            *o = (q >> shift) & 15 | (bits >> group & 1) << 4;
        }
    }
    out
}

/// Layout: two halves of 128 values, a signed scale for every 16 values, d. A half has four groups of 32 values. Its 64
/// bytes of nibbles contain the lower bits: the first two groups are the lower nibbles. Its 32 bytes of upper bits
/// contain two bits for each group.
fn q6_k_values(block: &[u8; 210]) -> [u8; 256] {
    let mut out = [0; 256];
    let (nibbles, high) = (block[..128].as_chunks::<32>().0, block[128..192].as_chunks::<32>().0);
    for (group, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (half, group_of_half) = (group / 4, group % 4);
        let nibbles = &nibbles[2 * half + group_of_half % 2];
        let (shift, high_shift) = (4 * (group_of_half / 2), 2 * group_of_half);
        for (i, o) in values.iter_mut().enumerate() {
            *o = (nibbles[i] >> shift) & 15 | (high[half][i] >> high_shift & 3) << 4;
        }
    }
    out
}

/// Reads a row of blocks that the kernels use without conversion: see [`StoredType::block_bits`].
///
/// # Panics
///
/// Panics for other types, and if `bytes` are not the blocks of the row.
pub(crate) fn read_block_row(stored_type: StoredType, bytes: &[u8], row: &mut BlockRow) {
    match stored_type {
        StoredType::Q4_K => read_blocks(bytes, row, q4_k_values, with_minima),
        StoredType::Q5_K => read_blocks(bytes, row, q5_k_values, with_minima),
        StoredType::Q6_K => read_blocks(bytes, row, q6_k_values, |block, i, row| {
            row.d[i] = scale(block, 208);
            let scales = &mut row.scales.as_chunks_mut::<16>().0[i];
            scales.iter_mut().zip(&block[192..]).for_each(|(to, s)| *to = s.cast_signed());
        }),
        other => unreachable!("{other:?} has no such blocks"),
    }
}

/// Reads blocks into a row: the integers with `values`, and the scales with `scales`.
fn read_blocks<const B: usize>(
    bytes: &[u8],
    row: &mut BlockRow,
    values: impl Fn(&[u8; B]) -> [u8; 256],
    scales: impl Fn(&[u8; B], usize, &mut BlockRow),
) {
    let blocks = bytes.as_chunks::<B>().0;
    assert_eq!(row.values.len(), blocks.len() * MAX_BLOCK, "a block for every 256 values");
    for (i, block) in blocks.iter().enumerate() {
        row.values.as_chunks_mut().0[i] = values(block);
        scales(block, i, row);
    }
}

/// Reads the scales and the minima of block `i` of a row.
fn with_minima<const B: usize>(block: &[u8; B], i: usize, row: &mut BlockRow) {
    (row.d[i], row.m[i]) = (scale(block, 0), scale(block, 2));
    for (group, (s, n)) in scales_and_minima(block).into_iter().enumerate() {
        row.scales[8 * i + group] = s.cast_signed();
        row.minima[8 * i + group] = n;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn fixture() -> Value {
        const BLOCKS: &str =
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/blocks.json"));
        serde_json::from_str(BLOCKS).unwrap()
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = hex.as_bytes().as_chunks::<2>().0;
        let digit = |d: u8| char::from(d).to_digit(16).unwrap() as u8;
        digits.iter().map(|&[high, low]| digit(high) << 4 | digit(low)).collect()
    }

    #[test]
    fn dequantizes_every_type_like_the_gguf_package_bit_for_bit() {
        let fixture = fixture();
        let types = fixture["types"].as_object().unwrap();
        assert_eq!(types.len(), 8);
        for (name, case) in types {
            let stored = StoredType::of_gguf(case["id"].as_u64().unwrap() as u32).unwrap();
            assert_eq!(format!("{stored:?}"), *name);
            assert!(GGUF_TYPES.contains(name));
            assert_eq!(case["values_per_block"], stored.values_per_block());
            assert_eq!(case["bytes_per_block"], stored.bytes_per_block());
            let expected: Vec<f32> = serde_json::from_value(case["values"].clone()).unwrap();
            let bytes = bytes(case["bytes"].as_str().unwrap());
            let mut values = vec![0.0; expected.len()];
            stored.dequantize(&bytes, &mut values);
            for (i, (got, expected)) in values.iter().zip(&expected).enumerate() {
                // `==` accepts zeros of either sign.
                assert!(got == expected, "{name}, value {i}: {got:e}, expected {expected:e}");
            }
        }
    }

    #[test]
    fn rejects_unsupported_gguf_types() {
        for id in (0..64).chain([u32::MAX]) {
            let read = [0, 1, 6, 8, 12, 13, 14, 30].contains(&id);
            assert_eq!(StoredType::of_gguf(id).is_some(), read, "{id}");
        }
    }
}
