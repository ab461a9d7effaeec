//! What the examples share: the choice of the model, and the texts in `examples/data`.

mod guide;
pub mod sqlite;

use std::collections::HashSet;

use anyhow::Result;
use qwen3_embed::{Embedder, EmbedderBuilder, Source};

/// The flags that choose the model.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// Id on the hub, folder or GGUF file of a Qwen3-Embedding model, such as Qwen/Qwen3-Embedding-0.6B [default: the
    /// bundled demonstration model]
    #[arg(long, value_name = "PATH or ID")]
    pub model: Option<String>,
    /// Number of dimensions of the vectors [default: that of the model]
    #[arg(long, value_name = "N")]
    pub dimensions: Option<usize>,
}

impl ModelArgs {
    /// The builder of an embedder with these settings.
    pub fn builder(&self) -> EmbedderBuilder {
        let source = self.model.as_deref().map_or_else(Source::demo, Source::from);
        let builder = Embedder::builder(source);
        match self.dimensions {
            Some(dimensions) => builder.dimensions(dimensions),
            None => builder,
        }
    }

    /// An embedder with these settings.
    ///
    /// # Errors
    ///
    /// As [`EmbedderBuilder::build`].
    pub fn embedder(&self) -> Result<Embedder> {
        Ok(self.builder().build()?)
    }
}

/// The rows of a text with `N` columns that are separated by tabs.
///
/// # Panics
///
/// If a line has another number of columns.
pub fn rows<const N: usize>(text: &'static str) -> Vec<[&'static str; N]> {
    let columns = |line: &'static str| line.split('\t').collect::<Vec<_>>();
    let row = |line| columns(line).try_into().expect("a line of examples/data has all columns");
    text.lines().map(row).collect()
}

/// How well groups agree with the true groups: 1 for the same groups, about 0 for random ones.
///
/// `found` and `truth` have the group of each item.
///
/// # Source
///
/// Hubert and Arabie, *Comparing partitions* (1985): the adjusted Rand index.
pub fn adjusted_rand_index<A: Eq, B: Eq>(found: &[A], truth: &[B]) -> f64 {
    let (n, found, truth) = (found.len() as f64, pairs(found), pairs(truth));
    let both = found.intersection(&truth).count() as f64;
    let [in_found, in_truth] = [found.len(), truth.len()].map(|n| n as f64);
    let expected = in_found * in_truth / (n * (n - 1.0) / 2.0);
    (both - expected) / (f64::midpoint(in_found, in_truth) - expected)
}

/// Pairs of items that are in the same group, by their indices.
pub fn pairs<G: Eq>(groups: &[G]) -> HashSet<(usize, usize)> {
    let all = (0..groups.len()).flat_map(|i| (i + 1..groups.len()).map(move |j| (i, j)));
    all.filter(|&(i, j)| groups[i] == groups[j]).collect()
}
