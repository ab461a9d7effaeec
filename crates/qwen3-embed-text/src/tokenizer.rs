use std::panic::{self, UnwindSafe};
use std::path::Path;

use rayon::prelude::*;
use tokenizers::{
    Encoding, Model, NormalizedString, Normalizer, OffsetType, PreTokenizedString, PreTokenizer,
};

use crate::{Error, Result, Vocabulary};

/// The token that ends every input of a Qwen3 embedding model.
const END_OF_TEXT: &str = "<|endoftext|>";

/// The longest run of white space, in characters, that is given to the tokenizer: half of what its
/// regex engine can hold on its stack.
const MAX_WHITE_SPACE: usize = 500_000;

/// What becomes of a text that spells a special token, such as `<|im_end|>` or `<think>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SpecialTokens {
    /// It is parsed as that token, as transformers does by default.
    #[default]
    Parse,
    /// It is text like any other: nothing that a text contains can become a special token.
    PlainText,
}

/// A token, and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The token's id.
    pub id: u32,
    /// Whether it is a special token, such as `<|endoftext|>`.
    pub special: bool,
    /// The characters that it stands for. One that several tokens make up belongs to all of them.
    pub text: String,
    /// Where they begin in the text, in characters.
    pub start: usize,
    /// Where they end, in characters.
    pub end: usize,
}

/// A model's tokenizer, from its `tokenizer.json` or from the vocabulary of a GGUF file.
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
    /// Whether the post-processor appends it.
    file_appends: bool,
    appends: bool,
}

