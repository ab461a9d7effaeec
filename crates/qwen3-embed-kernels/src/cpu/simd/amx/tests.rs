use half::bf16;

use super::{emulator, multiply_pairs, multiply_quads, release};
use crate::cpu::simd::{MOST_MATRIX_ROWS, MatrixBlock};
use crate::cpu::{
    AttentionScratch, Epilogue, Heads, Kernels, Layout, PackedWeight, QuantizeBuffer, Rows,
    RowsMut, attention,
};
use crate::{Queries, Ragged};

/// Columns of a panel.
const COLUMNS: usize = 32;

/// Numbers from 0 to 255 without a pattern.
fn noise(n: usize) -> impl Iterator<Item = u8> {
    (0..n as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8)
}

/// Values of both signs and of several magnitudes, so that products and sums are rounded in f32.
fn values(n: usize) -> Vec<bf16> {
    let value = |(i, byte)| bf16::from_f32((f32::from(byte) - 127.5) * [1e-3, 1.0, 30.0][i % 3]);
    noise(n).enumerate().map(value).collect()
}

/// A block of `n_steps` steps whose rows begin `stride` values apart. Nothing is prefetched.
fn block<L, R>(rows: &[L], stride: usize, panel: &[R], n_steps: usize) -> MatrixBlock<L, R> {
    let (rows, panel) = (rows.as_ptr(), panel.as_ptr());
    MatrixBlock { rows, stride, panel, n_steps, ahead: std::ptr::null(), ahead_step: 64 }
}

/// The sum of a row and a column in the order of additions that `MatrixOps::multiply_pairs` defines.
fn sum_of_pairs(row: &[bf16], panel: &[bf16], column: usize) -> f32 {
    let mut sum = 0f32;
    for (row, panel) in row.chunks_exact(32).zip(panel.chunks_exact(32 * COLUMNS)) {
        let mut chains = [0f32; 2];
        for (pair, columns) in row.chunks_exact(2).zip(panel.chunks_exact(2 * COLUMNS)) {
            for (i, chain) in chains.iter_mut().enumerate() {
                *chain = pair[i].to_f32().mul_add(columns[2 * column + i].to_f32(), *chain);
            }
        }
        sum += chains[0] + chains[1];
    }
    sum
}

#[test]
fn tiles_multiply_pairs_in_the_documented_order_bit_for_bit() {
    emulator::install();
    const STRIDE: usize = 3 * 32 + 6;
    let (rows, panel) = (values(MOST_MATRIX_ROWS * STRIDE), values(3 * 32 * COLUMNS));
    for n_rows in 1..=MOST_MATRIX_ROWS {
        for n_steps in 0..=3 {
            let mut got = [[f32::NAN; COLUMNS]; MOST_MATRIX_ROWS];
            let block = block(&rows, STRIDE, &panel, n_steps);
            // SAFETY: the rows and the panel have three steps, and the CPU has AMX or it is emulated.
            unsafe { multiply_pairs(&block, got.as_mut_ptr().cast(), n_rows) };
            for (row, got) in got.iter().enumerate() {
                if row >= n_rows {
                    assert!(got.iter().all(|got| got.is_nan()), "row {row} of {n_rows}");
                    continue;
                }
                let row = &rows[row * STRIDE..][..32 * n_steps];
                let expected = std::array::from_fn(|column| sum_of_pairs(row, &panel, column));
                assert_eq!(got.map(f32::to_bits), expected.map(f32::to_bits), "{n_rows} {n_steps}");
            }
        }
    }
    // SAFETY: as above.
    unsafe { release() };
}

