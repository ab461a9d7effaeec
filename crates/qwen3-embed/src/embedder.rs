use std::borrow::Cow;
use std::collections::BTreeMap;

use qwen3_embed_model::{Arithmetic, Config, Pooling, Precision, SharingCounts};
use qwen3_embed_text::{SpecialTokens, Tokenizer, instruct};
use rayon::prelude::*;

use crate::embed_request::{EmbedRequest, RowFormat};
use crate::engine::Engine;
use crate::limits::{check_dimensions, check_setting, min_dimensions};
use crate::repository::Prompts;
use crate::{EmbedOptions, Embeddings, Error, Overflow, Prompt, Result, Text};

/// Computes embeddings of texts with a Qwen3 embedding model.
///
/// See the [crate's documentation](crate) for an example. Vectors are in the order of the texts. They are normalized
/// to unit length unless [`EmbedderBuilder::normalize`](crate::EmbedderBuilder::normalize) or
/// [`EmbedOptions::normalize`] turns normalization off. On the CPU, the vector of a text does not depend on the other
/// texts in the call or on the number of threads: it is always the same, bit for bit.
#[derive(Debug)]
pub struct Embedder {
    pub(crate) engine: Engine,
    pub(crate) prompts: Prompts,
    pub(crate) dimensions: usize,
    pub(crate) overflow: Overflow,
    pub(crate) special_tokens: SpecialTokens,
    pub(crate) normalize: bool,
}

impl Embedder {
    /// Embeds one document.
    ///
    /// # Errors
    ///
    /// As [`embed_documents`](Self::embed_documents).
    pub fn embed_document(&self, text: &str) -> Result<Vec<f32>> {
        Ok(self.embed_documents(&[text])?.into_vec())
    }

    /// Embeds one query.
    ///
    /// # Errors
    ///
    /// As [`embed_documents`](Self::embed_documents).
    pub fn embed_query(&self, text: &str) -> Result<Vec<f32>> {
        Ok(self.embed_queries(&[text])?.into_vec())
    }

    /// Embeds documents, with the model's prompt for documents: see [`Prompt::Document`].
    ///
    /// # Errors
    ///
    /// [`Error::TextTooLong`](crate::Error::TextTooLong) if a text is longer than
    /// [`max_tokens`](Self::max_tokens) and the overflow policy is [`Overflow::Error`];
    /// [`Error::Text`](crate::Error::Text) if a text cannot be tokenized; [`Error::Model`](crate::Error::Model) if
    /// the vector of a text contains NaN or infinity. These errors contain the index of the text.
    pub fn embed_documents(&self, texts: &[impl AsRef<str> + Sync]) -> Result<Embeddings> {
        self.embed_with(strings(texts), &EmbedOptions::new())
    }

    /// Embeds queries, with the model's prompt for queries: see [`Prompt::Query`].
    ///
    /// # Errors
    ///
    /// As [`embed_documents`](Self::embed_documents).
    pub fn embed_queries(&self, texts: &[impl AsRef<str> + Sync]) -> Result<Embeddings> {
        self.embed_with(strings(texts), &EmbedOptions::new().prompt(Prompt::Query))
    }

    /// Embeds texts that are given as token ids: see [`Text::Tokens`].
    ///
    /// # Errors
    ///
    /// As [`embed_documents`](Self::embed_documents); [`Error::Model`](crate::Error::Model) if a text has no tokens,
    /// or a token that is not in the vocabulary.
    pub fn embed_tokens(&self, texts: &[impl AsRef<[u32]>]) -> Result<Embeddings> {
        self.embed_with(texts.iter().map(AsRef::as_ref), &EmbedOptions::new())
    }

