//! Properties of vectors with random values, compared with plain loops in f64.
//!
//! The environment variable `PROPTEST_CASES` is the number of inputs of each test, 256 by default.
//!
//! Bounds use the standard model of rounding (Higham, *Accuracy and Stability of Numerical Algorithms*, section 2.2): a
//! result is rounded to within [`U`] times its magnitude, or to within [`TINY`] if it is subnormal. The error of a sum of
//! n products is at most γ(n) = n·U / (1 − n·U) times the sum of their magnitudes.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use arrow_array::{Array, FixedSizeBinaryArray, FixedSizeListArray, Int8Array};
use ndarray::{Array2, Axis, Slice};
use proptest::collection::vec;
use proptest::prelude::*;
use qwen3_embed::{
    BinaryEmbeddings, EmbedOptions, Embedder, Embeddings, F16Embeddings, Hit, Int8Embeddings,
    Int8Scales, Source,
};

/// Half the distance from 1 to the next f32.
const U: f64 = f32::EPSILON as f64 / 2.0;

/// Half the smallest f32.
const TINY: f64 = 7.006_492_321_624_085e-46;

fn gamma(n: usize) -> f64 {
    let nu = n as f64 * U;
    nu / (1.0 - nu)
}

/// The settings of the tests. Inputs that violate a property are printed and not stored: they become tests of their own.
fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

/// Finite values of any magnitude, and values that are often equal.
fn value() -> impl Strategy<Value = f32> {
    use proptest::num::f32::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    prop_oneof![
        6 => -1f32..1.0,
        2 => POSITIVE | NEGATIVE | NORMAL | SUBNORMAL | ZERO,
        2 => prop::sample::select(vec![0f32, -0.0, 1.0, -1.0, 0.5]),
    ]
}

/// Vectors of one size. Most have one magnitude, as those of a model, and some have values of any magnitude.
fn matrix(max_rows: usize, max_dimensions: usize) -> impl Strategy<Value = Embeddings> {
    (1..=max_dimensions, -30i32..30).prop_flat_map(move |(dimensions, exponent)| {
        let unit = vec(vec(-1f32..1.0, dimensions), 0..=max_rows)
            .prop_map(move |rows| rows.concat().iter().map(|v| v * 10f32.powi(exponent)).collect());
        let any = vec(vec(value(), dimensions), 0..=max_rows).prop_map(|rows| rows.concat());
        prop_oneof![unit, any].prop_map(move |values| Embeddings::new(values, dimensions).unwrap())
    })
}

