use std::cmp::Ordering;
use std::path::Path;

use qwen3_embed_model::{Config, Precision, RerankHead, SharingCounts};
use qwen3_embed_text::{DEFAULT_INSTRUCTION, RerankTemplate, Tokenizer};
use rayon::prelude::*;

use crate::cross_encoder::CrossEncoder;
use crate::engine::{Engine, Settings, check, setters};
use crate::{Error, Result, Source};

/// The longest prompt, in tokens, unless something else is asked for: that of the model card.
pub(crate) const DEFAULT_MAX_TOKENS: usize = 8192;

/// Says how well documents answer a query, with a Qwen3 reranker.
///
/// A score is the probability, from 0 to 1, that the document meets what the instruction asks of it. It
/// comes from one pass of the model over query and document together, which tells more than the
/// similarity of their embeddings and costs a pass for every pair: rank the best few hundred hits of a
/// search, not a whole collection. A pair's score is the same, bit for bit, whatever else is in the call
/// and however many threads compute it. What the prompts of a query have in common, its instruction and
/// the query itself, is computed once.
///
/// Texts are plain text: one that spells a special token, such as `<|im_end|>`, cannot leave its place in
/// the prompt. From a prompt that is too long the end of its document is cut, and if that is not enough
/// the end of the query. The prompt itself is
/// [`RerankTemplate`].
///
/// # Examples
///
/// ```
/// use qwen3_embed::{RankOptions, Reranker};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/rerankers/tied");
/// // A folder with the files of Qwen/Qwen3-Reranker-0.6B, 4B or 8B, or a GGUF file.
/// let reranker = Reranker::builder(folder).build()?;
///
/// let documents = [
///     "Gravity is a force that attracts two bodies towards each other.",
///     "The capital of China is Beijing.",
/// ];
/// let options = RankOptions { top_n: Some(1), ..RankOptions::default() };
/// let best = reranker.rank("What is the capital of China?", &documents, options)?;
/// println!("{} with score {:.3}", documents[best[0].index], best[0].score);
/// # assert_eq!(best.len(), 1);
/// # Ok::<(), qwen3_embed::Error>(())
/// ```
#[derive(Debug)]
pub struct Reranker {
    engine: Engine,
    template: RerankTemplate,
    head: RerankHead,
    instruction: String,
}

/// Settings of a [`Reranker`], see [`Reranker::builder`].
#[derive(Debug, Clone)]
pub struct RerankerBuilder {
    settings: Settings,
}

/// How [`Reranker::rank`] ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RankOptions<'a> {
    /// What is asked of a document, in a sentence, best in English. Default:
    /// [`default_instruction`](Reranker::default_instruction).
    pub instruction: Option<&'a str>,
    /// The number of documents that are given back, the best ones. Default: all.
    pub top_n: Option<usize>,
    /// The longest prompt, in tokens: a document that makes it longer is cut. 1 to the reranker's
    /// [`max_tokens`](Reranker::max_tokens), which is the default.
    pub max_tokens: Option<usize>,
}

/// One result of [`Reranker::rank`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankedDocument {
    /// Which of the documents.
    pub index: usize,
    /// How well it answers the query, from 0 to 1: the sigmoid of the logit.
    pub score: f32,
    /// The score before the sigmoid: by how much the model's logit of the answer yes exceeds that of
    /// no, or the logit of a sequence classifier. It tells documents apart whose scores are all but 0
    /// or 1.
    pub logit: f32,
}

impl Reranker {
    /// Begins to build a reranker of the model at `source`: a folder with the files of
    /// Qwen3-Reranker-0.6B, 4B or 8B, of a fine-tune of one of them, or of one that was converted to
    /// `Qwen3ForSequenceClassification` with one label; or one of their GGUF files.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use qwen3_embed::{Precision, Reranker};
    ///
    /// let reranker = Reranker::builder("models/Qwen3-Reranker-0.6B")
    ///     .precision(Precision::Bf16)
    ///     .max_tokens(2048)
    ///     .build()?;
    /// # Ok::<(), qwen3_embed::Error>(())
    /// ```
    pub fn builder(source: impl Into<Source>) -> RerankerBuilder {
        RerankerBuilder { settings: Settings::new(source.into()) }
    }

