use std::ops::Range;
use std::panic::{self, UnwindSafe};
use std::path::Path;

use rayon::prelude::*;
use tokenizers::{
    Encoding, Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer,
};

use crate::parts;
use crate::{Error, Result, TruncationSide, Vocabulary, truncate};

/// The token at the end of every input of a Qwen3 embedding model.
const END_OF_TEXT: &str = "<|endoftext|>";

/// The longest run of white space, in characters, that is passed to the tokenizer. The stack of its regex engine
/// overflows at twice this length.
const MAX_WHITE_SPACE: usize = 500_000;

/// How text that spells a special token, such as `<|im_end|>` or `<think>`, is tokenized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SpecialTokens {
    /// The text becomes the special token. This is also the default in transformers.
    #[default]
    Parse,
    /// The text is tokenized as plain text, so that no text can contain a special token.
    PlainText,
}

/// A token and the part of the text that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The token id.
    pub id: u32,
    /// Whether the token is special, such as `<|endoftext|>`.
    pub special: bool,
    /// The part of the text. If a character consists of several tokens, each of these tokens has the whole character.
    pub text: String,
    /// Start of the part, in characters.
    pub start: usize,
    /// End of the part, in characters.
    pub end: usize,
}

/// The tokenizer of a model, from its `tokenizer.json` or from the vocabulary of a GGUF file.
///
/// # Examples
///
/// ```no_run
/// use std::path::Path;
///
/// use qwen3_embed_text::{SpecialTokens, Tokenizer};
///
/// let path = Path::new("Qwen3-Embedding-0.6B/tokenizer.json");
/// let tokenizer = Tokenizer::from_json(&std::fs::read(path)?, path)?;
/// let tokens = tokenizer.encode("The weather is great today", SpecialTokens::Parse)?;
/// assert_eq!(tokens.last(), Some(&tokenizer.end_of_text()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end_of_text: u32,
    /// Whether the post-processor of the file appends the end-of-text token.
    file_appends: bool,
    /// Whether [`Tokenizer::encode`] appends the end-of-text token.
    appends: bool,
    /// The length of the parts in which a text is tokenized, in bytes.
    part_length: usize,
}

/// The tokens of a text without an end-of-text token, and the byte range of each token in the text. If a character
/// takes several tokens, the range of each of them is the whole character.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    pub(crate) ids: Vec<u32>,
    pub(crate) ranges: Vec<Range<usize>>,
}

