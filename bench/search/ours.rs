//! The searches of this project, for `compare.py`, which starts this program and measures other libraries in turns with
//! it. The README beside this file describes the measurement.
//!
//! Each line on the standard input runs all queries once. The output is a line of JSON with the seconds of the run and
//! the indices of the hits.

use std::io::{self, Write};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Parser;
use qwen3_embed::{
    BinaryEmbeddings, Embeddings, F16Embeddings, Hit, Int8Embeddings, Int8Scales, f16,
};

/// Runs searches when `compare.py` asks for them
#[derive(Parser)]
struct Args {
    /// Type of the vectors: `f32`, `f16`, `int8` or `bits`
    kind: String,
    /// Number of vectors
    n_vectors: usize,
    /// Number of dimensions
    dimensions: usize,
    /// Number of queries
    n_queries: usize,
    /// Number of hits of each query
    k: usize,
}

fn main() -> Result<()> {
    let Args { kind, n_vectors, dimensions, n_queries, k } = Args::parse();
    let n = n_vectors * dimensions;
    let queries = |value: fn(u64) -> f32| -> Vec<Vec<f32>> {
        let values: Vec<f32> = (0..n_queries * dimensions).map(|at| value(random(2, at))).collect();
        values.chunks_exact(dimensions).map(<[f32]>::to_vec).collect()
    };
    match kind.as_str() {
        "f32" => {
            let vectors =
                Embeddings::new((0..n).map(|at| float(random(1, at))).collect(), dimensions)?;
            serve(&queries(float), |query| vectors.top_k(query, k))
        }
        "f16" => {
            let values = (0..n).map(|at| f16::from_f32(float(random(1, at)))).collect();
            let vectors = F16Embeddings::new(values, dimensions)?;
            serve(&queries(|bits| f16::from_f32(float(bits)).to_f32()), |query| {
                vectors.top_k(query, k)
            })
        }
        "int8" => {
            let values = (0..n).map(|at| random(1, at) as i8).collect();
            let scales = Int8Scales::PerDimension(vec![1.0; dimensions]);
            let vectors = Int8Embeddings::new(values, dimensions, scales)?;
            serve(&queries(|bits| f32::from(bits as i8)), |query| vectors.top_k(query, k))
        }
        "bits" => {
            let bytes = (0..n / 8).map(|at| random(1, at) as u8).collect();
            let vectors = BinaryEmbeddings::new(bytes, dimensions)?;
            serve(&queries(|bits| if bits & 1 == 1 { 1.0 } else { -1.0 }), |query| {
                vectors.top_k(query, k)
            })
        }
        kind => bail!("expected `f32`, `f16`, `int8` or `bits`, got `{kind}`"),
    }
}

/// Runs the queries for each line of the standard input.
fn serve(
    queries: &[Vec<f32>],
    search: impl Fn(&[f32]) -> qwen3_embed::Result<Vec<Hit>>,
) -> Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "ready")?;
    output.flush()?;
    for line in io::stdin().lines() {
        line?;
        let start = Instant::now();
        let hits: Vec<Vec<Hit>> =
            queries.iter().map(|query| search(query)).collect::<Result<_, _>>()?;
        let seconds = start.elapsed().as_secs_f64();
        let indices: Vec<Vec<usize>> =
            hits.iter().map(|hits| hits.iter().map(|hit| hit.index).collect()).collect();
        writeln!(output, "{}", serde_json::json!({ "seconds": seconds, "hits": indices }))?;
        output.flush()?;
    }
    Ok(())
}

/// The pseudo-random bits at a position of the sequence `seed`, which `compare.py` computes in the same way.
fn random(seed: u64, at: usize) -> u64 {
    let x = (at as u64 + (seed << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (x ^ x >> 32) >> 24
}

/// A value from −1 to 1, from the lower 24 of some random bits.
fn float(bits: u64) -> f32 {
    (bits & 0xff_ffff) as f32 / 8_388_608.0 - 1.0
}
