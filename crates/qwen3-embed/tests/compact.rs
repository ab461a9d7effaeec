//! Vectors in f16, 8-bit integers and bits, compared with plain loops in f64, and how much of an exact search they find.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use half::f16;
use qwen3_embed::{
    BinaryEmbeddings, Embedder, Embeddings, Error, F16Embeddings, Hit, Int8Embeddings, Int8Scales,
    Result, Source, dot_int8, hamming,
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// Numbers of dimensions: less than a byte of bits, less than a register, and several registers with a rest.
const DIMENSIONS: [usize; 6] = [1, 5, 8, 33, 256, 1027];

/// Vectors whose dimensions have different ranges, as those of a model.
fn random(rng: &mut SmallRng, n: usize, dimensions: usize) -> Embeddings {
    let range = |dimension: usize| 0.01 + (dimension % 7) as f32;
    let value = |at: usize| rng.random_range(-1.0..1.0) * range(at % dimensions);
    Embeddings::new((0..n * dimensions).map(value).collect(), dimensions).unwrap()
}

fn cosine_f64(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

/// Asserts that hits are all vectors, with the expected scores, in the order of their scores.
fn check_hits(hits: &[Hit], expected: &[f64], tolerance: f64, what: &str) {
    let mut indices: Vec<usize> = hits.iter().map(|hit| hit.index).collect();
    indices.sort_unstable();
    assert_eq!(indices, (0..expected.len()).collect::<Vec<_>>(), "{what}");
    for hit in hits {
        let error = (f64::from(hit.score) - expected[hit.index]).abs();
        assert!(error <= tolerance, "{what}: {hit:?}, expected {}", expected[hit.index]);
    }
    let in_order = |pair: &[Hit]| {
        pair[0].score > pair[1].score
            || (pair[0].score == pair[1].score && pair[0].index < pair[1].index)
    };
    assert!(hits.windows(2).all(in_order), "{what}: {hits:?}");
}

#[test]
fn scores_are_the_cosines_of_the_decoded_vectors() {
    let mut rng = SmallRng::seed_from_u64(1);
    for dimensions in DIMENSIONS {
        let documents = random(&mut rng, 70, dimensions);
        let query = random(&mut rng, 1, dimensions);
        let query = query.row(0);
        let cosines = |decoded: &Embeddings| -> Vec<f64> {
            decoded.iter().map(|row| cosine_f64(query, row)).collect()
        };
        // The error of a sum of products in f32, as in the tests of the kernels.
        let tolerance = 4.0 * (dimensions + 8) as f64 * f64::from(f32::EPSILON);
        let what = |name: &str| format!("{name}, {dimensions} dimensions");
        let hits = documents.top_k(query, usize::MAX).unwrap();
        check_hits(&hits, &cosines(&documents), tolerance, &what("f32"));

        let halves = documents.to_f16();
        let hits = halves.top_k(query, usize::MAX).unwrap();
        check_hits(&hits, &cosines(&halves.to_f32()), tolerance, &what("f16"));

        for int8 in [
            documents.to_int8(&Int8Scales::calibrate(&documents)).unwrap(),
            documents.to_int8_per_vector(),
        ] {
            let hits = int8.top_k(query, usize::MAX).unwrap();
            check_hits(&hits, &cosines(&int8.to_f32()), 1e-4, &what("int8"));
        }

        let bits = documents.to_binary();
        let hits = bits.top_k(query, usize::MAX).unwrap();
        let signs = Embeddings::new(query.to_vec(), dimensions).unwrap().to_binary().to_f32();
        let expected: Vec<f64> =
            bits.to_f32().iter().map(|row| cosine_f64(signs.row(0), row)).collect();
        check_hits(&hits, &expected, 1e-6, &what("bits"));
    }
}

#[test]
fn scores_of_unusual_queries_and_vectors_are_finite_and_right() {
    // Very long, very short, zero and unit vectors.
    let rows = [3e38, 1e-38, 0.0, 1.0].map(|scale| [scale, -scale, scale / 2.0]);
    let documents = Embeddings::new(rows.concat(), 3).unwrap();
    for query in [[1e30f32, 1e20, 0.0], [1e-30, 1e-38, 0.0], [0.0; 3], [-1.0, 1.0, 0.5]] {
        let expected: Vec<f64> = documents.iter().map(|row| cosine_f64(&query, row)).collect();
        check_hits(&documents.top_k(&query, 9).unwrap(), &expected, 1e-6, "f32");
        let int8 = documents.to_int8_per_vector();
        check_hits(&int8.top_k(&query, 9).unwrap(), &expected, 0.01, "int8");
        for compact in [documents.to_f16().to_f32(), int8.to_f32()] {
            assert!(compact.as_slice().iter().all(|value| value.is_finite()));
        }
    }
}

#[test]
fn values_are_rounded_to_the_nearest() {
    let mut rng = SmallRng::seed_from_u64(2);
    let documents = random(&mut rng, 20, 33);
    let halves = documents.to_f16();
    for (&value, half) in documents.as_slice().iter().zip(halves.as_slice()) {
        assert_eq!(*half, f16::from_f32(value));
    }
    for scales in [Int8Scales::calibrate(&documents), Int8Scales::per_vector(&documents)] {
        let int8 = documents.to_int8(&scales).unwrap();
        assert_eq!(int8.as_slice().iter().map(|value| value.unsigned_abs()).max(), Some(127));
        let decoded = int8.to_f32();
        for (at, (value, decoded)) in
            documents.as_slice().iter().zip(decoded.as_slice()).enumerate()
        {
            let scale = match &scales {
                Int8Scales::PerDimension(scales) => scales[at % 33],
                Int8Scales::PerVector(scales) => scales[at / 33],
                _ => unreachable!(),
            };
            assert!((value - decoded).abs() <= scale * 0.50001, "{value} became {decoded}");
        }
    }
    // Values beyond the range of a sample.
    let sample = Embeddings::new(vec![1.27, 0.0], 2).unwrap();
    let beyond = Embeddings::new(vec![5.0, 1.0, -5.0, -1.0, 0.014, 0.0], 2).unwrap();
    let int8 = beyond.to_int8(&Int8Scales::calibrate(&sample)).unwrap();
    assert_eq!(int8.as_slice(), [127, 0, -127, 0, 1, 0]);
    let huge = Embeddings::new(vec![1e6, -1e6], 2).unwrap().to_f16();
    assert_eq!(huge.as_slice(), [f16::MAX, f16::MIN]);
}

#[test]
fn bits_are_packed_like_packbits_of_numpy() {
    // numpy.packbits([1, 0, 1, 1, 0, 0, 0, 1, 1, 0]) is [177, 128].
    let values = vec![0.5, -0.5, 1e-30, 2.0, 0.0, -0.0, -1.0, 3.0, 1.0, -1.0];
    let bits = Embeddings::new(values, 10).unwrap().to_binary();
    assert_eq!((bits.as_slice(), bits.len(), bits.dimensions()), (&[177, 128][..], 1, 10));
    // The smallest positive value of a query is a 1, too.
    let hits = bits.top_k(&[1e30, -1.0, 1e-30, 1.0, 0.0, 0.0, -1.0, 1.0, 1.0, 0.0], 1).unwrap();
    assert_eq!(hits, [Hit { index: 0, score: 1.0 }]);
}

#[test]
fn stored_values_make_the_same_vectors() {
    let mut rng = SmallRng::seed_from_u64(3);
    let documents = random(&mut rng, 9, 11);
    let halves = documents.to_f16();
    assert_eq!(F16Embeddings::new(halves.clone().into_vec(), 11).unwrap(), halves);
    let int8 = documents.to_int8(&Int8Scales::calibrate(&documents)).unwrap();
    let again = Int8Embeddings::new(int8.clone().into_vec(), 11, int8.scales().clone());
    assert_eq!(again.unwrap(), int8);
    let bits = documents.to_binary();
    assert_eq!(BinaryEmbeddings::new(bits.clone().into_vec(), 11).unwrap(), bits);
    for index in 0..9 {
        assert_eq!(halves.row(index), &halves.as_slice()[11 * index..][..11]);
        assert_eq!(int8.row(index), &int8.as_slice()[11 * index..][..11]);
        assert_eq!(bits.row(index), &bits.as_slice()[2 * index..][..2]);
    }
    let none = Embeddings::new(Vec::new(), 4).unwrap();
    assert!(none.to_f16().is_empty() && none.to_int8_per_vector().is_empty());
    assert!(none.to_binary().is_empty());
    assert_eq!(none.to_binary().top_k(&[1.0; 4], 3).unwrap(), []);
}

#[test]
fn rejects_stored_values_that_are_no_vectors() {
    let halves = |values: [f16; 2], dimensions| F16Embeddings::new(values.to_vec(), dimensions);
    let (one, infinite) = (f16::ONE, f16::INFINITY);
    assert!(matches!(halves([one; 2], 3), Err(Error::NotWholeRows { n_values: 2, dimensions: 3 })));
    assert!(matches!(halves([one; 2], 0), Err(Error::NotWholeRows { .. })));
    let error = halves([one, infinite], 1).unwrap_err();
    assert!(matches!(error, Error::NotFinite { row: 1, dimension: 0, .. }), "{error}");

    let int8 = |scales| Int8Embeddings::new(vec![1, 2, 3, 4, 5, 6], 2, scales);
    let per_dimension = |scales: &[f32]| int8(Int8Scales::PerDimension(scales.to_vec()));
    let error = per_dimension(&[1.0; 3]).unwrap_err();
    assert!(matches!(error, Error::Int8ScaleCount { got: 3, expected: 2 }), "{error}");
    let error = int8(Int8Scales::PerVector(vec![1.0; 2])).unwrap_err();
    assert!(matches!(error, Error::Int8ScaleCount { got: 2, expected: 3 }), "{error}");
    for scale in [-1.0, f32::NAN, f32::INFINITY] {
        let error = per_dimension(&[1.0, scale]).unwrap_err();
        assert!(matches!(error, Error::Int8Scale { index: 1, .. }), "{error}");
    }
    let whole = Int8Embeddings::new(vec![1; 3], 2, Int8Scales::PerVector(vec![1.0]));
    assert!(matches!(whole, Err(Error::NotWholeRows { .. })));

    let bits = |bytes: &[u8], dimensions| BinaryEmbeddings::new(bytes.to_vec(), dimensions);
    assert!(matches!(bits(&[0; 3], 9), Err(Error::NotWholeBitRows { n_bytes: 3, dimensions: 9 })));
    assert!(matches!(bits(&[], 0), Err(Error::NotWholeBitRows { .. })));
    let error = bits(&[0xff, 0x80, 0xff, 0xc0], 9).unwrap_err();
    assert!(matches!(error, Error::PaddingBits { row: 1, dimensions: 9 }), "{error}");
}

#[test]
fn rejects_queries_with_other_dimensions_or_values_that_are_not_finite() {
    let documents = Embeddings::new(vec![1.0, 2.0, 3.0, 4.0], 2).unwrap();
    let (halves, int8) = (documents.to_f16(), documents.to_int8_per_vector());
    let bits = documents.to_binary();
    type Search<'a> = &'a dyn Fn(&[f32]) -> Result<Vec<Hit>>;
    let searches: [Search<'_>; 5] = [
        &|query| documents.top_k(query, 1),
        &|query| documents.rescore(query, &[], 1),
        &|query| halves.top_k(query, 1),
        &|query| int8.top_k(query, 1),
        &|query| bits.top_k(query, 1),
    ];
    for search in searches {
        let error = search(&[1.0]).unwrap_err();
        assert!(matches!(error, Error::DimensionMismatch { left: 2, right: 1 }), "{error}");
        let error = search(&[1.0, f32::NAN]).unwrap_err();
        assert!(matches!(error, Error::NotFinite { row: 0, dimension: 1, .. }), "{error}");
    }
}

#[test]
fn free_functions_are_exact_sums_of_their_definitions() {
    let mut rng = SmallRng::seed_from_u64(4);
    for n in [0, 1, 7, 64, 100, 1024, 70_000] {
        let (a, b): (Vec<i8>, Vec<i8>) =
            (0..n).map(|_| (rng.random_range(-128..=127), rng.random_range(-128..=127))).unzip();
        let expected: i64 = a.iter().zip(&b).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum();
        assert_eq!(i64::from(dot_int8(&a, &b).unwrap()), expected, "{n}");
        let bytes = |values: &[i8]| values.iter().map(|&v| v as u8).collect::<Vec<_>>();
        let (a, b) = (bytes(&a), bytes(&b));
        let expected: u32 = a.iter().zip(&b).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(hamming(&a, &b).unwrap(), expected, "{n}");
    }
    let many = vec![-128; 140_000];
    assert_eq!(dot_int8(&many, &many).unwrap(), i32::MAX);
    let error = dot_int8(&[1], &[1, 2]).unwrap_err();
    assert!(matches!(error, Error::DimensionMismatch { left: 1, right: 2 }), "{error}");
    let error = hamming(&[1], &[1, 2]).unwrap_err();
    assert!(matches!(error, Error::DimensionMismatch { left: 8, right: 16 }), "{error}");
}

/// The English texts of the held-out meanings, and their translations in the other languages.
fn held_out() -> (Vec<String>, Vec<String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../training/held_out/meanings.tsv");
    let text = fs::read_to_string(path).unwrap();
    let (mut queries, mut documents) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let cells: Vec<&str> = line.split('\t').collect();
        queries.push(cells[2].to_owned());
        documents.extend([cells[1], cells[3], cells[4]].map(str::to_owned));
    }
    (queries, documents)
}

/// Prints and returns the share of the ten best documents that a search finds.
fn recall_at_10(
    name: &str,
    queries: &Embeddings,
    exact: &Embeddings,
    search: impl Fn(&[f32]) -> Vec<Hit>,
) -> f64 {
    let mut n_found = 0;
    for query in queries {
        let expected = exact.top_k(query, 10).unwrap();
        let found = search(query);
        assert_eq!(found.len(), 10);
        n_found += expected
            .iter()
            .filter(|expected| found.iter().any(|hit| hit.index == expected.index))
            .count();
    }
    let recall = n_found as f64 / (10 * queries.len()) as f64;
    eprintln!("{name:<40} recall@10 {recall:.4}");
    recall
}

/// The bundled model's vectors of the held-out texts. Run the test with `--nocapture` for the figures.
#[test]
fn compact_vectors_find_the_best_documents_of_an_exact_search() {
    let embedder = Embedder::builder(Source::demo()).build().unwrap();
    let (queries, documents) = held_out();
    let queries = embedder.embed_documents(&queries).unwrap();
    let documents = embedder.embed_documents(&documents).unwrap();
    eprintln!(
        "{} queries, {} documents, {} dimensions",
        queries.len(),
        documents.len(),
        documents.dimensions()
    );
    let recall = |name: &str, search: &dyn Fn(&[f32]) -> Vec<Hit>| {
        recall_at_10(name, &queries, &documents, search)
    };
    let halves = documents.to_f16();
    assert!(recall("f16", &|query| halves.top_k(query, 10).unwrap()) >= 0.99);
    for (name, int8) in [
        (
            "int8, a scale per dimension",
            documents.to_int8(&Int8Scales::calibrate(&documents)).unwrap(),
        ),
        ("int8, a scale per vector", documents.to_int8_per_vector()),
    ] {
        recall(name, &|query| int8.top_k(query, 10).unwrap());
        let rescored = recall(&format!("{name}, 40 rescored"), &|query| {
            documents.rescore(query, &int8.top_k(query, 40).unwrap(), 10).unwrap()
        });
        assert!(rescored >= 0.99, "{rescored}");
    }
    let bits = documents.to_binary();
    recall("bits", &|query| bits.top_k(query, 10).unwrap());
    // With 256 dimensions, bits need more candidates than integers do.
    for (n, least) in [(40, 0.8), (160, 0.95)] {
        let rescored = recall(&format!("bits, {n} rescored"), &|query| {
            documents.rescore(query, &bits.top_k(query, n).unwrap(), 10).unwrap()
        });
        assert!(rescored >= least, "{rescored}");
    }
}