/// Vectors, and a query of the same size.
fn matrix_and_query(
    max_rows: usize,
    max_dimensions: usize,
) -> impl Strategy<Value = (Embeddings, Vec<f32>)> {
    matrix(max_rows, max_dimensions).prop_flat_map(|rows| {
        let dimensions = rows.dimensions();
        (Just(rows), vec(value(), dimensions))
    })
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(values: &[f64]) -> f64 {
    dot(values, values).sqrt()
}

/// The cosine in f64. 0 if one of the vectors is a zero vector.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let norms = norm(a) * norm(b);
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

/// The largest change of a cosine if a vector becomes `changed`. The angle between two vectors `v` and `v + e` is at most
/// asin(‖e‖ / ‖v‖), and a cosine changes by at most the angle.
fn change_of_cosine(vector: &[f64], changed: &[f64]) -> f64 {
    let error: Vec<f64> = vector.iter().zip(changed).map(|(a, b)| a - b).collect();
    let relative = norm(&error) / norm(vector);
    if relative < 1.0 { relative.asin() } else { 2.0 }
}

/// The bound of the error of a cosine that is computed in f32 from n values: the dot product, the root of the squared
/// norm, and the roundings of the unit vector, of the root, and of the quotient. Products that underflow add
/// [`TINY`] each, while the length of the vector is at least 1e-15.
fn cosine_bound(n: usize) -> f64 {
    1.5 * gamma(n) + 4.0 * U + n as f64 * TINY / 1e-15
}

fn assert_bits(got: &[f32], expected: &[f32]) -> Result<(), TestCaseError> {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    prop_assert_eq!(bits(got), bits(expected));
    Ok(())
}

/// Asserts that `short` is the beginning of `full`, normalized in f64.
fn assert_cut(short: &[f32], full: &[f32]) -> Result<(), TestCaseError> {
    let cut = widened(&full[..short.len()]);
    let length = norm(&cut);
    for (&short, cut) in short.iter().zip(cut) {
        let expected = if length > 0.0 { cut / length } else { 0.0 };
        // The norm and the quotient are computed in f64, whose roundings are far smaller than U.
        let bound = expected.abs() * U * 1.001 + TINY;
        prop_assert!((f64::from(short) - expected).abs() <= bound, "{short}, expected {expected}");
    }
    Ok(())
}

/// The same vectors in every format.
struct Formats {
    full: Embeddings,
    halves: F16Embeddings,
    per_dimension: Int8Embeddings,
    per_vector: Int8Embeddings,
    bits: BinaryEmbeddings,
}

const FORMATS: [&str; 5] = ["f32", "f16", "int8 per dimension", "int8 per vector", "bits"];

impl Formats {
    fn of(full: Embeddings) -> Self {
        Self {
            halves: full.to_f16(),
            per_dimension: full.to_int8(&Int8Scales::calibrate(&full)).unwrap(),
            per_vector: full.to_int8_per_vector(),
            bits: full.to_binary(),
            full,
        }
    }

    /// One of the vectors.
    fn row(&self, index: usize) -> Self {
        let n = self.full.dimensions();
        let int8 = |all: &Int8Embeddings| {
            let scales = match all.scales() {
                Int8Scales::PerVector(scales) => Int8Scales::PerVector(vec![scales[index]]),
                scales => scales.clone(),
            };
            Int8Embeddings::new(all.row(index).to_vec(), n, scales).unwrap()
        };
        Self {
            full: Embeddings::new(self.full.row(index).to_vec(), n).unwrap(),
            halves: F16Embeddings::new(self.halves.row(index).to_vec(), n).unwrap(),
            per_dimension: int8(&self.per_dimension),
            per_vector: int8(&self.per_vector),
            bits: BinaryEmbeddings::new(self.bits.row(index).to_vec(), n).unwrap(),
        }
    }

    /// The hits of a search in each format.
    fn top_k(&self, query: &[f32], k: usize) -> [Vec<Hit>; 5] {
        [
            self.full.top_k(query, k).unwrap(),
            self.halves.top_k(query, k).unwrap(),
            self.per_dimension.top_k(query, k).unwrap(),
            self.per_vector.top_k(query, k).unwrap(),
            self.bits.top_k(query, k).unwrap(),
        ]
    }

    /// The score of each vector in each format.
    fn scores(&self, query: &[f32]) -> [Vec<f64>; 5] {
        self.top_k(query, usize::MAX).map(|mut hits| {
            hits.sort_by_key(|hit| hit.index);
            hits.iter().map(|hit| hit.score.into()).collect()
        })
    }
}

/// Thread pools with 1 to 4 threads.
static POOLS: LazyLock<[rayon::ThreadPool; 4]> = LazyLock::new(|| {
    [1, 2, 3, 4].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap())
});

/// The scales of the dimensions of a vector.
fn scales_of(int8: &Int8Embeddings, row: usize) -> Vec<f64> {
    match int8.scales() {
        Int8Scales::PerVector(scales) => vec![scales[row].into(); int8.dimensions()],
        Int8Scales::PerDimension(scales) => widened(scales),
        _ => unreachable!(),
    }
}

/// The integers of a vector times their scales.
fn decoded(int8: &Int8Embeddings, row: usize) -> Vec<f64> {
    let scales = scales_of(int8, row);
    int8.row(row).iter().zip(scales).map(|(&v, scale)| f64::from(v) * scale).collect()
}

