//! All figures of a model.

use std::path::Path;

use anyhow::Result;
use qwen3_embed::{Embedder, Embeddings, Kernels, Precision};
use qwen3_embed_testing::vectors::mean;

use super::held_out::{HeldOut, Translations, WEATHER};
use super::measures::{Agreement, ByLanguage, Direction, agreement, retrieval};
use super::variants::{Scope, Variant};

/// The number of candidates in most bars.
pub(super) const CANDIDATES: usize = 200;

/// Dimensions to which vectors are cut, besides the full number.
const CUT_DIMENSIONS: [usize; 3] = [128, 64, 32];

/// All figures of a model.
pub(super) struct Evaluation {
    /// The number of dimensions of the model.
    pub(super) dimensions: usize,
    /// The number of held-out meanings.
    pub(super) n_meanings: usize,
    /// Retrieval of the meanings in f32, and of the pairs of other sources.
    pub(super) retrievals: Vec<Retrieval>,
    /// The example's sentences.
    pub(super) weather: Weather,
    /// The weight formats, f32 first. All meanings are candidates.
    pub(super) formats: Vec<Format>,
}

/// Retrieval in every direction, with vectors of some dimensions.
pub(super) struct Retrieval {
    /// The source of the texts: `meanings`, `tatoeba` or `hsk`.
    pub(super) source: &'static str,
    /// Whether the queries have the query prompt of the model. The candidates have none.
    pub(super) has_prompt: bool,
    pub(super) candidates: usize,
    pub(super) dimensions: usize,
    pub(super) directions: Vec<Direction>,
}

/// The cosines of the example's four sentences.
pub(super) struct Weather {
    /// The cosines of the sentences with each other.
    pub(super) cosines: Vec<Vec<f64>>,
    /// Each sentence's mean cosine to texts about other subjects.
    pub(super) unrelated: Vec<f64>,
}

/// The figures of a weight format.
pub(super) struct Format {
    pub(super) weights: &'static str,
    pub(super) kernels: &'static str,
    /// Retrieval with all meanings: at full dimensions, then with cut vectors.
    pub(super) retrievals: Vec<Retrieval>,
    /// The agreement with f32, or `None` for f32 itself.
    pub(super) agreement: Option<Agreement>,
}

impl Retrieval {
    /// The mean recall@1 over the directions.
    pub(super) fn recall(&self) -> f64 {
        mean(&self.directions.iter().map(|direction| direction.recall).collect::<Vec<_>>())
    }

    /// The mean reciprocal rank, averaged over the directions.
    pub(super) fn mrr(&self) -> f64 {
        mean(&self.directions.iter().map(|direction| direction.mrr).collect::<Vec<_>>())
    }

    /// The direction with the smallest recall@1.
    pub(super) fn least(&self) -> Option<&Direction> {
        self.directions.iter().min_by(|a, b| a.recall.total_cmp(&b.recall))
    }
}

impl Evaluation {
    /// Measures the model in `model`. `folder` is the folder of `held_out`.
    pub(super) fn run(
        model: &Path,
        folder: &Path,
        held_out: &HeldOut,
        scope: Scope,
    ) -> Result<Self> {
        let embedder = Embedder::builder(model).precision(Precision::F32).build()?;
        let dimensions = embedder.dimensions();
        let meanings = embedder.embed_documents(&held_out.meanings.texts)?;
        let queries = embedder.embed_queries(&held_out.meanings.texts)?;
        let mut retrievals = Vec::new();
        for candidates in [CANDIDATES, held_out.meanings.len()] {
            retrievals.extend(all_dimensions(&held_out.meanings, &meanings, candidates)?);
            retrievals.push(retrieve(
                &held_out.meanings,
                Some(&queries),
                &meanings,
                candidates,
                dimensions,
            )?);
        }
        for pairs in &held_out.pairs {
            let vectors = embedder.embed_documents(&pairs.texts)?;
            retrievals.extend(all_dimensions(pairs, &vectors, CANDIDATES)?);
        }
        Ok(Self {
            dimensions,
            n_meanings: held_out.meanings.len(),
            retrievals,
            weather: Weather::of(&embedder, &held_out.unrelated)?,
            formats: formats((model, folder), &held_out.meanings, &meanings, scope)?,
        })
    }