impl Tokenizer {
    /// Parses the contents of a `tokenizer.json`. `path` is for error messages only. The truncation and padding
    /// settings of the file are ignored.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if the file cannot be parsed; [`Error::PostProcessor`] or [`Error::NoEndOfText`] if it is
    /// not the tokenizer of a Qwen3 embedding model or reranker.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self> {
        without_panic(path, || Self::parse(json, path))
    }

    /// Builds the tokenizer of a GGUF file. `path` is for error messages only.
    ///
    /// The tokenizer gives the same tokens as the `tokenizer.json` of the same vocabulary. It appends `<|endoftext|>`,
    /// whatever the GGUF file says about its end-of-text token.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] or [`Error::Tokenizer`] if the vocabulary is not that of a Qwen3 model,
    /// [`Error::NoEndOfText`] if it lacks `<|endoftext|>`.
    pub fn from_vocabulary(vocabulary: &Vocabulary<'_>, path: &Path) -> Result<Self> {
        without_panic(path, || {
            let inner = vocabulary.tokenizer(path)?;
            let (end_of_text, _) = end_of_text(&inner, path)?;
            let part_length = parts::part_length(&inner);
            Ok(Self { inner, end_of_text, file_appends: true, appends: true, part_length })
        })
    }

    fn parse(json: &[u8], path: &Path) -> Result<Self> {
        let damaged = |source| Error::Tokenizer { path: path.to_path_buf(), source };
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(damaged)?;
        inner.with_truncation(None).map_err(damaged)?.with_padding(None);
        let (end_of_text, file_appends) = end_of_text(&inner, path)?;
        let part_length = parts::part_length(&inner);
        Ok(Self { inner, end_of_text, file_appends, appends: true, part_length })
    }

    /// Makes [`Tokenizer::encode`] append the end-of-text token only if the post-processor in `tokenizer.json` appends
    /// this token.
    ///
    /// Only last-token pooling needs the end-of-text token. Models with another pooling follow their file.
    pub fn follow_file_for_end_of_text(self) -> Self {
        Self { appends: self.file_appends, ..self }
    }

    /// Whether [`Tokenizer::encode`] appends the end-of-text token.
    pub fn appends_end_of_text(&self) -> bool {
        self.appends
    }

    /// Tokenizes a text and appends one end-of-text token, unless
    /// [`follow_file_for_end_of_text`](Self::follow_file_for_end_of_text) has turned this off.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] or [`Error::WhiteSpace`], with the index 0.
    pub fn encode(&self, text: &str, special_tokens: SpecialTokens) -> Result<Vec<u32>> {
        self.encode_nth(0, text, special_tokens, usize::MAX)
    }

    /// Tokenizes a text like [`encode`](Self::encode), and removes tokens from its end until there are at most
    /// `max_tokens`, like [`truncate`] with [`TruncationSide::Right`]. Most of the part of a long text that is removed
    /// is not tokenized.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] or [`Error::WhiteSpace`], with the index 0.
    pub fn encode_start(
        &self,
        text: &str,
        special_tokens: SpecialTokens,
        max_tokens: usize,
    ) -> Result<Vec<u32>> {
        let mut tokens = self.encode_nth(0, text, special_tokens, max_tokens)?;
        if self.appends {
            truncate(&mut tokens, max_tokens, TruncationSide::Right);
        } else {
            tokens.truncate(max_tokens);
        }
        Ok(tokens)
    }

    /// Tokenizes many texts like [`encode`](Self::encode), in parallel on rayon's current pool.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] or [`Error::WhiteSpace`] with the index of a text that could not be tokenized.
    pub fn encode_batch(
        &self,
        texts: &[impl AsRef<str> + Sync],
        special_tokens: SpecialTokens,
    ) -> Result<Vec<Vec<u32>>> {
        let texts = texts.par_iter().enumerate();
        let encode = |(i, text): (usize, &_)| {
            self.encode_nth(i, AsRef::as_ref(text), special_tokens, usize::MAX)
        };
        texts.map(encode).collect()
    }

    /// Tokenizes a text like [`encode`](Self::encode), and returns the part of the text that each token stands for.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] or [`Error::WhiteSpace`], with the index 0.
    pub fn pieces(&self, text: &str, special_tokens: SpecialTokens) -> Result<Vec<Piece>> {
        let Spans { ids, ranges } = self.encode_spans(0, text, special_tokens, usize::MAX)?;
        // The byte offset of each character, and of the end of the text.
        let starts = text.char_indices().map(|(at, _)| at);
        let starts: Vec<usize> = starts.chain([text.len()]).collect();
        let position = |byte: usize| starts.partition_point(|&at| at < byte);
        let piece = |(id, range): (u32, Range<usize>)| {
            let special = self.is_special(&self.inner.id_to_token(id).unwrap_or_default());
            let (start, end) = (position(range.start), position(range.end));
            Piece { id, special, text: text[starts[start]..starts[end]].to_owned(), start, end }
        };
        let mut pieces: Vec<Piece> = ids.into_iter().zip(ranges).map(piece).collect();
        if self.appends {
            let end = starts.len() - 1;
            let token = self.inner.id_to_token(self.end_of_text).unwrap_or_default();
            let (id, special) = (self.end_of_text, self.is_special(&token));
            pieces.push(Piece { id, special, text: token, start: end, end });
        }
        Ok(pieces)
    }

    /// Turns token ids into text. If `skip_special` is true, special tokens are left out. Bytes that do not form a
    /// whole character become U+FFFD.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownTokenId`] if an id is not in the vocabulary; [`Error::Decode`] if the tokenizer cannot decode
    /// the ids.
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        let is_unknown = |&id: &u32| self.inner.id_to_token(id).is_none();
        if let Some(position) = tokens.iter().position(is_unknown) {
            return Err(Error::UnknownTokenId { position, id: tokens[position] });
        }
        self.inner.decode(tokens, skip_special).map_err(|source| Error::Decode { source })
    }

    /// The longest prefix of `text` with at most `max_tokens` tokens. Special tokens in the text are tokenized as plain
    /// text, and no character is split.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] or [`Error::WhiteSpace`], with the index 0.
    pub fn cut<'a>(&self, text: &'a str, max_tokens: usize) -> Result<&'a str> {
        let n_tokens = max_tokens.saturating_add(1);
        let Spans { ranges, .. } =
            self.encode_spans(0, text, SpecialTokens::PlainText, n_tokens)?;
        // If the first token that is left out begins inside a character, the whole character is left out.
        let end = ranges.get(max_tokens).map_or(text.len(), |range| range.start);
        Ok(until(text, end))
    }

    /// The id of the end-of-text token.
    pub fn end_of_text(&self) -> u32 {
        self.end_of_text
    }

    /// Number of tokens in the vocabulary without added tokens. Special tokens are added tokens.
    pub fn base_vocab_size(&self) -> usize {
        self.inner.get_vocab_size(false)
    }

    /// The id of a token, special or not, by its spelling.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    fn is_special(&self, token: &str) -> bool {
        self.inner.get_added_vocabulary().is_special_token(token)
    }

    /// Tokenizes a text with special tokens, without an end-of-text token.
    pub(crate) fn encode_special(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|source| Error::Encode { text: 0, source })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Tokenizes `s` without an end-of-text token. If `s` is long and has more than `n_tokens` tokens, the tokens after
    /// these may be left out. `text` is the index of the text in errors.
    pub(crate) fn encode_spans(
        &self,
        text: usize,
        s: &str,
        special_tokens: SpecialTokens,
        n_tokens: usize,
    ) -> Result<Spans> {
        let mut spans = Spans::default();
        self.encode_parts(text, s, special_tokens, OffsetType::Byte, |start, encoding| {
            spans.ids.extend(encoding.get_ids());
            let ranges = encoding.get_offsets().iter();
            spans.ranges.extend(ranges.map(|range| start + range.0..start + range.1));
            spans.ids.len() < n_tokens
        })?;
        Ok(spans)
    }

    fn encode_nth(
        &self,
        text: usize,
        s: &str,
        special_tokens: SpecialTokens,
        n_tokens: usize,
    ) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        self.encode_parts(text, s, special_tokens, OffsetType::None, |_, encoding| {
            tokens.extend(encoding.get_ids());
            tokens.len() < n_tokens
        })?;
        tokens.extend(self.appends.then_some(self.end_of_text));
        Ok(tokens)
    }

    /// Tokenizes a text in parts and gives `take` the offset of each part in bytes and its tokens, until `take` returns
    /// false.
    fn encode_parts(
        &self,
        text: usize,
        s: &str,
        special_tokens: SpecialTokens,
        offsets: OffsetType,
        mut take: impl FnMut(usize, &Encoding) -> bool,
    ) -> Result<()> {
        check_white_space_of(text, s)?;
        for range in parts::parts(s, self.part_length) {
            let (start, part) = (range.start, &s[range]);
            let encoding = match (special_tokens, offsets) {
                (SpecialTokens::PlainText, offsets) => self.encode_plain(part, offsets),
                (SpecialTokens::Parse, OffsetType::None) => self.inner.encode_fast(part, false),
                (SpecialTokens::Parse, _) => self.inner.encode(part, false),
            };
            let encoding = encoding.map_err(|source| Error::Encode { text, source })?;
            if !take(start, &encoding) {
                break;
            }
        }
        Ok(())
    }

    /// Runs the steps of the tokenizers crate, except for the step that looks for added tokens.
    fn encode_plain(&self, text: &str, offsets: OffsetType) -> tokenizers::Result<Encoding> {
        let mut normalized = NormalizedString::from(text);
        if let Some(normalizer) = self.inner.get_normalizer() {
            normalizer.normalize(&mut normalized)?;
        }
        let mut pieces = PreTokenizedString::from(normalized);
        if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| self.inner.get_model().tokenize(piece.get()))?;
        pieces.into_encoding(None, 0, offsets)
    }
}