/// The bound of the error of a score of integers. The query, times the scales, is rounded to multiples of the smallest
/// number with which no integer exceeds 16 bits and no sum of products with 8-bit integers exceeds 32 bits, even if
/// rounding doubles the integers.
fn int8_bound(int8: &Int8Embeddings, row: usize, query: &[f32]) -> f64 {
    let (vector, query) = (decoded(int8, row), widened(query));
    let scales = match int8.scales() {
        Int8Scales::PerDimension(scales) => widened(scales),
        _ => vec![1.0; query.len()],
    };
    let length = norm(
        &int8.row(row).iter().zip(&scales).map(|(&v, s)| f64::from(v) * s).collect::<Vec<_>>(),
    );
    if norm(&vector) == 0.0 || norm(&query) == 0.0 {
        return 0.0;
    }
    let products = query.iter().zip(&scales).map(|(q, scale)| (q * scale / norm(&query)).abs());
    let (largest, sum) = products.fold((0f64, 0f64), |(max, sum), p| (max.max(p), sum + p));
    let step = (largest / f64::from(i16::MAX)).max(sum / f64::from(i32::MAX / 256));
    let magnitudes: f64 = int8.row(row).iter().map(|&v| f64::from(v).abs()).sum();
    // The unit vector, its squared length and the score are rounded to f32, and everything else to f64.
    step / 2.0 * 1.001 * magnitudes / length + 4.0 * U
}

