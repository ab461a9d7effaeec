//! Groups customer feedback in four languages by topic, without translation and without labels.
//!
//! ```text
//! cargo run --release --example cluster
//! cargo run --release --example cluster -- --plot topics.svg --model Qwen/Qwen3-Embedding-4B
//! ```
//!
//! ```console
//! cluster 1: 12 messages
//!   隣の部屋がうるさくて眠れませんでした。
//!   部屋が狭くて、ベッドが汚れていました。
//!   隔壁太吵了，一晚上没睡好。
//! ...
//! agreement with the known topics: 0.78 (adjusted Rand index, 1 is the most)
//! ```
//!
//! k-means of linfa minimizes Euclidean distances, which order unit vectors as their cosines do.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use linfa::prelude::{Fit, Predict, Transformer};
use linfa::{Dataset, DatasetBase};
use linfa_clustering::KMeans;
use linfa_reduction::Pca;
use ndarray::Array2;
use qwen3_embed_examples::{ModelArgs, adjusted_rand_index, rows};
use qwen3_embed_plot::{Point, scatter};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

const FEEDBACK: &str = include_str!("../../data/feedback.tsv");

/// The languages of the messages, each of which has a mark in the picture.
const LANGUAGES: [&str; 4] = ["zh", "en", "ja", "ko"];

/// Groups customer feedback in four languages by topic.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Number of groups
    #[arg(long, value_name = "N", default_value_t = 6)]
    clusters: usize,
    /// Picture of the groups in two dimensions: a file with the extension .svg or .png
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "an example prints")]
fn main() -> Result<()> {
    let args = Args::parse();
    let messages = rows::<3>(FEEDBACK);
    let texts: Vec<&str> = messages.iter().map(|&[.., text]| text).collect();
    let vectors = args.model.embedder()?.embed_documents(&texts)?;

    let values = vectors.as_slice().iter().map(|&value| f64::from(value)).collect();
    let records = Array2::from_shape_vec((vectors.len(), vectors.dimensions()), values)?;
    let data = DatasetBase::from(records);
    // Of 30 random starts, the best result counts. The seed makes the example repeatable.
    let rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let k_means = KMeans::params_with_rng(args.clusters, rng).n_runs(30).fit(&data)?;
    let clusters: Vec<usize> = k_means.predict(&data).to_vec();

    for cluster in 0..args.clusters {
        // The message nearest to a centroid says best what the cluster is about.
        let centroid: Vec<f32> =
            k_means.centroids().row(cluster).iter().map(|&value| value as f32).collect();
        let hits = vectors.top_k(&centroid, vectors.len())?;
        let members = hits.iter().filter(|hit| clusters[hit.index] == cluster);
        let nearest: Vec<usize> = members.map(|hit| hit.index).collect();
        println!("cluster {}: {} messages", cluster + 1, nearest.len());
        nearest.iter().take(3).for_each(|&idx| println!("  {}", texts[idx]));
    }
    let topics: Vec<&str> = messages.iter().map(|&[topic, ..]| topic).collect();
    let agreement = adjusted_rand_index(&clusters, &topics);
    println!(
        "\nagreement with the known topics: {agreement:.2} (adjusted Rand index, 1 is the most)"
    );

    if let Some(path) = args.plot {
        let plane = Pca::params(2).fit(&Dataset::from(data.records().clone()))?;
        let plane = plane.transform(data);
        let points = plane.records().rows().into_iter().zip(&messages).zip(&clusters);
        let points = points.map(|((row, &[_, language, _]), &cluster)| Point {
            x: row[0],
            y: row[1],
            series: cluster,
            mark: LANGUAGES.iter().position(|&name| name == language).unwrap_or(0),
        });
        let names: Vec<_> = (1..=args.clusters).map(|number| format!("cluster {number}")).collect();
        scatter(&points.collect::<Vec<_>>(), &names, &LANGUAGES)?.write(&path)?;
        println!("wrote {}", path.display());
    }
    Ok(())
}
