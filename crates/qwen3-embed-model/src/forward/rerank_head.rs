use std::ops::RangeInclusive;

use crate::checkpoint::gguf::Header;
use crate::{Checkpoint, Error, Model, Result};

/// The head of a reranker: a vector of weights whose dot product with a hidden state is the logit of a text.
///
/// A reranker is a causal language model that answers `yes` or `no`. Its score is the softmax over the logits of these
/// two tokens, taken at `yes`, which equals the sigmoid of the difference of the two logits. The vector is therefore
/// the row of `yes` in `lm_head.weight` minus the row of `no`. Checkpoints that were converted to
/// `Qwen3ForSequenceClassification` with one label contain the vector itself.
#[derive(Debug, Clone, PartialEq)]
pub struct RerankHead {
    /// C values.
    weight: Vec<f32>,
}

/// The class of a causal language model in `config.json`.
const CAUSAL_LM: &str = "Qwen3ForCausalLM";

/// The class of a converted reranker.
const CLASSIFIER: &str = "Qwen3ForSequenceClassification";

/// The metadata key with the labels of the rows of a classifier.
const LABELS: &str = "qwen3.classifier.output_labels";

/// The metadata key with the pooling.
const POOLING: &str = "qwen3.pooling_type";

/// The values of `qwen3.pooling_type` in embedding models: mean, first token, last token.
const EMBEDDING_POOLINGS: RangeInclusive<u64> = 1..=3;

impl RerankHead {
    /// Loads the head of a checkpoint. `yes` and `no` are the token ids of the answers.
    ///
    /// In a folder, the head is the first of these that exists: `score.weight` with one label; `lm_head.weight`; with
    /// `tie_word_embeddings`, the token embeddings. In a GGUF file, it is `cls.output.weight` with one label or with
    /// the labels `yes` and `no`; `output.weight`; the token embeddings.
    ///
    /// An embedding model is rejected if the checkpoint shows that it is one: tensor names without `model.` and no
    /// head, another class in `architectures`, a pooling in `modules.json`, or the pooling of a GGUF file. An embedding
    /// model that was saved as a causal language model with tied embeddings shows none of these. It is loaded as a
    /// reranker, and its logits mean nothing.
    ///
    /// # Errors
    ///
    /// [`Error::NoRerankHead`] if there is no head; [`Error::TensorShape`] if a classifier has more than one label;
    /// [`Error::AnswerOutOfRange`] if a token id is not in the vocabulary.
    pub fn load(checkpoint: &Checkpoint, yes: u32, no: u32) -> Result<Self> {
        let vocab_size = checkpoint.config().vocab_size;
        for id in [yes, no] {
            if id as usize >= vocab_size {
                let path = checkpoint.path().to_path_buf();
                return Err(Error::AnswerOutOfRange { path, id, vocab_size });
            }
        }
        let loader = Loader { checkpoint, answers: [yes, no] };
        let weight = match checkpoint.gguf() {
            Some(header) => loader.of_gguf(header)?,
            None => loader.of_folder()?,
        };
        Ok(Self { weight })
    }

    /// Computes the logit of each text, which is the score before the sigmoid. `model` must compute hidden states: see
    /// [`LoadOptions::hidden_states`](crate::LoadOptions::hidden_states). On the CPU, the logit of a text is the same,
    /// bit for bit, whatever other texts are in the call.
    ///
    /// # Errors
    ///
    /// [`Error::HeadSize`] if the head belongs to a model with another hidden size; the errors of [`Model::forward`];
    /// [`Error::LogitNotFinite`] if a logit is not finite.
    pub fn logits(&self, model: &Model, texts: &[impl AsRef<[u32]>]) -> Result<Vec<f32>> {
        let (got, expected) = (self.weight.len(), model.embedding_size());
        if got != expected {
            return Err(Error::HeadSize { expected, got });
        }
        let mut logits = vec![0f32; texts.len()];
        model.forward_each(texts, |text, hidden| logits[text] = self.logit(hidden))?;
        match logits.iter().position(|logit| !logit.is_finite()) {
            Some(text) => Err(Error::LogitNotFinite { text, value: logits[text] }),
            None => Ok(logits),
        }
    }