impl Tokenizer {
    /// Reads the contents of a `tokenizer.json`; `path` is named in errors. What the file says of
    /// truncation and padding is not used.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if it does not parse; [`Error::PostProcessor`] or
    /// [`Error::NoEndOfText`] if it is not the tokenizer of such a model.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self> {
        without_panic(path, || Self::parse(json, path))
    }

    /// Builds the tokenizer of a vocabulary; `path` is named in errors. It gives the tokens of the
    /// `tokenizer.json` of the same vocabulary, and appends `<|endoftext|>` whatever else the
    /// vocabulary's file says.
    ///
    /// # Errors
    ///
    /// [`Error::Vocabulary`] or [`Error::Tokenizer`] if it is not a vocabulary of a Qwen3 model,
    /// [`Error::NoEndOfText`] if it lacks `<|endoftext|>`.
    pub fn from_vocabulary(vocabulary: &Vocabulary<'_>, path: &Path) -> Result<Self> {
        without_panic(path, || {
            let inner = vocabulary.tokenizer(path)?;
            let (end_of_text, _) = end_of_text(&inner, path)?;
            Ok(Self { inner, end_of_text, file_appends: true, appends: true })
        })
    }

    fn parse(json: &[u8], path: &Path) -> Result<Self> {
        let damaged = |source| Error::Tokenizer { path: path.to_path_buf(), source };
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(damaged)?;
        inner.with_truncation(None).map_err(damaged)?.with_padding(None);
        let (end_of_text, file_appends) = end_of_text(&inner, path)?;
        Ok(Self { inner, end_of_text, file_appends, appends: true })
    }

    /// The same tokenizer, but for the end-of-text token, which is appended only where the post-processor of
    /// `tokenizer.json` does: for models that do not need it, because they do not pool the last token.
    pub fn as_its_file_says(self) -> Self {
        Self { appends: self.file_appends, ..self }
    }

    /// Whether every text's tokens end with the end-of-text token.
    pub fn appends_end_of_text(&self) -> bool {
        self.appends
    }

    /// The tokens of `text`, followed by one end-of-text token, unless
    /// [`as_its_file_says`](Self::as_its_file_says) leaves it away.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] or [`Error::WhiteSpace`], naming text 0.
    pub fn encode(&self, text: &str, special_tokens: SpecialTokens) -> Result<Vec<u32>> {
        self.encode_nth(0, text, special_tokens)
    }

    /// [`encode`](Self::encode) for many texts, in parallel on rayon's current pool.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] or [`Error::WhiteSpace`] with the index of a text that could not be
    /// tokenized.
    pub fn encode_batch(
        &self,
        texts: &[impl AsRef<str> + Sync],
        special_tokens: SpecialTokens,
    ) -> Result<Vec<Vec<u32>>> {
        let texts = texts.par_iter().enumerate();
        texts.map(|(i, text)| self.encode_nth(i, text.as_ref(), special_tokens)).collect()
    }

    /// The tokens of `text` as [`encode`](Self::encode) gives them, and what each of them stands for.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] or [`Error::WhiteSpace`], naming text 0.
    pub fn pieces(&self, text: &str, special_tokens: SpecialTokens) -> Result<Vec<Piece>> {
        check_white_space(text)?;
        let encoding = match special_tokens {
            SpecialTokens::Parse => self.inner.encode_char_offsets(text, false),
            SpecialTokens::PlainText => self.encode_plain(text, OffsetType::Char),
        };
        let encoding = encoding.map_err(|source| Error::Encode { text: 0, source })?;
        // Where each character begins, in bytes, and where the last ends.
        let starts = text.char_indices().map(|(at, _)| at);
        let starts: Vec<usize> = starts.chain([text.len()]).collect();
        let tokens = encoding.get_ids().iter().zip(encoding.get_tokens());
        let piece = |((&id, token), &(start, end)): ((&u32, &String), &(usize, usize))| Piece {
            id,
            special: self.is_special(token),
            text: text[starts[start]..starts[end]].to_owned(),
            start,
            end,
        };
        let mut pieces: Vec<Piece> = tokens.zip(encoding.get_offsets()).map(piece).collect();
        if self.appends {
            let end = starts.len() - 1;
            let token = self.inner.id_to_token(self.end_of_text).unwrap_or_default();
            let (id, special) = (self.end_of_text, self.is_special(&token));
            pieces.push(Piece { id, special, text: token, start: end, end });
        }
        Ok(pieces)
    }

    /// The text that `tokens` stand for, without special tokens if `skips_special`. Bytes that are no whole
    /// character become U+FFFD.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchToken`] if one is not in the vocabulary; [`Error::Decode`] if the tokenizer refuses
    /// them.
    pub fn decode(&self, tokens: &[u32], skips_special: bool) -> Result<String> {
        let is_unknown = |&id: &u32| self.inner.id_to_token(id).is_none();
        if let Some(position) = tokens.iter().position(is_unknown) {
            return Err(Error::NoSuchToken { position, id: tokens[position] });
        }
        self.inner.decode(tokens, skips_special).map_err(|source| Error::Decode { source })
    }

    /// The beginning of `text`, taken as plain text, that has at most `max_tokens` tokens. It ends where a
    /// token and a character end.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`] or [`Error::WhiteSpace`], naming text 0.
    pub fn cut<'a>(&self, text: &'a str, max_tokens: usize) -> Result<&'a str> {
        let encoding = self.encode_spans(0, text)?;
        let spans = encoding.get_offsets();
        if spans.len() <= max_tokens {
            return Ok(text);
        }
        // A character that several tokens make up ends where the first token does that is left out.
        let end = spans[max_tokens].0;
        let end = (0..=end).rev().find(|&at| text.is_char_boundary(at));
        Ok(&text[..end.unwrap_or(0)])
    }

    /// The id of the token that ends every input.
    pub fn end_of_text(&self) -> u32 {
        self.end_of_text
    }

    /// Number of tokens that texts are made of, without the added (special) ones.
    pub fn base_vocab_size(&self) -> usize {
        self.inner.get_vocab_size(false)
    }

    /// The id of a token, special or not, that is written so.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    fn is_special(&self, token: &str) -> bool {
        self.inner.get_added_vocabulary().is_special_token(token)
    }

    /// The tokens of `text` alone, special tokens parsed.
    pub(crate) fn encode_special(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|source| Error::Encode { text: 0, source })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of the text of index `text`, `s`, taken as plain text, and the bytes of it that each of
    /// them stands for. A character that takes several tokens belongs to all of them.
    pub(crate) fn encode_spans(&self, text: usize, s: &str) -> Result<Encoding> {
        check_white_space_of(text, s)?;
        self.encode_plain(s, OffsetType::Byte).map_err(|source| Error::Encode { text, source })
    }

    fn encode_nth(&self, text: usize, s: &str, special_tokens: SpecialTokens) -> Result<Vec<u32>> {
        check_white_space_of(text, s)?;
        let encoding = match special_tokens {
            SpecialTokens::Parse => self.inner.encode_fast(s, false),
            SpecialTokens::PlainText => self.encode_plain(s, OffsetType::None),
        };
        let encoding = encoding.map_err(|source| Error::Encode { text, source })?;
        let end = self.appends.then_some(self.end_of_text);
        let mut tokens = Vec::with_capacity(encoding.len() + 1);
        tokens.extend(encoding.get_ids());
        tokens.extend(end);
        Ok(tokens)
    }

    /// The pipeline without the step that looks for added tokens.
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

/// Turns a panic into an error: the tokenizers crate panics on some damaged files, on a template that
/// names a token which it does not define, for instance.
fn without_panic(
    path: &Path,
    load: impl FnOnce() -> Result<Tokenizer> + UnwindSafe,
) -> Result<Tokenizer> {
    panic::catch_unwind(load).unwrap_or_else(|_| {
        let source = "the parser panicked".into();
        Err(Error::Tokenizer { path: path.to_path_buf(), source })
    })
}

/// Refuses a text whose white space the tokenizer's regex engine cannot follow, as tokenizing it does: for
/// callers that put texts together and want to know which of them it is.
///
/// # Errors
///
/// [`Error::WhiteSpace`], naming text 0.
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

/// Length of the longest run of white space, in characters; 0 for texts too short to matter.
fn longest_white_space(text: &str) -> usize {
    if text.len() <= MAX_WHITE_SPACE {
        return 0;
    }
    text.split(|c: char| !c.is_whitespace()).map(|run| run.chars().count()).max().unwrap_or(0)
}

/// The token that the post-processor appends, or the vocabulary's `<|endoftext|>` if it adds none, and
/// whether it does.
///
/// The tokenizer's own `eos_token` is not asked: some repositories set it to `<|im_end|>`.
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
