//! The kernels that compare a query with stored vectors, for every kernel set, with plain loops in f64 and in integers.
//!
//! Rows begin one element into their allocation, so a kernel that relies on alignment fails.
#![allow(clippy::unwrap_used)]

use half::f16;
use qwen3_embed_kernels::cpu::Kernels;
use qwen3_embed_kernels::cpu::search::{LARGEST_QUERY, dots_f16, dots_f32, dots_int8, hamming};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// Numbers of values in a row: parts of a register, whole registers, whole blocks of registers, and more.
const SIZES: [usize; 13] = [1, 3, 8, 15, 16, 33, 63, 64, 100, 127, 128, 256, 1027];

const N_ROWS: usize = 5;

/// The largest relative error of a sum of `n` products in f32, as in `cpu.rs`.
fn gamma(n: usize) -> f64 {
    let nu = n as f64 * f64::from(f32::EPSILON) / 2.0;
    nu / (1.0 - nu)
}

/// Compares `[query · row, row · row]` with sums in f64.
fn check_dots(query: &[f32], rows: &[f32], out: &[[f32; 2]], what: &str) {
    let n = query.len();
    for (row, &got) in rows.chunks_exact(n).zip(out) {
        let products = |a: &[f32]| -> Vec<f64> {
            a.iter().zip(row).map(|(&a, &b)| f64::from(a) * f64::from(b)).collect()
        };
        for (got, products) in got.into_iter().zip([products(query), products(row)]) {
            let expected: f64 = products.iter().sum();
            let bound = gamma(n) * products.iter().map(|product| product.abs()).sum::<f64>();
            let error = (f64::from(got) - expected).abs();
            assert!(error <= bound, "{what}, {n} values: {got}, expected {expected}");
        }
    }
}

#[test]
fn dot_products_and_squared_norms_are_those_of_f64() {
    let mut rng = SmallRng::seed_from_u64(1);
    for n in SIZES {
        let query: Vec<f32> = (0..n).map(|_| rng.random_range(-2.0..2.0)).collect();
        let rows: Vec<f32> = (0..=N_ROWS * n).map(|_| rng.random_range(-2.0..2.0)).collect();
        let halves: Vec<f16> = rows.iter().map(|&value| f16::from_f32(value)).collect();
        let widened: Vec<f32> = halves.iter().map(|value| value.to_f32()).collect();
        for kernels in Kernels::all() {
            let mut out = [[f32::NAN; 2]; N_ROWS];
            dots_f32(kernels, &query, &rows[1..], &mut out);
            check_dots(&query, &rows[1..], &out, kernels.name);
            out.fill([f32::NAN; 2]);
            dots_f16(kernels, &query, &halves[1..], &mut out);
            check_dots(&query, &widened[1..], &out, kernels.name);
        }
    }
}

#[test]
fn every_finite_f16_value_is_widened_exactly() {
    let values: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|v| v.is_finite()).collect();
    for kernels in Kernels::all() {
        let n = 16;
        for (index, row) in values.chunks(n).enumerate() {
            // The query selects one value.
            let mut query = vec![0.0; row.len()];
            query[index % row.len()] = 1.0;
            let mut out = [[f32::NAN; 2]];
            dots_f16(kernels, &query, row, &mut out);
            assert_eq!(out[0][0], row[index % row.len()].to_f32(), "{}", kernels.name);
        }
    }
}

#[test]
fn dot_products_of_integers_are_exact_for_the_largest_values() {
    let mut rng = SmallRng::seed_from_u64(2);
    for n in SIZES {
        let largest = i16::try_from(LARGEST_QUERY / n as i32).unwrap_or(i16::MAX);
        let random: Vec<i16> = (0..n).map(|_| rng.random_range(-largest..=largest)).collect();
        for query in [random, vec![largest; n], vec![-largest; n]] {
            let mut rows: Vec<i8> =
                (0..=N_ROWS * n).map(|_| rng.random_range(i8::MIN..=i8::MAX)).collect();
            rows[1..=n].fill(i8::MIN);
            rows[n + 1..=2 * n].fill(i8::MAX);
            let expected: Vec<i64> = rows[1..]
                .chunks_exact(n)
                .map(|row| row.iter().zip(&query).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum())
                .collect();
            for kernels in Kernels::all() {
                let mut out = [i32::MIN; N_ROWS];
                dots_int8(kernels, &query, &rows[1..], &mut out);
                assert_eq!(out.map(i64::from).as_slice(), expected, "{}, {n}", kernels.name);
            }
        }
    }
}

#[test]
fn hamming_distance_counts_every_bit_once() {
    let mut rng = SmallRng::seed_from_u64(3);
    for n in SIZES {
        let query: Vec<u8> = (0..n).map(|_| rng.random_range(0..=u8::MAX)).collect();
        let mut rows: Vec<u8> = (0..=N_ROWS * n).map(|_| rng.random_range(0..=u8::MAX)).collect();
        // One row is equal to the query, and one is different in every bit.
        for (row, byte) in (1..).zip(&query) {
            (rows[row], rows[row + n]) = (*byte, !byte);
        }
        let distance = |row: &[u8]| -> u32 {
            let bits = |bytes: &[u8]| -> Vec<bool> {
                bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)).collect()
            };
            bits(row).iter().zip(bits(&query)).map(|(a, b)| u32::from(*a != b)).sum()
        };
        let expected: Vec<u32> = rows[1..].chunks_exact(n).map(distance).collect();
        assert_eq!(expected[..2], [0, 8 * n as u32]);
        for kernels in Kernels::all() {
            let mut out = [u32::MAX; N_ROWS];
            hamming(kernels, &query, &rows[1..], &mut out);
            assert_eq!(out.as_slice(), expected, "{}, {n}", kernels.name);
        }
    }
}
