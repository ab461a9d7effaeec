//! The bars: limits that the figures of the bundled model must meet.

use std::fmt;

use super::evaluation::Evaluation;

/// Every bar. The bars are a little below the figures of the bundled model, so that a change of the code or of the model
/// that makes a figure worse is noticed.
const BARS: [(Figure, Limit); 11] = [
    (Figure::Recall("meanings", None), Limit::AtLeast(0.87)),
    (Figure::Recall("meanings", Some(64)), Limit::AtLeast(0.82)),
    (Figure::Recall("meanings", Some(32)), Limit::AtLeast(0.73)),
    (Figure::LeastRecall, Limit::AtLeast(0.77)),
    (Figure::Recall("tatoeba", None), Limit::AtLeast(0.92)),
    (Figure::Recall("hsk", None), Limit::AtLeast(0.92)),
    (Figure::WeatherPair, Limit::AtLeast(0.65)),
    (Figure::WeatherUnrelated, Limit::AtMost(0.25)),
    (Figure::Loss("int8"), Limit::AtMost(0.01)),
    (Figure::Loss("Q8_0"), Limit::AtMost(0.01)),
    (Figure::Loss("Q4_K_M"), Limit::AtMost(0.03)),
];

/// A figure with a bar. Figures of retrieval are in f32, without a prompt, with the first 200 texts as candidates.
#[derive(Clone, Copy)]
enum Figure {
    /// Mean recall@1 of a source's texts, at these dimensions or at full dimensions.
    Recall(&'static str, Option<usize>),
    /// The smallest recall@1 of a direction, for the held-out meanings at full dimensions.
    LeastRecall,
    /// The smallest cosine between two of the example's sentences.
    WeatherPair,
    /// The largest mean cosine of one of the example's sentences to unrelated texts.
    WeatherUnrelated,
    /// How much lower the mean recall@1 is than in f32, for this weight format and the measured kernel set with the
    /// largest loss. All meanings are candidates.
    Loss(&'static str),
}

#[derive(Clone, Copy)]
enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

/// A bar and the measured figure.
pub(super) struct Bar {
    /// The name of the figure.
    pub(super) name: String,
    limit: Limit,
    value: f64,
}

/// The bars and the figures of a model. Bars for texts that are not there are left out.
pub(super) fn evaluate(evaluation: &Evaluation) -> Vec<Bar> {
    let bar = |(figure, limit): (Figure, Limit)| {
        let value = figure.value(evaluation)?;
        Some(Bar { name: figure.name(), limit, value })
    };
    BARS.into_iter().filter_map(bar).collect()
}

impl Bar {
    pub(super) fn is_met(&self) -> bool {
        // A figure that is NaN misses its bar.
        match self.limit {
            Limit::AtLeast(limit) => self.value >= limit,
            Limit::AtMost(limit) => self.value <= limit,
        }
    }

    /// The limit in words.
    pub(super) fn limit(&self) -> String {
        match self.limit {
            Limit::AtLeast(limit) => format!("at least {limit:.2}"),
            Limit::AtMost(limit) => format!("at most {limit:.2}"),
        }
    }

    /// The measured figure.
    pub(super) fn figure(&self) -> String {
        format!("{:.4}", self.value)
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, got {}", self.name, self.limit(), self.figure())
    }
}

impl Figure {
    fn name(self) -> String {
        match self {
            Self::Recall(source, None) => format!("{source}: mean recall@1"),
            Self::Recall(source, Some(dimensions)) => {
                format!("{source}: mean recall@1, {dimensions} dimensions")
            }
            Self::LeastRecall => "meanings: least recall@1 of a direction".to_owned(),
            Self::WeatherPair => "weather sentences: least cosine of a pair".to_owned(),
            Self::WeatherUnrelated => {
                "weather sentences: largest mean cosine to unrelated texts".to_owned()
            }
            Self::Loss(weights) => format!("{weights}: loss of mean recall@1, all meanings"),
        }
    }

    fn value(self, evaluation: &Evaluation) -> Option<f64> {
        let full = evaluation.dimensions;
        let weather = &evaluation.weather;
        match self {
            Self::Recall(source, dimensions) => {
                Some(evaluation.retrieval(source, dimensions.unwrap_or(full))?.recall())
            }
            Self::LeastRecall => Some(evaluation.retrieval("meanings", full)?.least()?.recall),
            Self::WeatherPair => {
                let n = weather.cosines.len();
                let pairs = (0..n).flat_map(|i| (0..i).map(move |j| (i, j)));
                pairs.map(|(i, j)| weather.cosines[i][j]).min_by(f64::total_cmp)
            }
            Self::WeatherUnrelated => weather.unrelated.iter().copied().max_by(f64::total_cmp),
            Self::Loss(weights) => {
                let recall = |weights| {
                    let formats = evaluation.formats.iter();
                    let formats = formats.filter(move |format| format.weights == weights);
                    formats.map(|format| format.retrievals[0].recall()).min_by(f64::total_cmp)
                };
                Some(recall("f32")? - recall(weights)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_include_their_limit_and_reject_nan() {
        let bar = |limit, value| Bar { name: "recall".to_owned(), limit, value };
        assert!(bar(Limit::AtLeast(0.5), 0.5).is_met() && bar(Limit::AtMost(0.5), 0.5).is_met());
        for missed in [
            bar(Limit::AtLeast(0.5), 0.49),
            bar(Limit::AtMost(0.5), 0.51),
            bar(Limit::AtMost(0.5), f64::NAN),
        ] {
            assert!(!missed.is_met(), "{missed}");
        }
        let message = bar(Limit::AtLeast(0.95), 0.9123).to_string();
        assert_eq!(message, "recall: expected at least 0.95, got 0.9123");
    }
}
