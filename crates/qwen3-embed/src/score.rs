use std::cmp::Ordering;

/// Options of one scoring request, for [`Reranker::score_with`](crate::Reranker::score_with),
/// [`Reranker::rank_with`](crate::Reranker::rank_with) and [`Service::score`](crate::Service::score).
///
/// # Examples
///
/// ```
/// use qwen3_embed::ScoreOptions;
///
/// let options = ScoreOptions::new()
///     .instruction("Find the documents that answer the question")
///     .max_document_tokens(1024);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ScoreOptions {
    /// The sentence that says which documents are relevant: see [`instruction`](Self::instruction).
    pub instruction: Option<String>,
    /// The maximum length of a prompt in tokens: see [`max_tokens`](Self::max_tokens).
    pub max_tokens: Option<usize>,
    /// The maximum length of a document in tokens: see [`max_document_tokens`](Self::max_document_tokens).
    pub max_document_tokens: Option<usize>,
}

impl ScoreOptions {
    /// The options of [`Reranker::scores`](crate::Reranker::scores): the default instruction and the limits of the
    /// reranker.
    pub fn new() -> Self {
        Self::default()
    }

    /// The instruction: one sentence, preferably in English, that says which documents are relevant to a query.
    /// Default: [`Reranker::default_instruction`](crate::Reranker::default_instruction).
    pub fn instruction(mut self, instruction: impl Into<String>) -> Self {
        self.instruction = Some(instruction.into());
        self
    }

    /// The maximum length of a prompt in tokens, including the instruction, the query and the document. If a prompt is
    /// longer, the end of its document is cut off. The range is 1 to the reranker's
    /// [`max_tokens`](crate::Reranker::max_tokens), which is also the default.
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.max_tokens = Some(max_tokens);
        self
    }

    /// The maximum length of a document in tokens, at least 1. The end of a longer document is cut off. Default: no
    /// limit other than [`max_tokens`](Self::max_tokens).
    pub fn max_document_tokens(mut self, max_document_tokens: usize) -> Self {
        self.max_document_tokens = Some(max_document_tokens);
        self
    }
}

/// The scores of pairs of a query and a document, in the order of the pairs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scores {
    logits: Vec<f32>,
    n_tokens: Vec<usize>,
}

/// One result of [`Reranker::rank`](crate::Reranker::rank).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankedDocument {
    /// The index of the document in the list that was ranked.
    pub index: usize,
    /// The probability, from 0 to 1, that the document is relevant to the query according to the instruction. It is the
    /// sigmoid of the logit.
    pub score: f32,
    /// The score before the sigmoid: the model's logit of the answer "yes" minus its logit of "no", or the logit of
    /// a sequence classifier. The logit still distinguishes documents whose scores are all close to 0 or 1.
    pub logit: f32,
}

impl Scores {
    pub(crate) fn new(logits: Vec<f32>, n_tokens: Vec<usize>) -> Self {
        Self { logits, n_tokens }
    }

    /// The score of each pair, see [`RankedDocument::score`].
    pub fn to_vec(&self) -> Vec<f32> {
        self.logits.iter().map(|&logit| sigmoid(logit)).collect()
    }

    /// The logit of each pair, see [`RankedDocument::logit`].
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The number of tokens of each pair's prompt.
    pub fn n_tokens(&self) -> &[usize] {
        &self.n_tokens
    }

    /// The documents of the pairs, the highest score first. Documents with equal scores are in the order of the
    /// pairs.
    pub fn ranked(&self) -> Vec<RankedDocument> {
        let document = |(index, &logit)| RankedDocument { index, score: sigmoid(logit), logit };
        let mut ranked: Vec<_> = self.logits.iter().enumerate().map(document).collect();
        // The sort is stable, and no logit is NaN.
        ranked.sort_by(|a, b| b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal));
        ranked
    }
}

/// 1 / (1 + e^−x)
fn sigmoid(logit: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32
}