    /// The documents, those that answer the query best first, and in their order where they answer it
    /// equally well.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) if `max_tokens` is out of range;
    /// [`Error::Text`](crate::Error::Text) if a document cannot be tokenized, or if the instruction
    /// leaves no room for it; [`Error::Model`](crate::Error::Model) if a logit is not finite. Errors
    /// name the document's index.
    pub fn rank(
        &self,
        query: &str,
        documents: &[impl AsRef<str>],
        options: RankOptions<'_>,
    ) -> Result<Vec<RankedDocument>> {
        let max_tokens = options.max_tokens.unwrap_or(self.max_tokens());
        check("max_tokens", max_tokens, self.max_tokens())?;
        let instruction = options.instruction.unwrap_or(&self.instruction);
        let pairs: Vec<_> = documents.iter().map(|document| (query, document.as_ref())).collect();
        let mut ranked =
            ranked(&self.logits_of(&self.prompts(instruction, &pairs, max_tokens)?)?);
        ranked.truncate(options.top_n.unwrap_or(usize::MAX));
        Ok(ranked)
    }

    /// The score, from 0 to 1, of each pair of a query and a document, under the
    /// [`default_instruction`](Self::default_instruction).
    ///
    /// # Errors
    ///
    /// [`Error::Text`](crate::Error::Text) if a pair cannot be tokenized;
    /// [`Error::Model`](crate::Error::Model) if a logit is not finite. Errors name the pair's index.
    pub fn scores(&self, pairs: &[(impl AsRef<str>, impl AsRef<str>)]) -> Result<Vec<f32>> {
        self.scores_with(&self.instruction, pairs)
    }

    /// The score of each pair under an instruction that says what is asked of the document, in a
    /// sentence, best in English.
    ///
    /// # Errors
    ///
    /// As [`scores`](Self::scores); [`Error::Text`](crate::Error::Text) if the instruction leaves no
    /// room for query and document.
    pub fn scores_with(
        &self,
        instruction: &str,
        pairs: &[(impl AsRef<str>, impl AsRef<str>)],
    ) -> Result<Vec<f32>> {
        Ok(self.logits_with(instruction, pairs)?.into_iter().map(sigmoid).collect())
    }

    /// The scores of [`scores_with`](Self::scores_with) before the sigmoid, see
    /// [`RankedDocument::logit`].
    ///
    /// # Errors
    ///
    /// As [`scores_with`](Self::scores_with).
    pub fn logits_with(
        &self,
        instruction: &str,
        pairs: &[(impl AsRef<str>, impl AsRef<str>)],
    ) -> Result<Vec<f32>> {
        self.logits_of(&self.tokenize(instruction, pairs)?)
    }

    /// The tokens of each pair's prompt: what [`scores_with`](Self::scores_with) gives to the model.
    ///
    /// # Errors
    ///
    /// [`Error::Text`](crate::Error::Text) as for [`scores_with`](Self::scores_with).
    pub fn tokenize(
        &self,
        instruction: &str,
        pairs: &[(impl AsRef<str>, impl AsRef<str>)],
    ) -> Result<Vec<Vec<u32>>> {
        let pairs: Vec<_> = pairs.iter().map(|(q, d)| (q.as_ref(), d.as_ref())).collect();
        self.prompts(instruction, &pairs, self.max_tokens())
    }

    /// What is asked of a document unless something else is said: the default prompt of
    /// `config_sentence_transformers.json` in a repository that sentence-transformers has saved, or
    /// [`DEFAULT_INSTRUCTION`].
    pub fn default_instruction(&self) -> &str {
        &self.instruction
    }

    /// The longest prompt, in tokens.
    pub fn max_tokens(&self) -> usize {
        self.engine.max_tokens
    }

    /// How the weights of the model are stored and multiplied. It is never
    /// [`Precision::Stored`](crate::Precision::Stored), which is resolved when a model is loaded.
    pub fn precision(&self) -> Precision {
        self.engine.model.precision()
    }

    /// The threads that a call uses.
    pub fn threads(&self) -> usize {
        self.engine.install(rayon::current_num_threads)
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.engine.tokenizer
    }

    /// The model's hyper-parameters.
    pub fn config(&self) -> &Config {
        self.engine.model.config()
    }

    /// What was computed since the model was loaded, and what was saved by computing once what prompts
    /// have in common.
    pub fn sharing_counts(&self) -> SharingCounts {
        self.engine.model.sharing_counts()
    }

    fn prompts(
        &self,
        instruction: &str,
        pairs: &[(&str, &str)],
        max_tokens: usize,
    ) -> Result<Vec<Vec<u32>>> {
        self.engine.install(|| self.encode(instruction, pairs, max_tokens))
    }