    /// Embeds texts, strings or tokens, with options for this call.
    ///
    /// # Errors
    ///
    /// As [`embed_tokens`](Self::embed_tokens); [`Error::Dimensions`](crate::Error::Dimensions),
    /// [`Error::Setting`](crate::Error::Setting) or [`Error::NoSuchPrompt`](crate::Error::NoSuchPrompt) if an option
    /// is out of range.
    ///
    /// # Examples
    ///
    /// ```
    /// use qwen3_embed::{EmbedOptions, Embedder, Prompt};
    ///
    /// # let embedder = Embedder::builder(qwen3_embed::Source::demo()).build()?;
    /// let task = Prompt::Instruction("Find a sentence with the same meaning".to_owned());
    /// let options = EmbedOptions::new().prompt(task).dimensions(64);
    /// let embeddings = embedder.embed_with(["It rains.", "The sun shines."], &options)?;
    /// assert_eq!((embeddings.len(), embeddings.dimensions()), (2, 64));
    /// # Ok::<(), qwen3_embed::Error>(())
    /// ```
    pub fn embed_with<'a>(
        &self,
        texts: impl IntoIterator<Item: Into<Text<'a>>>,
        options: &EmbedOptions,
    ) -> Result<Embeddings> {
        let request = self.request(options)?;
        let texts: Vec<Text<'a>> = texts.into_iter().map(Into::into).collect();
        // The threads of the CPU are busy either way, if they compute the texts.
        let windows = if self.engine.model.uses_threads() { vec![texts] } else { windows(texts) };
        self.embed_windows(windows, &request)
    }

    /// Embeds texts, and tokenizes each window while the window before it is computed.
    fn embed_windows(
        &self,
        windows: Vec<Vec<Text<'_>>>,
        request: &EmbedRequest,
    ) -> Result<Embeddings> {
        let dimensions = request.row.dimensions;
        let n_texts: usize = windows.iter().map(Vec::len).sum();
        let mut values = vec![0f32; n_texts * dimensions];
        let mut n_tokens = Vec::with_capacity(n_texts);
        let mut windows = windows.into_iter();
        let mut next = self.tokenize_all(windows.next().unwrap_or_default(), request);
        loop {
            let first = n_tokens.len();
            let about = |error: Error| error.map_text_index(|text| first + text);
            let tokens = next.map_err(about)?;
            n_tokens.extend(tokens.iter().map(|tokens| tokens.len()));
            let write = |text: usize, row: &[f32]| {
                request.row.write(row, &mut values[(first + text) * dimensions..][..dimensions]);
            };
            let compute = || self.engine.model.forward_each(&tokens, write);
            let Some(window) = windows.next() else {
                self.engine.compute(compute).map_err(|error| about(error.into()))?;
                return Ok(Embeddings::of_texts(values, dimensions, n_tokens));
            };
            let tokenize = || self.tokenize_each(window, request).collect();
            // While this thread waits for the tokens, it may start other work of the pool. The model's lock is free then.
            let computed;
            (computed, next) = self.engine.install(|| rayon::join(compute, tokenize));
            computed.map_err(|error| about(error.into()))?;
        }
    }

    /// Tokenizes each text without a prompt. The end-of-text token is appended and the overflow policy is applied, as
    /// for [`embed_documents`](Self::embed_documents). For the tokens of queries, put
    /// [`query_prompt`](Self::query_prompt) before each text.
    ///
    /// # Errors
    ///
    /// [`Error::TextTooLong`](crate::Error::TextTooLong) or [`Error::Text`](crate::Error::Text), as
    /// [`embed_documents`](Self::embed_documents).
    pub fn tokenize(&self, texts: &[impl AsRef<str> + Sync]) -> Result<Vec<Vec<u32>>> {
        let request = EmbedRequest { prompt: String::new(), ..self.request(&EmbedOptions::new())? };
        let tokens = self.tokenize_all(strings(texts).collect(), &request)?;
        Ok(tokens.into_iter().map(Cow::into_owned).collect())
    }

    /// The number of tokens of each text without a prompt, including the end-of-text token. A text with more than
    /// [`max_tokens`](Self::max_tokens) is counted completely.
    ///
    /// # Errors
    ///
    /// [`Error::Text`](crate::Error::Text) if a text cannot be tokenized.
    pub fn count_tokens(&self, texts: &[impl AsRef<str> + Sync]) -> Result<Vec<usize>> {
        let request = self.request(&EmbedOptions::new())?;
        let request = EmbedRequest { prompt: String::new(), max_tokens: usize::MAX, ..request };
        let tokens = self.tokenize_all(strings(texts).collect(), &request)?;
        Ok(tokens.iter().map(|tokens| tokens.len()).collect())
    }

    /// The model's prompt for queries. If the model is a sentence-transformers repository, this is the repository's
    /// prompt for queries, which may be empty. For other models, it contains the
    /// [default instruction](crate::DEFAULT_INSTRUCTION).
    pub fn query_prompt(&self) -> &str {
        self.prompts.query()
    }

    /// The model's prompt for documents. It is empty, unless the model is a sentence-transformers repository with a
    /// prompt for documents.
    pub fn document_prompt(&self) -> &str {
        self.prompts.document()
    }

    /// The model's prompts by name: the prompts of a sentence-transformers repository, or `query` and `document` for
    /// other models.
    pub fn prompts(&self) -> &BTreeMap<String, String> {
        self.prompts.by_name()
    }

    /// The text that `prompt` puts before a string.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPrompt`](crate::Error::NoSuchPrompt) if the model has no prompt of that name.
    pub fn prompt_text(&self, prompt: &Prompt) -> Result<Cow<'_, str>> {
        Ok(match prompt {
            Prompt::Document => self.prompts.document().into(),
            Prompt::Query => self.prompts.query().into(),
            Prompt::Instruction(instruction) => instruct(instruction, "").into(),
            Prompt::Named(name) => self.prompts.named(name)?.into(),
        })
    }

    /// The number of dimensions of the vectors, unless [`EmbedOptions::dimensions`] sets another number.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The largest number of dimensions that vectors of the model can have, see
    /// [`EmbedderBuilder::dimensions`](crate::EmbedderBuilder::dimensions).
    pub fn max_dimensions(&self) -> usize {
        self.engine.model.embedding_size()
    }

    /// The smallest number of dimensions that vectors of the model can have.
    pub fn min_dimensions(&self) -> usize {
        min_dimensions(self.max_dimensions())
    }

    /// The maximum length of a text, in tokens.
    pub fn max_tokens(&self) -> usize {
        self.engine.max_tokens
    }

    /// The precision in which the weights are kept.
    /// [`Precision::Stored`](crate::Precision::Stored) is resolved when the model is loaded.
    pub fn precision(&self) -> Precision {
        self.engine.model.precision()
    }

    /// The arithmetic of the matrix multiplications. With weights in 8 bits or fewer, a matrix multiplication whose
    /// input would lose too much accuracy uses another arithmetic.
    pub fn arithmetic(&self) -> Arithmetic {
        self.engine.model.arithmetic()
    }

    /// How the vector of a text is computed from the hidden states of its tokens.
    pub fn pooling(&self) -> Pooling {
        self.engine.model.pooling()
    }

    /// The number of threads that tokenize the texts of a call and, on the CPU, compute them.
    pub fn threads(&self) -> usize {
        self.engine.install(rayon::current_num_threads)
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.engine.tokenizer
    }

    /// Whether special tokens in strings are parsed.
    pub fn special_tokens(&self) -> SpecialTokens {
        self.special_tokens
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

    /// Checks options and completes them with the embedder's settings.
    pub(crate) fn request(&self, options: &EmbedOptions) -> Result<EmbedRequest> {
        let dimensions = options.dimensions.unwrap_or(self.dimensions);
        check_dimensions(dimensions, self.max_dimensions())?;
        let max_tokens = options.max_tokens.unwrap_or(self.max_tokens());
        check_setting("max_tokens", max_tokens, self.max_tokens())?;
        let normalize = options.normalize.unwrap_or(self.normalize);
        Ok(EmbedRequest {
            prompt: self.prompt_text(&options.prompt)?.into_owned(),
            max_tokens,
            overflow: options.overflow.unwrap_or(self.overflow),
            has_end_of_text: self.tokenizer().appends_end_of_text(),
            row: RowFormat { dimensions, normalize },
        })
    }

    /// The tokens of each text, on the embedder's threads, or on this thread if there is at most one string to tokenize.
    fn tokenize_all<'a>(
        &self,
        texts: Vec<Text<'a>>,
        request: &EmbedRequest,
    ) -> Result<Vec<Cow<'a, [u32]>>> {
        let n_strings = texts.iter().filter(|text| matches!(text, Text::String(_))).count();
        if n_strings <= 1 {
            return texts
                .into_iter()
                .enumerate()
                .map(|text| self.tokenize_nth(text, request))
                .collect();
        }
        self.engine.install(|| self.tokenize_each(texts, request).collect())
    }

    /// The tokens of each text, or the error about the text, computed in parallel on rayon's current pool.
    pub(crate) fn tokenize_each<'a>(
        &self,
        texts: Vec<Text<'a>>,
        request: &EmbedRequest,
    ) -> impl ParallelIterator<Item = Result<Cow<'a, [u32]>>> {
        texts.into_par_iter().enumerate().map(|text| self.tokenize_nth(text, request))
    }

    /// The tokens of a text that is given with its index, or the error about the text.
    fn tokenize_nth<'a>(
        &self,
        (idx, text): (usize, Text<'a>),
        request: &EmbedRequest,
    ) -> Result<Cow<'a, [u32]>> {
        self.tokenize_one(text, request).map_err(|error| error.map_text_index(|_| idx))
    }

    fn tokenize_one<'a>(&self, text: Text<'a>, request: &EmbedRequest) -> Result<Cow<'a, [u32]>> {
        let encode = |text: &str| match request.overflow {
            Overflow::TruncateRight => {
                self.tokenizer().encode_start(text, self.special_tokens, request.max_tokens)
            }
            _ => self.tokenizer().encode(text, self.special_tokens),
        };
        let prompt = request.prompt.as_str();
        let mut tokens = match text {
            Text::String(text) if prompt.is_empty() => encode(&text)?.into(),
            Text::String(text) => encode(&[prompt, &text].concat())?.into(),
            Text::Tokens(tokens) => tokens,
        };
        request.fit(&mut tokens)?;
        Ok(tokens)
    }
}

