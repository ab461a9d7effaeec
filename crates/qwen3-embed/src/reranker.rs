use qwen3_embed_model::{Config, Precision, RerankHead, SharingCounts};
use qwen3_embed_text::{DEFAULT_INSTRUCTION, RerankTemplate, Tokenizer};
use rayon::prelude::*;

use crate::cross_encoder::CrossEncoder;
use crate::engine::{Engine, Settings, setters};
use crate::limits::{RERANKER_MAX_TOKENS, check_setting};
use crate::source::read_tokenizer;
use crate::{Error, RankedDocument, Result, ScoreOptions, Scores, Source};

/// Scores how well documents answer a query, with a Qwen3 reranker.
///
/// A score is the probability, from 0 to 1, that the document is relevant to the query according to the instruction.
/// The model reads the query and the document together. This is more accurate than the similarity of their embeddings,
/// but each pair has to be computed: rank the best few hundred hits of a search, not a whole collection. All prompts of
/// a query have the tokens before the document in common, and these tokens are computed only once. On the CPU, the
/// score of a pair does not depend on the other pairs in the call or on the number of threads: it is always the same,
/// bit for bit.
///
/// Queries and documents are tokenized as plain text: a document that contains the characters of a special token, such
/// as `<|im_end|>`, cannot change the structure of the prompt. If a prompt is too long, the end of its document is cut
/// off, and if that is not enough, the end of the query. [`RerankTemplate`] describes the prompt.
///
/// # Examples
///
/// ```
/// use qwen3_embed::Reranker;
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/rerankers/tied");
/// // The folder of Qwen3-Reranker-0.6B, 4B or 8B, a GGUF file, or an id on the hub.
/// let reranker = Reranker::builder(folder).build()?;
///
/// let documents = [
///     "Gravity is a force that attracts two bodies towards each other.",
///     "The capital of China is Beijing.",
/// ];
/// for document in reranker.rank("What is the capital of China?", &documents)? {
///     println!("{:.3}  {}", document.score, documents[document.index]);
/// }
/// # Ok::<(), qwen3_embed::Error>(())
/// ```
#[derive(Debug)]
pub struct Reranker {
    engine: Engine,
    template: RerankTemplate,
    head: RerankHead,
    instruction: String,
}

/// Builds a [`Reranker`].
///
/// [`Reranker::builder`] creates a builder with the default settings. Each method changes one setting, and
/// [`build`](Self::build) loads the model.
#[derive(Debug, Clone)]
pub struct RerankerBuilder {
    settings: Settings,
}

/// The options of a scoring request, checked and completed with the settings of the reranker.
#[derive(Debug)]
pub(crate) struct ScoreRequest {
    pub(crate) instruction: String,
    max_tokens: usize,
    max_document_tokens: Option<usize>,
}

impl Reranker {
    /// Starts to build a reranker from the model at `source`: the folder of Qwen3-Reranker-0.6B, 4B, 8B, of a
    /// fine-tune, or of one of them that was converted to `Qwen3ForSequenceClassification` with one label; one of
    /// their GGUF files; or an id on the hub.
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

    /// The score of one pair, from 0 to 1.
    ///
    /// # Errors
    ///
    /// As [`scores`](Self::scores).
    pub fn score(&self, query: &str, document: &str) -> Result<f32> {
        Ok(self.scores(&[(query, document)])?[0])
    }

    /// The score of each pair of a query and a document, from 0 to 1.
    ///
    /// # Errors
    ///
    /// [`Error::Text`] if a pair cannot be tokenized, or if the instruction leaves no room for query and document;
    /// [`Error::Model`] if a logit is not finite. Errors about a pair contain its index.
    pub fn scores(&self, pairs: &[(impl AsRef<str>, impl AsRef<str>)]) -> Result<Vec<f32>> {
        Ok(self.score_with(pairs, &ScoreOptions::new())?.to_vec())
    }