    /// The tokens of each pair's prompt, on rayon's current pool.
    pub(crate) fn encode(
        &self,
        instruction: &str,
        pairs: &[(&str, &str)],
        max_tokens: usize,
    ) -> Result<Vec<Vec<u32>>> {
        let (template, tokenizer) = (&self.template, &self.engine.tokenizer);
        Ok(template.encode_batch(tokenizer, instruction, pairs, max_tokens)?)
    }

    /// The beginning of each document, of at most so many tokens, on rayon's current pool.
    pub(crate) fn cut<'a>(
        &self,
        documents: &'a [String],
        max_tokens: Option<usize>,
    ) -> Result<Vec<&'a str>> {
        let Some(max_tokens) = max_tokens else {
            return Ok(documents.iter().map(String::as_str).collect());
        };
        let cut = |(idx, document): (usize, &'a String)| {
            let cut = self.engine.tokenizer.cut(document, max_tokens);
            cut.map_err(|error| Error::from(error).shift_text(idx))
        };
        documents.par_iter().enumerate().map(cut).collect()
    }

    pub(crate) fn logits_of(&self, prompts: &[impl AsRef<[u32]> + Sync]) -> Result<Vec<f32>> {
        Ok(self.engine.install(|| self.head.logits(&self.engine.model, prompts))?)
    }
}

impl RerankerBuilder {
    setters!();

    /// The longest prompt, in tokens, with what stands around query and document: 1 to the model's
    /// `max_position_embeddings`. A longer one is cut, its document first. Default: 8192, as in the model
    /// card, or what the model has if that is less.
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.settings.max_tokens = Some(max_tokens);
        self
    }

    /// Loads the model, its head and its tokenizer.
    ///
    /// An embedding model is refused where its files show that it is one: by tensors without `model.` before
    /// their names and without a head, by another class in `architectures`, or by a pooling in `modules.json`
    /// or in the GGUF file. One that looks like a reranker gives scores that mean nothing.
    ///
    /// A reranker that sentence-transformers has saved with a module `LogitScore` has its answers, its default
    /// instruction and its chat template checked: another prompt than that of Qwen3-Reranker is an error.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchModel`](crate::Error::NoSuchModel), [`Error::Io`](crate::Error::Io), or what
    /// [`Hub::download`](crate::Hub::download) says;
    /// [`Error::Model`](crate::Error::Model) or [`Error::Text`](crate::Error::Text) if a file is missing,
    /// damaged or of another architecture, or if it is no reranker's;
    /// [`Error::Vocabulary`](crate::Error::Vocabulary) if the tokenizer is not the model's;
    /// [`Error::Setting`](crate::Error::Setting) if a setting is out of range.
    pub fn build(self) -> Result<Reranker> {
        let local = self.settings.open()?;
        let cross_encoder = CrossEncoder::read(local.settings())?;
        let prepare = |tokenizer: &Tokenizer, tokenizer_path: &Path| {
            let template = RerankTemplate::new(tokenizer, tokenizer_path)?;
            let [yes, no] = match &cross_encoder {
                Some(cross_encoder) => cross_encoder.answers,
                None => [template.yes(), template.no()],
            };
            let head = RerankHead::load(&local.path, yes, no)?;
            Ok((template, head))
        };
        let (engine, (template, head)) =
            self.settings.load(&local, DEFAULT_MAX_TOKENS, true, prepare)?;
        let frame = template.prefix().iter().chain(template.suffix());
        engine.check_vocabulary(frame.max().map_or(0, |&id| id as usize))?;
        let instruction = cross_encoder.and_then(|cross_encoder| cross_encoder.instruction);
        let instruction = instruction.unwrap_or_else(|| DEFAULT_INSTRUCTION.to_owned());
        Ok(Reranker { engine, template, head, instruction })
    }
}

/// What has these logits, in order of rank: equal ones stay in their order.
pub(crate) fn ranked(logits: &[f32]) -> Vec<RankedDocument> {
    let ranked = logits.iter().enumerate();
    let mut ranked: Vec<_> = ranked
        .map(|(index, &logit)| RankedDocument { index, score: sigmoid(logit), logit })
        .collect();
    // The sort is stable, and no logit is NaN.
    ranked.sort_by(|a, b| b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal));
    ranked
}

/// 1 / (1 + e^−x)
pub(crate) fn sigmoid(logit: f32) -> f32 {
    (1.0 / (1.0 + (-f64::from(logit)).exp())) as f32
}
