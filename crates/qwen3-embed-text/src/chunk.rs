use std::ops::Range;
use std::sync::OnceLock;

use text_splitter::{ChunkConfig, ChunkSizer, TextSplitter};

use crate::tokenizer::check_white_space;
use crate::{Error, Result, SpecialTokens, Tokenizer};

/// How [`Tokenizer::chunks`] divides a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkOptions {
    /// Maximum number of tokens of a chunk, with the end-of-text token.
    pub max_tokens: usize,
    /// Maximum number of tokens that a chunk repeats from the end of the chunk before it. Whole sentences are repeated
    /// if they fit.
    pub overlap: usize,
}

/// A part of a text, see [`Tokenizer::chunks`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// The part, without white space at its ends.
    pub text: &'a str,
    /// Where the part is in the text, in bytes.
    pub range: Range<usize>,
    /// Number of tokens, with the end-of-text token.
    pub n_tokens: usize,
}

impl Tokenizer {
    /// Divides a text into chunks that are embedded one by one, for documents that are longer than what a model should
    /// see at once.
    ///
    /// A chunk ends where the text does: at a blank line if one fits, otherwise at a line break, at the end of a
    /// sentence (of any script), of a word, or of a character. Special tokens in the text are tokenized as plain text.
    /// Text between two chunks is white space only. A character that alone has more than `max_tokens` tokens is a
    /// chunk of its own.
    ///
    /// # Errors
    ///
    /// [`Error::ChunkSize`] if `max_tokens` is too small; [`Error::Encode`] or [`Error::WhiteSpace`], with the index 0.
    ///
    /// # Source
    ///
    /// The boundaries are those of Unicode Standard Annex #29, as the crate text-splitter finds them.
    pub fn chunks<'a>(&self, text: &'a str, options: &ChunkOptions) -> Result<Vec<Chunk<'a>>> {
        check_white_space(text)?;
        let &ChunkOptions { max_tokens, overlap } = options;
        let n_added = usize::from(self.appends_end_of_text());
        let capacity = max_tokens.saturating_sub(n_added);
        let too_small = || Error::ChunkSize { max_tokens, overlap, min: overlap + n_added + 1 };
        if capacity == 0 {
            return Err(too_small());
        }
        let sizer = Sizer { tokenizer: self, error: OnceLock::new() };
        let config = ChunkConfig::new(capacity).with_sizer(&sizer).with_overlap(overlap);
        let splitter = TextSplitter::new(config.map_err(|_| too_small())?);
        let mut chunks = Vec::new();
        for (start, mut rest) in splitter.chunk_indices(text) {
            let end = start + rest.len();
            // text-splitter assumes that a longer text never has fewer tokens. Where this is not so, its chunk may be
            // too long.
            while !rest.is_empty() {
                let start = end - rest.len();
                let (text, n_tokens) = sizer.fitting(rest, capacity)?;
                let (range, n_tokens) = (start..start + text.len(), n_tokens + n_added);
                chunks.push(Chunk { text, range, n_tokens });
                rest = rest[text.len()..].trim_start();
            }
        }
        sizer.error.into_inner().map_or(Ok(chunks), Err)
    }
}

/// Counts tokens without the end-of-text token, and keeps the first error.
struct Sizer<'t> {
    tokenizer: &'t Tokenizer,
    error: OnceLock<Error>,
}

impl Sizer<'_> {
    /// The beginning of a text that has at most `capacity` tokens, or the first character of the text, and its number
    /// of tokens.
    fn fitting<'a>(&self, mut text: &'a str, capacity: usize) -> Result<(&'a str, usize)> {
        loop {
            let n_tokens = self.size(text);
            let first = text.chars().next().map_or(0, char::len_utf8);
            if n_tokens <= capacity || first == text.len() {
                return Ok((text, n_tokens));
            }
            let cut = self.tokenizer.cut(text, capacity)?.trim_end();
            text = if cut.is_empty() { &text[..first] } else { cut };
        }
    }
}

impl ChunkSizer for Sizer<'_> {
    fn size(&self, chunk: &str) -> usize {
        match self.tokenizer.encode(chunk, SpecialTokens::PlainText) {
            Ok(tokens) => tokens.len() - usize::from(self.tokenizer.appends_end_of_text()),
            Err(error) => {
                let _ = self.error.set(error);
                0
            }
        }
    }
}
