use std::collections::VecDeque;
use std::iter::Fuse;

use rayon::prelude::*;

use crate::embed_request::EmbedRequest;
use crate::{EmbedOptions, Embedder, Error, Result, Text};

/// The maximum number of texts in a window. A window is a list of texts that are taken from the iterator and embedded
/// together.
const WINDOW_TEXTS: usize = 1024;

/// A window is complete when its texts have at least this many bytes, as UTF-8 or as token ids.
const WINDOW_BYTES: usize = 1 << 20;

/// The embedding of one text, see [`Embedder::embed_iter`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Embedding {
    /// The vector.
    pub vector: Vec<f32>,
    /// The number of tokens of the text, including its prompt and the end-of-text token.
    pub n_tokens: usize,
}

/// Embeds the texts of an iterator, see [`Embedder::embed_iter`].
#[derive(Debug)]
#[must_use = "iterators compute nothing unless they are consumed"]
pub struct EmbedIter<'e, I> {
    embedder: &'e Embedder,
    request: EmbedRequest,
    texts: Fuse<I>,
    /// Embeddings of the current window that have not been returned yet.
    ready: VecDeque<Result<Embedding>>,
    /// The number of texts that were taken from `texts`.
    n_taken: usize,
    /// Whether an error that is not about a text has ended the iteration.
    has_failed: bool,
}

impl Embedder {
    /// Embeds the texts of an iterator of any length with limited memory.
    ///
    /// The returned iterator yields one result for each text, in the order of the texts. It takes a window of texts
    /// from `texts`, at most 1,024 texts and about 1 MiB, and embeds them. It takes the next window when all results of
    /// the current window have been taken. The memory holds the texts, tokens and vectors of one window, and the
    /// activations of one batch: see [`EmbedderBuilder::batch_tokens`](crate::EmbedderBuilder::batch_tokens).
    /// The vectors are the same as those of [`embed_with`](Self::embed_with).
    ///
    /// # Errors
    ///
    /// The call itself fails if an option is out of range. The iterator yields an error in the place of a text that
    /// cannot be embedded, with the text's index in `texts`, and goes on with the next text. After an error that is
    /// not about a text ([`Error::text_index`](crate::Error::text_index) is `None`) the iterator ends.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::{BufRead, Cursor};
    ///
    /// use qwen3_embed::{EmbedOptions, Embedder};
    ///
    /// # let embedder = Embedder::builder(qwen3_embed::Source::demo()).build()?;
    /// let lines = Cursor::new("It rains.\nThe sun shines.\n").lines().map_while(Result::ok);
    /// for embedding in embedder.embed_iter(lines, &EmbedOptions::new())? {
    ///     let embedding = embedding?;
    ///     println!("{} tokens: {:?}", embedding.n_tokens, embedding.vector);
    /// }
    /// # Ok::<(), qwen3_embed::Error>(())
    /// ```
    pub fn embed_iter<'a, I>(
        &self,
        texts: I,
        options: &EmbedOptions,
    ) -> Result<EmbedIter<'_, I::IntoIter>>
    where
        I: IntoIterator<Item: Into<Text<'a>>>,
    {
        Ok(EmbedIter {
            embedder: self,
            request: self.request(options)?,
            texts: texts.into_iter().fuse(),
            ready: VecDeque::new(),
            n_taken: 0,
            has_failed: false,
        })
    }
}

impl<'a, I> Iterator for EmbedIter<'_, I>
where
    I: Iterator<Item: Into<Text<'a>>>,
{
    type Item = Result<Embedding>;

    fn next(&mut self) -> Option<Result<Embedding>> {
        if self.ready.is_empty() && !self.has_failed {
            let window = next_window(&mut self.texts);
            let first = self.n_taken;
            self.n_taken += window.len();
            match self.embed(window, first) {
                Ok(embeddings) => self.ready = embeddings.into(),
                Err(error) => {
                    self.has_failed = true;
                    return Some(Err(error));
                }
            }
        }
        self.ready.pop_front()
    }
}

impl<I> EmbedIter<'_, I> {
    /// Embeds the texts of a window. `first` is the index of the first text. If a text cannot be embedded, the error
    /// takes the place of its embedding.
    fn embed(&self, window: Vec<Text<'_>>, first: usize) -> Result<Vec<Result<Embedding>>> {
        let (embedder, request) = (self.embedder, &self.request);
        let engine = &embedder.engine;
        let about = |error: Error, text: usize| error.map_text_index(|_| first + text);
        let tokens: Vec<Result<_>> =
            engine.install(|| embedder.tokenize_each(window, request).collect());
        let mut embeddings = Vec::with_capacity(tokens.len());
        // The texts that have no vector yet.
        let mut pending = Vec::with_capacity(tokens.len());
        for (text, tokens) in tokens.into_iter().enumerate() {
            let checked = tokens.and_then(|tokens| {
                engine.model.check_tokens(&[&tokens])?;
                Ok(tokens)
            });
            embeddings.push(match checked {
                Ok(tokens) => {
                    let n_tokens = tokens.len();
                    pending.push((text, tokens));
                    Ok(Embedding { vector: Vec::new(), n_tokens })
                }
                Err(error) => Err(about(error, text)),
            });
        }
        loop {
            let texts: Vec<&[u32]> = pending.iter().map(|(_, tokens)| &**tokens).collect();
            let write = |i: usize, row: &[f32]| {
                if let Ok(Embedding { vector, .. }) = &mut embeddings[pending[i].0] {
                    vector.resize(request.row.dimensions, 0.0);
                    request.row.write(row, vector);
                }
            };
            let computed = engine.compute(|| engine.model.forward_each(&texts, write));
            let Err(error) = computed.map_err(Error::from) else { return Ok(embeddings) };
            // A vector that is not finite makes its whole batch fail, so the other texts of the batch are computed
            // again.
            let Some(failed) = error.text_index() else { return Err(error) };
            let text = pending[failed].0;
            embeddings[text] = Err(about(error, text));
            pending
                .retain(|&(text, _)| embeddings[text].as_ref().is_ok_and(|e| e.vector.is_empty()));
        }
    }
}

/// The texts of the next window.
fn next_window<'a, T: Into<Text<'a>>>(texts: &mut impl Iterator<Item = T>) -> Vec<Text<'a>> {
    let (mut window, mut n_bytes) = (Vec::new(), 0);
    while window.len() < WINDOW_TEXTS && n_bytes < WINDOW_BYTES {
        let Some(text) = texts.next() else { break };
        let text = text.into();
        n_bytes += text.n_bytes();
        window.push(text);
    }
    window
}
