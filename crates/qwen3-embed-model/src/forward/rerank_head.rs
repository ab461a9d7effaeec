use std::ops::RangeInclusive;

use crate::checkpoint::gguf::Header;
use crate::{Checkpoint, Error, Model, Result};

/// What turns a reranker's hidden states into logits: one row of weights.
///
/// Of the answers of a causal language model only two matter, `yes` and `no`, and of their two logits only
/// the difference: the row is that of `yes` in `lm_head.weight` less that of `no`. The softmax over the
/// two, taken at `yes`, is the sigmoid of the difference. Converted checkpoints
/// (`Qwen3ForSequenceClassification` with one label) have the row as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct RerankHead {
    /// [C]
    weight: Vec<f32>,
}

/// The class of a causal language model in `config.json`.
const CAUSAL_LM: &str = "Qwen3ForCausalLM";

/// The class of a converted reranker.
const CLASSIFIER: &str = "Qwen3ForSequenceClassification";

/// What a GGUF file's classifier calls its rows.
const LABELS: &str = "qwen3.classifier.output_labels";

const POOLING: &str = "qwen3.pooling_type";

/// The poolings of embedding models: the mean, the first or the last token.
const EMBEDDING_POOLINGS: RangeInclusive<u64> = 1..=3;

impl RerankHead {
    /// Reads the head of the checkpoint at `path`, a folder or a GGUF file as for [`Model::load`], in
    /// whose vocabulary `yes` and `no` are the answers.
    ///
    /// In a folder that is the first of these that there is: `score.weight`, of one label;
    /// `lm_head.weight`; with `tie_word_embeddings`, the token embeddings. In a GGUF file:
    /// `cls.output.weight`, of one label or of those named `yes` and `no`; `output.weight`; the token
    /// embeddings.
    ///
    /// An embedding model is told from a reranker where the checkpoint shows it: by tensors without
    /// `model.` before their names and without a head, by another class in `architectures`, by a
    /// pooling in `modules.json`, or by that of a GGUF file. One that has none of these and was saved as
    /// a causal language model with tied embeddings looks like a reranker, and its logits mean nothing.
    ///
    /// # Errors
    ///
    /// [`Error::NoRerankHead`] if there is none; [`Error::TensorShape`] if a classifier has another number
    /// of labels than one; [`Error::AnswerOutOfRange`] if the answers are not in the vocabulary; and
    /// those of [`Model::load`] for files that cannot be read.
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

    /// The logit of each text that `model` reads: a score before the sigmoid. The model must give hidden
    /// states, see [`LoadOptions`](crate::LoadOptions). A text's logit is the same, bit for bit, whatever
    /// else is in the call.
    ///
    /// # Errors
    ///
    /// [`Error::HeadSize`] if the head is another model's; those of [`Model::forward`];
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

    /// The product with a hidden state after the final norm, summed in f64.
    fn logit(&self, hidden: &[f32]) -> f32 {
        let products = self.weight.iter().zip(hidden).map(|(&w, &x)| f64::from(w) * f64::from(x));
        products.sum::<f64>() as f32
    }
}

/// Reads the head of one checkpoint.
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
            _ if weights.are_of_decoder_alone() => {
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
                // Writers leave a last dimension of 1 out.
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
            let got = format!("`{POOLING}` {pooling}, which is that of embedding models");
            return Err(self.no_head(expected, got));
        }
        let is_tied = config.tie_word_embeddings;
        self.answers(if is_tied { "embed_tokens.weight" } else { "lm_head.weight" })
    }

    /// The weights of the only label.
    fn label(&self) -> Result<Vec<f32>> {
        let c = self.checkpoint.config().hidden_size;
        Ok(self.checkpoint.weights().rows("score.weight", [1, c])?.gather(&[0]))
    }

    /// The difference of the answers' rows in a matrix that has one for each token.
    fn answers(&self, name: &str) -> Result<Vec<f32>> {
        self.difference(name, self.checkpoint.config().vocab_size, self.answers)
    }

    /// One row of a matrix less another.
    fn difference(&self, name: &str, n_rows: usize, rows: [u32; 2]) -> Result<Vec<f32>> {
        let c = self.checkpoint.config().hidden_size;
        let rows = self.checkpoint.weights().rows(name, [n_rows, c])?.gather(&rows);
        let (yes, no) = rows.split_at(c);
        Ok(yes.iter().zip(no).map(|(yes, no)| yes - no).collect())
    }

    fn no_head(&self, expected: &'static str, got: String) -> Error {
        Error::NoRerankHead { path: self.checkpoint.path().to_path_buf(), expected, got }
    }
}