/// Texts from strings.
fn strings(texts: &[impl AsRef<str>]) -> impl Iterator<Item = Text<'_>> {
    texts.iter().map(|text| Text::from(text.as_ref()))
}

/// Divides texts into windows of strings to tokenize. The first one is small, so that a device starts soon, and each one has
/// about twice as many bytes as the one before it, up to a limit, because the last batch of a window is often small.
fn windows(texts: Vec<Text<'_>>) -> Vec<Vec<Text<'_>>> {
    const FIRST_BYTES: usize = 64 << 10;
    const MOST_BYTES: usize = 1 << 20;
    let (mut windows, mut n_bytes, mut limit) = (vec![Vec::new()], 0, FIRST_BYTES);
    for text in texts {
        if n_bytes >= limit {
            windows.push(Vec::new());
            (n_bytes, limit) = (0, MOST_BYTES.min(2 * limit));
        }
        if let Text::String(text) = &text {
            n_bytes += text.len();
        }
        windows.last_mut().expect("there is a window").push(text);
    }
    windows
}

#[cfg(test)]
mod tests {
    use qwen3_embed_testing::fixtures;

    use super::*;

    #[test]
    fn vectors_and_errors_do_not_depend_on_the_windows() {
        let model = fixtures::model("base");
        let embedder = Embedder::builder(&model).overflow(Overflow::Error).build().unwrap();
        let request = embedder.request(&EmbedOptions::new()).unwrap();
        let text = |i: usize| Text::from(["rain ", "雨", "sun "][i % 3].repeat(i + 1));
        let texts = |n: usize| (0..n).map(text).collect::<Vec<_>>();
        let whole = embedder.embed_with(texts(9), &EmbedOptions::new()).unwrap();
        let embed = |mut texts: Vec<Text<'static>>| {
            let last = texts.split_off(5);
            let middle = texts.split_off(2);
            embedder.embed_windows(vec![texts, middle, last], &request)
        };
        assert_eq!(embed(texts(9)).unwrap(), whole);

        // Without a string, nothing is tokenized in parallel.
        let tokens = [vec![1], vec![1; embedder.max_tokens() + 1]];
        assert_eq!(embedder.embed_tokens(&tokens).unwrap_err().text_index(), Some(1));

        // An error of the tokenizer, and one of the model.
        let too_long = Text::from("word ".repeat(embedder.max_tokens()));
        for (wrong, at) in [(too_long, 1), (Text::from(vec![u32::MAX]), 4)] {
            let mut texts = texts(9);
            texts[at] = wrong;
            assert_eq!(embed(texts).unwrap_err().text_index(), Some(at));
        }
    }

    #[test]
    fn windows_grow_up_to_a_limit_and_keep_the_order() {
        let texts: Vec<Text<'_>> = (0..3000).map(|i| Text::from(format!("{i:01000}"))).collect();
        let windows = windows(texts.clone());
        let sizes: Vec<usize> = windows.iter().map(Vec::len).collect();
        assert_eq!(sizes, [66, 132, 263, 525, 1049, 965]);
        assert_eq!(windows.concat(), texts);
        assert_eq!(super::windows(Vec::new()), [[]]);
        let tokens: Vec<Text<'_>> = vec![Text::from(vec![1; 1000]); 3000];
        assert_eq!(super::windows(tokens).len(), 1);
    }
}
