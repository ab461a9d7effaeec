//! Finds news items that report the same event, in whatever language: near duplicates in a stream.
//!
//! ```text
//! cargo run --release --example deduplicate
//! cargo run --release --example deduplicate -- --model Qwen/Qwen3-Embedding-4B
//! ```
//!
//! ```console
//! threshold  precision  recall    F1   (first 54 items)
//!      0.45       0.47     0.83  0.60
//!      0.50       0.59     0.83  0.69
//!      0.55       0.86     0.83  0.84
//!      0.60       0.89     0.70  0.78
//!      0.65       1.00     0.48  0.65
//!      0.70       1.00     0.22  0.36
//!      0.75       1.00     0.17  0.30
//!      0.80       1.00     0.04  0.08
//!      0.85       1.00     0.04  0.08
//!      0.90       1.00     0.00  0.00
//!
//! threshold 0.55 on the other 54 items
//!                 0.78     0.78  0.78
//!
//! 26 events have several reports. The surest ones:
//!
//!   芭蕾舞团首演获好评
//!   バレエ団の初演、好評
//! ```
//!
//! Two items are duplicates if their cosine similarity is above a threshold, and duplicates of duplicates belong to one
//! group. The right threshold depends on the model, so it is chosen on items whose events are known.

use std::collections::HashMap;

use anyhow::Result;
use clap::Parser;
use petgraph::unionfind::UnionFind;
use qwen3_embed::Similarities;
use qwen3_embed_examples::{ModelArgs, pairs, rows};

const NEWS: &str = include_str!("../../data/news.tsv");

/// Groups news items that report the same event.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Minimum cosine similarity of duplicates [default: the threshold with the largest F1 on the first half of the
    /// items]
    #[arg(long, value_name = "COSINE")]
    threshold: Option<f32>,
}

#[expect(clippy::print_stdout, reason = "an example prints")]
fn main() -> Result<()> {
    let args = Args::parse();
    let items = rows::<3>(NEWS);
    let events: Vec<&str> = items.iter().map(|&[event, ..]| event).collect();
    let texts: Vec<&str> = items.iter().map(|&[.., text]| text).collect();
    let vectors = args.model.embedder()?.embed_documents(&texts)?;
    let similarities = vectors.similarity(&vectors)?;

    // A labeled sample shows what each threshold costs: high thresholds miss duplicates, low ones join events.
    let half = items.len() / 2;
    println!("threshold  precision  recall    F1   (first {half} items)");
    let mut best = (0.0, 0.0);
    for step in 9..=18 {
        let threshold = step as f32 * 0.05;
        let score = Score::of(&groups(&similarities, half, threshold), &events[..half]);
        println!("     {threshold:.2}       {score}");
        if score.f1() > best.0 {
            best = (score.f1(), threshold);
        }
    }

    let threshold = args.threshold.unwrap_or(best.1);
    let found = groups(&similarities, items.len(), threshold);
    let score = Score::of(&found[half..], &events[half..]);
    println!("\nthreshold {threshold:.2} on the other {} items", items.len() - half);
    println!("                {score}\n");

    let mut by_group: HashMap<usize, Vec<usize>> = HashMap::new();
    for (idx, &group) in found.iter().enumerate() {
        by_group.entry(group).or_default().push(idx);
    }
    let mut duplicates: Vec<_> = by_group.into_values().filter(|group| group.len() > 1).collect();
    // The surest groups first: those whose least similar items are most similar.
    let least = |group: &Vec<usize>| {
        let pairs = group.iter().flat_map(|&i| group.iter().map(move |&j| (i, j)));
        pairs.map(|(i, j)| similarities.get(i, j)).fold(1.0, f32::min)
    };
    duplicates.sort_by(|a, b| least(b).total_cmp(&least(a)).then_with(|| a.cmp(b)));
    println!("{} events have several reports. The surest ones:", duplicates.len());
    for group in duplicates.iter().take(3) {
        println!();
        group.iter().for_each(|&idx| println!("  {}", texts[idx]));
    }
    Ok(())
}

/// The group of each of the first `n` items: items above the threshold are connected, and a group is what connections
/// reach.
///
/// All pairs are compared here. With millions of items, an index would give each item's neighbors.
fn groups(similarities: &Similarities, n: usize, threshold: f32) -> Vec<usize> {
    let mut groups = UnionFind::new(n);
    for i in 0..n {
        for j in (0..i).filter(|&j| similarities.get(i, j) >= threshold) {
            groups.union(i, j);
        }
    }
    groups.into_labeling()
}

/// How many pairs of duplicates were found, and how many of the found pairs are duplicates.
struct Score {
    precision: f64,
    recall: f64,
}

impl Score {
    fn of(found: &[usize], events: &[&str]) -> Self {
        let (found, truth) = (pairs(found), pairs(events));
        let right = found.intersection(&truth).count() as f64;
        let share = |n: usize| if n == 0 { 1.0 } else { right / n as f64 };
        Self { precision: share(found.len()), recall: share(truth.len()) }
    }

    /// The harmonic mean of precision and recall.
    fn f1(&self) -> f64 {
        let sum = self.precision + self.recall;
        if sum > 0.0 { 2.0 * self.precision * self.recall / sum } else { 0.0 }
    }
}

impl std::fmt::Display for Score {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2}     {:.2}  {:.2}", self.precision, self.recall, self.f1())
    }
}