#[test]
fn tiles_multiply_signed_with_unsigned_bytes() {
    emulator::install();
    const STRIDE: usize = 72;
    let rows: Vec<i8> = noise(MOST_MATRIX_ROWS * STRIDE).map(u8::cast_signed).collect();
    let panel: Vec<u8> = noise(64 * COLUMNS + 7).skip(7).collect();
    for n_rows in 1..=MOST_MATRIX_ROWS {
        let mut got = [[i32::MIN; COLUMNS]; MOST_MATRIX_ROWS];
        let block = block(&rows, STRIDE, &panel, 1);
        // SAFETY: the rows and the panel have a step, and the CPU has AMX or it is emulated.
        unsafe { multiply_quads(&block, got.as_mut_ptr().cast(), n_rows) };
        for (i, got) in got.iter().enumerate() {
            let product = |column: usize| -> i32 {
                let weight = |k: usize| i32::from(panel[k / 4 * 4 * COLUMNS + 4 * column + k % 4]);
                (0..64).map(|k| i32::from(rows[i * STRIDE + k]) * weight(k)).sum()
            };
            let expected =
                if i < n_rows { std::array::from_fn(product) } else { [i32::MIN; COLUMNS] };
            assert_eq!(*got, expected, "row {i} of {n_rows}");
        }
    }
    // SAFETY: as above.
    unsafe { release() };
}

/// The products with a weight, in the activations' type.
fn multiply(weight: &PackedWeight, x: Rows<'_>) -> Vec<u32> {
    let mut out = vec![f32::NAN; x.n_rows * weight.n_columns()];
    let mut buffer = QuantizeBuffer::default();
    let shape = [x.n_rows, weight.n_columns()];
    let x = weight.quantize(x, &mut buffer);
    let rows = &mut RowsMut::new(out.as_mut_slice(), shape, shape[1]);
    weight.multiply(x, None, rows, Epilogue::Store);
    out.iter().map(|value| value.to_bits()).collect()
}

fn set(name: &str) -> &'static Kernels {
    Kernels::all().find(|set| set.name == name).expect("the CPU has the set")
}

#[test]
fn products_with_amx_equal_those_of_the_emulated_set_bit_for_bit() {
    let Some(amx) = Kernels::with_amx_in_tests() else { return };
    let [emulated, vnni] = ["emulate-avx512-amx", "avx512-vnni"].map(set);
    for ([n_rows, n_in, n_out], layout) in [
        ([1, 1, 2], Layout::Plain),
        ([17, 31, 33], Layout::Plain),
        ([33, 32, 64], Layout::SwiGlu),
        ([70, 107, 130], Layout::Plain),
        ([200, 256, 100], Layout::SwiGlu),
    ] {
        let (x, weight) = (values(n_rows * n_in), values(n_out * n_in));
        let read_row =
            |o: usize, row: &mut [bf16]| row.copy_from_slice(&weight[o * n_in..][..n_in]);
        let bf16 = PackedWeight::pack_bf16(n_out, n_in, layout, read_row);
        let bytes = PackedWeight::pack_bytes(n_out, n_in, layout, false, |o, row| {
            row.iter_mut().zip(&weight[o * n_in..]).for_each(|(to, from)| *to = from.to_f32());
        });
        for (weight, expected) in [(&bf16, emulated), (&bytes, emulated), (&bytes, vnni)] {
            let x = || Rows::new(x.as_slice(), [n_rows, n_in], n_in);
            let got = multiply(&weight.repacked(amx), x());
            let what = format!("[{n_rows}, {n_in}, {n_out}], {layout:?}, {}", expected.name);
            assert_eq!(got, multiply(&weight.repacked(expected), x()), "{what}");
        }
    }
}

#[test]
fn attention_with_amx_is_that_of_avx512_bf16() {
    let Some(amx) = Kernels::with_amx_in_tests() else { return };
    let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 40 };
    let batch = Ragged::from_lengths([1, 37, 170]).unwrap();
    let qkv: Vec<f32> = noise(batch.n_rows() * heads.qkv_columns())
        .map(|byte| (f32::from(byte) - 127.5) / 64.0)
        .collect();
    let attend = |kernels: &Kernels| {
        let shape = [batch.n_rows(), heads.q_columns()];
        let mut out = vec![bf16::NAN; shape[0] * shape[1]];
        let rows = &mut RowsMut::new(out.as_mut_slice(), shape, shape[1]);
        let scratch = &mut AttentionScratch::default();
        attention(kernels, &qkv, &batch, Queries::All, heads, scratch, rows);
        out
    };
    let expected = attend(set("avx512-bf16"));
    for (got, expected) in attend(amx).iter().zip(expected) {
        // Values are at most 2, and both results are rounded to bf16.
        assert!((got.to_f32() - expected.to_f32()).abs() <= 2f32.powi(-7), "{got}, {expected}");
    }
}