/// The bound of the error of a score of bits. The query is rounded to odd integers from −31 to 31.
fn bits_bound(query: &[f32]) -> f64 {
    let query = widened(query);
    let largest = query.iter().fold(0f64, |largest, v| largest.max(v.abs()));
    let relative = (query.len() as f64).sqrt() * largest / 31.0 / norm(&query) * 1.0001;
    if largest == 0.0 {
        return 0.0;
    }
    if relative < 1.0 { relative.asin() + 4.0 * U } else { 2.0 }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn truncated_vectors_are_cut_and_normalized_like_f64(full in matrix(3, 24)) {
        for dimensions in 1..=full.dimensions() {
            let short = full.truncate(dimensions).unwrap();
            prop_assert_eq!((short.len(), short.dimensions()), (full.len(), dimensions));
            for (short, full) in short.iter().zip(&full) {
                assert_cut(short, full)?;
            }
        }
    }

    #[test]
    fn searches_return_the_first_rows_of_a_sort_with_any_number_of_threads(
        (rows, query) in matrix_and_query(16, 12),
        n_repeats in prop::sample::select(vec![1usize, 1, 2, 40]),
        k in prop_oneof![0usize..40, Just(usize::MAX)],
        n_threads in 0usize..4,
    ) {
        // Repeated rows have equal scores.
        let (n_rows, n) = (rows.len() * n_repeats, rows.dimensions());
        let all = Formats::of(Embeddings::new(rows.as_slice().repeat(n_repeats), n).unwrap());
        let alone: Vec<[Vec<Hit>; 5]> =
            (0..rows.len()).map(|row| all.row(row).top_k(&query, 1)).collect();
        let got = POOLS[n_threads].install(|| all.top_k(&query, k));
        for ((format, name), got) in FORMATS.iter().enumerate().zip(got) {
            let mut expected: Vec<Hit> = (0..n_rows)
                .map(|index| Hit { index, score: alone[index % rows.len()][format][0].score })
                .collect();
            // 0 and −0 are equal.
            expected.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap());
            prop_assert_eq!(&got, &expected[..k.min(n_rows)], "{}", name);
        }
    }

    #[test]
    fn scores_and_similarities_are_within_the_bounds_of_rounding(
        (rows, query) in matrix_and_query(6, 40),
    ) {
        let all = Formats::of(rows);
        let [full, halves, per_dimension, per_vector, bits] = all.scores(&query);
        let wide = widened(&query);
        let bound = cosine_bound(query.len());
        let close = |got: f64, expected: f64, bound: f64| (got - expected).abs() <= bound;
        let queries = Embeddings::new(query.clone(), query.len()).unwrap();
        let similarities = queries.similarity(&all.full).unwrap();
        for row in 0..all.full.len() {
            let vector = widened(all.full.row(row));
            let expected = cosine(&wide, &vector);
            prop_assert!(close(full[row], expected, bound), "{} {expected}", full[row]);
            prop_assert_eq!(f64::from(similarities.get(0, row)), full[row]);
            // The sums are computed in f64, and the result is rounded once.
            let exact = f64::from(qwen3_embed::cosine(&query, all.full.row(row)).unwrap());
            prop_assert!(close(exact, expected, 1.001 * U), "{exact} {expected}");

            let half = widened(all.halves.to_f32().row(row));
            let got = halves[row];
            prop_assert!(close(got, cosine(&wide, &half), bound), "f16 {got} {half:?}");
            prop_assert!(close(got, expected, bound + change_of_cosine(&vector, &half)));

            for (int8, got) in
                [(&all.per_dimension, per_dimension[row]), (&all.per_vector, per_vector[row])]
            {
                let vector_int8 = decoded(int8, row);
                let bound = int8_bound(int8, row, &query);
                prop_assert!(close(got, cosine(&wide, &vector_int8), bound), "{got} {int8:?}");
                let change = change_of_cosine(&vector, &vector_int8);
                prop_assert!(close(got, expected, bound + change), "{got} {int8:?}");
            }

            let signs: Vec<f64> =
                vector.iter().map(|&v| if v > 0.0 { 1.0 } else { -1.0 }).collect();
            prop_assert_eq!(widened(all.bits.to_f32().row(row)), signs.clone());
            prop_assert!(close(bits[row], cosine(&wide, &signs), bits_bound(&query)));
        }
    }

    #[test]
    fn similarities_do_not_depend_on_the_number_of_threads(
        (left, right) in matrix(5, 10).prop_flat_map(|left| {
            let n = left.dimensions();
            (Just(left), vec(vec(value(), n), 0..20usize))
        }),
        n_repeats in prop::sample::select(vec![1usize, 1, 40]),
    ) {
        // Many rows are divided among threads.
        let right = Embeddings::new(right.concat().repeat(n_repeats), left.dimensions()).unwrap();
        let expected = POOLS[0].install(|| left.similarity(&right)).unwrap();
        for pool in &POOLS[1..] {
            prop_assert_eq!(&pool.install(|| left.similarity(&right)).unwrap(), &expected);
        }
        for i in 0..left.len() {
            for hit in right.top_k(left.row(i), 3).unwrap() {
                prop_assert_eq!(hit.score, expected.get(i, hit.index));
            }
        }
    }

    #[test]
    fn quantized_values_are_within_half_a_step(rows in matrix(6, 20)) {
        let halves = rows.to_f16().to_f32();
        for (&value, &half) in rows.as_slice().iter().zip(halves.as_slice()) {
            // f16 has 11 significant bits, and its smallest value is 2^−24.
            let value = f64::from(value).clamp(-65504.0, 65504.0);
            let bound = (value.abs() / 2048.0).max(2f64.powi(-25));
            prop_assert!((value - f64::from(half)).abs() <= bound, "{value} {half}");
        }
        let per_dimension = rows.to_int8(&Int8Scales::calibrate(&rows)).unwrap();
        for int8 in [per_dimension, rows.to_int8_per_vector()] {
            let floats = int8.to_f32();
            for row in 0..rows.len() {
                let pairs = widened(rows.row(row)).into_iter().zip(widened(floats.row(row)));
                for ((value, got), scale) in pairs.zip(scales_of(&int8, row)) {
                    // The scale, the quotient and the product are rounded. Each rounding changes a value by at most 127
                    // times the scale times U, or 127 times TINY.
                    let bound = scale * (0.5 + 4.0 * 127.0 * U) + 2.0 * 127.0 * TINY;
                    prop_assert!((value - got).abs() <= bound, "{value} {got} {scale}");
                }
            }
        }
        let bits = rows.to_binary();
        prop_assert_eq!(&bits.to_f32().to_binary(), &bits);
    }

    #[test]
    fn conversions_of_ndarray_keep_every_bit(
        values in vec(value(), 1..60),
        n_columns in 1usize..8,
        parts in prop::array::uniform2((0usize..9, 1isize..4, any::<bool>())),
        is_transposed in any::<bool>(),
    ) {
        let n_rows = values.len() / n_columns;
        let whole = values[..n_rows * n_columns].to_vec();
        let mut array = Array2::from_shape_vec((n_rows, n_columns), whole).unwrap();
        // A part of the array, in any order.
        for (axis, (start, step, is_reversed)) in [Axis(0), Axis(1)].into_iter().zip(parts) {
            let start = start.min(array.len_of(axis)) as isize;
            array.slice_axis_inplace(axis, Slice::new(start, None, step));
            if is_reversed {
                array.invert_axis(axis);
            }
        }
        if is_transposed {
            array = array.reversed_axes();
        }
        let (n_rows, n_columns) = array.dim();
        let expected: Vec<f32> =
            (0..n_rows * n_columns).map(|i| array[[i / n_columns, i % n_columns]]).collect();
        let embeddings = Embeddings::try_from(array);
        if n_columns == 0 {
            prop_assert!(embeddings.is_err());
            return Ok(());
        }
        let embeddings = embeddings.unwrap();
        prop_assert_eq!((embeddings.len(), embeddings.dimensions()), (n_rows, n_columns));
        assert_bits(embeddings.as_slice(), &expected)?;
        assert_bits(embeddings.view().as_slice().unwrap(), &expected)?;
        assert_bits(Array2::from(embeddings).as_slice().unwrap(), &expected)?;
    }

    #[test]
    fn conversions_of_arrow_keep_every_bit(
        rows in matrix(8, 20),
        (start, len) in (0usize..9, 0usize..9),
    ) {
        let n = rows.dimensions();
        let start = start.min(rows.len());
        let len = len.min(rows.len() - start);
        let part = start * n..(start + len) * n;
        let array = FixedSizeListArray::try_from(rows.clone()).unwrap();
        let back = Embeddings::try_from(&array.slice(start, len)).unwrap();
        assert_bits(back.as_slice(), &rows.as_slice()[part.clone()])?;
        let halves = rows.to_f16();
        let array = FixedSizeListArray::try_from(halves.clone()).unwrap();
        let back = F16Embeddings::try_from(&array.slice(start, len)).unwrap();
        prop_assert_eq!(back.as_slice(), &halves.as_slice()[part.clone()]);
        let int8 = rows.to_int8_per_vector();
        let array = FixedSizeListArray::try_from(int8.clone()).unwrap();
        let values = array.values().as_any().downcast_ref::<Int8Array>().unwrap();
        prop_assert_eq!(&values.values()[part.clone()], &int8.as_slice()[part]);
        let bits = rows.to_binary();
        let array = FixedSizeBinaryArray::try_from(bits.clone()).unwrap();
        prop_assert_eq!(array.len(), rows.len());
        for row in 0..rows.len() {
            prop_assert_eq!(array.value(row), bits.row(row));
        }
    }
}

#[test]
fn every_number_of_dimensions_is_the_beginning_of_the_full_vector() {
    let embedder = Embedder::builder(Source::demo()).build().unwrap();
    let texts = ["It rains.", "Property tests find the inputs that nobody thinks of."];
    let whole = EmbedOptions::new().normalize(false);
    let full = embedder.embed_with(texts, &whole).unwrap();
    assert_eq!(full.dimensions(), embedder.max_dimensions());
    for dimensions in 1..=full.dimensions() {
        let options = EmbedOptions::new().dimensions(dimensions);
        let short = embedder.embed_with(texts, &options).unwrap();
        assert_eq!(short.dimensions(), dimensions);
        for (short, full) in short.iter().zip(&full) {
            assert_cut(short, full).unwrap();
        }
        let options = whole.clone().dimensions(dimensions);
        for (short, full) in embedder.embed_with(texts, &options).unwrap().iter().zip(&full) {
            assert_eq!(short, &full[..dimensions]);
        }
    }
}