    /// Retrieval without a prompt among the first [`CANDIDATES`] texts of a source.
    pub(super) fn retrieval(&self, source: &str, dimensions: usize) -> Option<&Retrieval> {
        self.retrievals.iter().find(|retrieval| {
            retrieval.source == source
                && !retrieval.has_prompt
                && retrieval.dimensions == dimensions
        })
    }
}

impl Weather {
    fn of(embedder: &Embedder, unrelated: &[String]) -> Result<Self> {
        let sentences = embedder.embed_documents(&WEATHER)?;
        let to_each_other = sentences.similarity(&sentences)?;
        let to_unrelated = sentences.similarity(&embedder.embed_documents(unrelated)?)?;
        let row = |row: &[f32]| -> Vec<f64> { row.iter().map(|&cosine| cosine.into()).collect() };
        let n = WEATHER.len();
        Ok(Self {
            cosines: (0..n).map(|idx| row(to_each_other.row(idx))).collect(),
            unrelated: (0..n).map(|idx| mean(&row(to_unrelated.row(idx)))).collect(),
        })
    }
}

/// Embeds the meanings with every weight format, and compares the vectors with those in f32.
fn formats(
    (model, folder): (&Path, &Path),
    meanings: &Translations,
    exact: &Embeddings,
    scope: Scope,
) -> Result<Vec<Format>> {
    let temporary = tempfile::tempdir()?;
    let (n, dimensions) = (meanings.len(), exact.dimensions());
    let exact_by_language = ByLanguage::new(exact, meanings.languages, n, dimensions)?;
    let mut formats = vec![Format {
        weights: "f32",
        kernels: Kernels::current().name,
        retrievals: all_dimensions(meanings, exact, n)?,
        agreement: None,
    }];
    for variant in Variant::list(model, temporary.path(), scope)? {
        let vectors = variant.embed(meanings, folder, temporary.path())?;
        let by_language = ByLanguage::new(&vectors, meanings.languages, n, dimensions)?;
        formats.push(Format {
            weights: variant.weights,
            kernels: variant.kernels(),
            retrievals: all_dimensions(meanings, &vectors, n)?,
            agreement: Some(agreement((&vectors, &by_language), (exact, &exact_by_language))?),
        });
    }
    Ok(formats)
}

/// Retrieval without a prompt, with the full vectors and with cut vectors.
fn all_dimensions(
    texts: &Translations,
    vectors: &Embeddings,
    candidates: usize,
) -> Result<Vec<Retrieval>> {
    let full = vectors.dimensions();
    let cut = CUT_DIMENSIONS.into_iter().filter(|&dimensions| dimensions < full);
    let each = |dimensions| retrieve(texts, None, vectors, candidates, dimensions);
    [full].into_iter().chain(cut).map(each).collect()
}

/// Retrieval with vectors that are cut to `dimensions`. `queries` are the vectors with the query prompt.
fn retrieve(
    texts: &Translations,
    queries: Option<&Embeddings>,
    vectors: &Embeddings,
    candidates: usize,
    dimensions: usize,
) -> Result<Retrieval> {
    let by_language = |vectors| ByLanguage::new(vectors, texts.languages, candidates, dimensions);
    let documents = by_language(vectors)?;
    let directions = match queries {
        Some(queries) => retrieval(&by_language(queries)?, &documents)?,
        None => retrieval(&documents, &documents)?,
    };
    Ok(Retrieval {
        source: texts.name,
        has_prompt: queries.is_some(),
        candidates: candidates.min(texts.len()),
        dimensions,
        directions,
    })
}