/// The text until the byte `end`, without the character that contains this byte.
pub(crate) fn until(text: &str, end: usize) -> &str {
    let end = (0..=end).rev().find(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or(0)]
}

/// Turns a panic into an error. The tokenizers crate panics on some damaged files, for example if the template of the
/// post-processor contains a token that the file does not define.
fn without_panic(
    path: &Path,
    load: impl FnOnce() -> Result<Tokenizer> + UnwindSafe,
) -> Result<Tokenizer> {
    panic::catch_unwind(load).unwrap_or_else(|_| {
        let source = "the parser panicked".into();
        Err(Error::Tokenizer { path: path.to_path_buf(), source })
    })
}

/// Checks that a text does not have more white space in a row than the tokenizer supports.
///
/// Tokenizing does this check too. Callers that join several texts use this function to find the text that fails the
/// check.
///
/// # Errors
///
/// [`Error::WhiteSpace`], with the index 0.
pub fn check_white_space(text: &str) -> Result<()> {
    check_white_space_of(0, text)
}

fn check_white_space_of(text: usize, s: &str) -> Result<()> {
    let got = longest_white_space(s);
    if got > MAX_WHITE_SPACE {
        return Err(Error::WhiteSpace { text, got, limit: MAX_WHITE_SPACE });
    }
    Ok(())
}

/// Length of the longest run of white space, in characters. Returns 0 for texts that are not longer than the limit.
fn longest_white_space(text: &str) -> usize {
    if text.len() <= MAX_WHITE_SPACE {
        return 0;
    }
    text.split(|c: char| !c.is_whitespace()).map(|run| run.chars().count()).max().unwrap_or(0)
}

/// The id of the end-of-text token, and whether the post-processor appends this token. The end-of-text token is the
/// token that the post-processor appends, or `<|endoftext|>` if the post-processor appends none.
///
/// The setting `eos_token` of `tokenizer_config.json` is not used, because some repositories set it to `<|im_end|>`.
fn end_of_text(tokenizer: &tokenizers::Tokenizer, path: &Path) -> Result<(u32, bool)> {
    let encode = |add_special_tokens| match tokenizer.encode_fast("a", add_special_tokens) {
        Ok(encoding) => Ok(encoding.get_ids().to_vec()),
        Err(source) => Err(Error::Tokenizer { path: path.to_path_buf(), source }),
    };
    let (bare, processed) = (encode(false)?, encode(true)?);
    match processed.strip_prefix(bare.as_slice()) {
        Some(&[end_of_text]) => Ok((end_of_text, true)),
        Some([]) => match tokenizer.token_to_id(END_OF_TEXT) {
            Some(end_of_text) => Ok((end_of_text, false)),
            None => Err(Error::NoEndOfText { path: path.to_path_buf(), expected: END_OF_TEXT }),
        },
        _ => Err(Error::PostProcessor { path: path.to_path_buf(), bare, processed }),
    }
}