    /// The dot product with a hidden state after the final norm, accumulated in f64.
    fn logit(&self, hidden: &[f32]) -> f32 {
        let products = self.weight.iter().zip(hidden).map(|(&w, &x)| f64::from(w) * f64::from(x));
        products.sum::<f64>() as f32
    }
}

/// Loads the head of one checkpoint.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    /// The token ids of `yes` and `no`.
    answers: [u32; 2],
}

impl Loader<'_> {
    fn of_folder(&self) -> Result<Vec<f32>> {
        let (config, weights) = (self.checkpoint.config(), self.checkpoint.weights());
        let architecture = config.architecture.as_deref();
        if architecture == Some(CLASSIFIER) || weights.contains("score.weight") {
            return self.label();
        }
        let is_pooled = self.checkpoint.repository().has_pooling();
        if weights.contains("lm_head.weight") && !is_pooled {
            return self.answers("lm_head.weight");
        }
        let expected = "`score.weight`, `lm_head.weight`, or token embeddings that \
                        `tie_word_embeddings` makes the head of a Qwen3ForCausalLM";
        let got = match architecture {
            _ if is_pooled => "an embedding model, whose modules.json has a pooling".to_owned(),
            Some(other) if other != CAUSAL_LM => format!("neither of the tensors, and {other}"),
            _ if !config.tie_word_embeddings => {
                "neither of the tensors, and no `tie_word_embeddings`".to_owned()
            }
            _ if weights.show_no_head() => {
                "an embedding model, whose tensors have no `model.` before their names".to_owned()
            }
            _ => return self.answers("embed_tokens.weight"),
        };
        Err(self.no_head(expected, got))
    }

    fn of_gguf(&self, header: &Header) -> Result<Vec<f32>> {
        let config = self.checkpoint.config();
        if let Some(classifier) = header.tensor("cls.output.weight") {
            return match classifier.shape[..] {
                // Converters omit a dimension of 1.
                [_] => self.checkpoint.weights().vector("score.weight", config.hidden_size),
                [2, _] => {
                    let labels = header.strings(LABELS)?;
                    let row = |answer| labels.iter().position(|label| label == answer);
                    let expected = "the labels \"yes\" and \"no\"";
                    match (row("yes"), row("no")) {
                        (Some(yes @ 0..2), Some(no @ 0..2)) => {
                            self.difference("score.weight", 2, [yes as u32, no as u32])
                        }
                        _ => Err(header.field(LABELS, expected)),
                    }
                }
                _ => self.label(),
            };
        }
        let pooling = header.json(POOLING).and_then(|pooling| pooling.as_u64());
        if let Some(pooling) = pooling.filter(|pooling| EMBEDDING_POOLINGS.contains(pooling)) {
            let expected = "`cls.output.weight`, or an `output.weight` or token embeddings that do \
                            not belong to an embedding model";
            let got = format!("`{POOLING}` {pooling}, which only embedding models have");
            return Err(self.no_head(expected, got));
        }
        let is_tied = config.tie_word_embeddings;
        self.answers(if is_tied { "embed_tokens.weight" } else { "lm_head.weight" })
    }

    /// The row of a classifier with one label.
    fn label(&self) -> Result<Vec<f32>> {
        let c = self.checkpoint.config().hidden_size;
        self.checkpoint.weights().gather("score.weight", [1, c], &[0])
    }

    /// The row of `yes` minus the row of `no` in a matrix with a row for each token.
    fn answers(&self, name: &str) -> Result<Vec<f32>> {
        self.difference(name, self.checkpoint.config().vocab_size, self.answers)
    }

    /// The first of two rows of a matrix minus the second one.
    fn difference(&self, name: &str, n_rows: usize, rows: [u32; 2]) -> Result<Vec<f32>> {
        let c = self.checkpoint.config().hidden_size;
        let rows = self.checkpoint.weights().gather(name, [n_rows, c], &rows)?;
        let (yes, no) = rows.split_at(c);
        Ok(yes.iter().zip(no).map(|(yes, no)| yes - no).collect())
    }

    fn no_head(&self, expected: &'static str, got: String) -> Error {
        Error::NoRerankHead { path: self.checkpoint.path().to_path_buf(), expected, got }
    }
}