    /// Scores pairs of a query and a document, with options for this call.
    ///
    /// # Errors
    ///
    /// As [`scores`](Self::scores); [`Error::Setting`] if an option is out of range.
    pub fn score_with(
        &self,
        pairs: &[(impl AsRef<str>, impl AsRef<str>)],
        options: &ScoreOptions,
    ) -> Result<Scores> {
        let prompts = self.tokenize(pairs, options)?;
        let n_tokens = prompts.iter().map(Vec::len).collect();
        Ok(Scores::new(self.logits(&prompts)?, n_tokens))
    }

    /// Sorts documents by their scores, the highest first. Documents with equal scores keep their order.
    ///
    /// # Errors
    ///
    /// As [`scores`](Self::scores), with the index of the document.
    pub fn rank(&self, query: &str, documents: &[impl AsRef<str>]) -> Result<Vec<RankedDocument>> {
        self.rank_with(query, documents, &ScoreOptions::new())
    }

    /// Ranks documents as [`rank`](Self::rank) does, with options for this call.
    ///
    /// # Errors
    ///
    /// As [`score_with`](Self::score_with), with the index of the document.
    pub fn rank_with(
        &self,
        query: &str,
        documents: &[impl AsRef<str>],
        options: &ScoreOptions,
    ) -> Result<Vec<RankedDocument>> {
        let pairs: Vec<_> = documents.iter().map(|document| (query, document)).collect();
        Ok(self.score_with(&pairs, options)?.ranked())
    }

    /// The tokens of each pair's prompt, as [`score_with`](Self::score_with) passes them to the model.
    ///
    /// # Errors
    ///
    /// [`Error::Text`] or [`Error::Setting`], as [`score_with`](Self::score_with).
    pub fn tokenize(
        &self,
        pairs: &[(impl AsRef<str>, impl AsRef<str>)],
        options: &ScoreOptions,
    ) -> Result<Vec<Vec<u32>>> {
        let request = self.request(options)?;
        let pairs: Vec<_> = pairs.iter().map(|(q, d)| (q.as_ref(), d.as_ref())).collect();
        self.engine.install(|| self.encode(&pairs, &request))
    }

    /// The instruction that is used if a request has none. If sentence-transformers has saved the model, this is the
    /// default prompt in `config_sentence_transformers.json`, otherwise [`DEFAULT_INSTRUCTION`].
    pub fn default_instruction(&self) -> &str {
        &self.instruction
    }

    /// The maximum length of a prompt, in tokens.
    pub fn max_tokens(&self) -> usize {
        self.engine.max_tokens
    }

    /// The precision in which the weights are kept.
    /// [`Precision::Stored`](crate::Precision::Stored) is resolved when the model is loaded.
    pub fn precision(&self) -> Precision {
        self.engine.model.precision()
    }

    /// The number of threads that compute a call.
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

    /// How many tokens were given to the model since it was loaded, and how many of them it computed. The other tokens
    /// were not computed again because they belong to shared prefixes.
    pub fn sharing_counts(&self) -> SharingCounts {
        self.engine.model.sharing_counts()
    }

    /// Checks options and completes them with the reranker's settings.
    pub(crate) fn request(&self, options: &ScoreOptions) -> Result<ScoreRequest> {
        let max_tokens = options.max_tokens.unwrap_or(self.max_tokens());
        check_setting("max_tokens", max_tokens, self.max_tokens())?;
        let max_document_tokens = options.max_document_tokens;
        check_setting("max_document_tokens", max_document_tokens.unwrap_or(1), usize::MAX)?;
        let instruction = options.instruction.as_ref().unwrap_or(&self.instruction).clone();
        Ok(ScoreRequest { instruction, max_tokens, max_document_tokens })
    }

    /// The tokens of each pair's prompt, on rayon's current pool.
    pub(crate) fn encode(
        &self,
        pairs: &[(&str, &str)],
        request: &ScoreRequest,
    ) -> Result<Vec<Vec<u32>>> {
        let ScoreRequest { instruction, max_tokens, max_document_tokens } = request;
        let tokenizer = &self.engine.tokenizer;
        let encode =
            |pairs: &[_]| self.template.encode_batch(tokenizer, instruction, pairs, *max_tokens);
        let Some(max_document_tokens) = *max_document_tokens else { return Ok(encode(pairs)?) };
        let cut = |(idx, &(query, document))| {
            let cut = tokenizer.cut(document, max_document_tokens);
            Ok((query, cut.map_err(|error| Error::from(error).map_text_index(|_| idx))?))
        };
        let pairs: Vec<(&str, &str)> =
            pairs.par_iter().enumerate().map(cut).collect::<Result<_>>()?;
        Ok(encode(&pairs)?)
    }

    /// The logit of each prompt.
    pub(crate) fn logits(&self, prompts: &[impl AsRef<[u32]> + Sync]) -> Result<Vec<f32>> {
        Ok(self.engine.compute(|| self.head.logits(&self.engine.model, prompts))?)
    }
}

impl RerankerBuilder {
    setters!();

    /// The maximum length of a prompt in tokens, including the instruction, the query and the document: 1 to the
    /// model's `max_position_embeddings`. The document of a longer prompt is cut. Default: 8192, as in the model
    /// card, but at most `max_position_embeddings`.
    pub fn max_tokens(mut self, max_tokens: usize) -> Self {
        self.settings.max_tokens = Some(max_tokens);
        self
    }

    /// Loads the model, its head and its tokenizer.
    ///
    /// An embedding model is rejected if its files show that it is not a reranker:
    ///
    /// - The names of its tensors have no prefix `model.`, and it has no head.
    /// - `architectures` in `config.json` names a class that is not a reranker's.
    /// - `modules.json` or the GGUF file contains a pooling.
    ///
    /// An embedding model whose files look like those of a reranker is loaded, and its scores are meaningless.
    ///
    /// If sentence-transformers has saved the reranker with a module `LogitScore`, the token ids of the answers "yes"
    /// and "no" and the default instruction are read from its files. The chat template must make the prompt of
    /// Qwen3-Reranker; another template is an error.
    ///
    /// # Errors
    ///
    /// - [`Error::NoSuchModel`], [`Error::NoConfig`], [`Error::WhichGguf`], [`Error::AdapterBase`],
    ///   [`Error::TwoAdapters`], [`Error::Io`] or the errors of [`Source::download`](crate::Source::download) if the
    ///   model or its adapter cannot be found.
    /// - [`Error::Model`] or [`Error::Text`] if a file is missing, damaged or of another architecture, or if the model
    ///   is not a reranker.
    /// - [`Error::Vocabulary`] if the tokenizer does not belong to the model.
    /// - [`Error::Setting`] if a setting is out of range.
    /// - [`Error::Threads`] if the threads cannot be started.
    pub fn build(self) -> Result<Reranker> {
        let checkpoint = self.settings.open()?;
        let cross_encoder = CrossEncoder::read(checkpoint.sentence_transformers())?;
        let (tokenizer, tokenizer_path) = read_tokenizer(&checkpoint)?;
        let template = RerankTemplate::new(&tokenizer, &tokenizer_path)?;
        let [yes, no] = match &cross_encoder {
            Some(cross_encoder) => cross_encoder.answers,
            None => [template.yes(), template.no()],
        };
        let head = RerankHead::load(&checkpoint, yes, no)?;
        let tokenizer = (tokenizer, tokenizer_path);
        let engine = self.settings.load(&checkpoint, tokenizer, RERANKER_MAX_TOKENS, true)?;
        let frame = template.prefix().iter().chain(template.suffix());
        engine.check_vocabulary(frame.max().map_or(0, |&id| id as usize))?;
        let instruction = cross_encoder.and_then(|cross_encoder| cross_encoder.instruction);
        let instruction = instruction.unwrap_or_else(|| DEFAULT_INSTRUCTION.to_owned());
        Ok(Reranker { engine, template, head, instruction })
    }
}
