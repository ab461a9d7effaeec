use std::path::Path;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::{Error, Result};

/// The vocabulary of a GGUF file, from which [`Tokenizer::from_vocabulary`] builds a tokenizer without a
/// `tokenizer.json`.
///
/// [`Tokenizer::from_vocabulary`]: crate::Tokenizer::from_vocabulary
#[derive(Debug, Clone, Copy)]
pub struct Vocabulary<'a> {
    /// The kind of tokenizer. Only `gpt2` (byte-level BPE) is supported.
    pub model: &'a str,
    /// The name of the rule that splits a text before BPE. Only `qwen2` is supported. Converters write `qwen2` for
    /// Qwen3 models too.
    pub pre_tokenizer: &'a str,
    /// The tokens in the order of their ids. Bytes are written as characters, in the notation of byte-level BPE.
    pub tokens: &'a [String],
    /// The type of each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: &'a [i32],
    /// The merges of BPE, the one with the highest priority first. Each merge is two tokens with a space between them.
    pub merges: &'a [String],
}

const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// The regular expression with which Qwen2 and Qwen3 split a text before BPE.
const SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// The pre-tokenizer of Qwen2 and Qwen3.
pub(crate) fn pre_tokenizer() -> tokenizers::Result<PreTokenizerWrapper> {
    let split = SplitPattern::Regex(SPLIT.to_owned());
    let split = Split::new(split, SplitDelimiterBehavior::Isolated, false)?;
    let byte_level = ByteLevel::new(false, false, false);
    Ok(Sequence::new(vec![split.into(), byte_level.into()]).into())
}

impl Vocabulary<'_> {
    /// Builds the tokenizer that the `tokenizer.json` of this vocabulary describes.
    pub(crate) fn tokenizer(&self, path: &Path) -> Result<tokenizers::Tokenizer> {
        let damaged = |source| Error::Tokenizer { path: path.to_path_buf(), source };
        self.check(path)?;
        let (vocab, added) = self.split_added();
        self.check_bytes(&vocab, path)?;
        let bpe = BPE::builder().vocab_and_merges(vocab, self.split_merges(path)?);
        let mut tokenizer = tokenizers::Tokenizer::new(bpe.build().map_err(damaged)?);
        tokenizer.with_normalizer(Some(NFC)).map_err(damaged)?;
        tokenizer.with_pre_tokenizer(Some(pre_tokenizer().map_err(damaged)?));
        let tokens = added.iter().map(|&(id, special)| {
            AddedToken::from(self.tokens[id].as_str(), special).normalized(false)
        });
        tokenizer.add_tokens(tokens).map_err(damaged)?;
        for (id, _) in added {
            let (token, expected) = (&self.tokens[id], id.to_string());
            let got = tokenizer.token_to_id(token);
            if got != Some(id as u32) {
                let what = format!("the id of the added token `{token}`");
                return Err(vocabulary(path, what, expected, format!("{got:?}")));
            }
        }
        Ok(tokenizer)
    }

    /// Checks that the fields have supported values, and that no token occurs twice.
    fn check(&self, path: &Path) -> Result<()> {
        let (model, pre_tokenizer) = (self.model.to_owned(), self.pre_tokenizer.to_owned());
        if model != "gpt2" {
            return Err(vocabulary(path, "the kind of tokenizer", "gpt2", model));
        }
        if pre_tokenizer != "qwen2" {
            return Err(vocabulary(path, "the pre-tokenizer", "qwen2", pre_tokenizer));
        }
        let (n_tokens, n_types) = (self.tokens.len(), self.token_types.len());
        if n_tokens != n_types {
            let (expected, got) = (n_tokens.to_string(), n_types.to_string());
            return Err(vocabulary(path, "the number of token types", expected, got));
        }
        if let Some(id) = self.token_types.iter().position(|kind| !(1..=6).contains(kind)) {
            let got = self.token_types[id].to_string();
            return Err(vocabulary(path, format!("the type of token {id}"), "1 to 6", got));
        }
        let mut sorted: Vec<&String> = self.tokens.iter().collect();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => {
                Err(vocabulary(path, format!("token `{}`", pair[0]), "one entry", "two entries"))
            }
            None => Ok(()),
        }
    }

    /// Splits the tokens into BPE tokens and added tokens. The flag of an added token says whether the token is
    /// special. Unused tokens are in neither list.
    fn split_added(&self) -> (Vocab, Vec<(usize, bool)>) {
        let (mut vocab, mut added) = (Vocab::default(), Vec::new());
        for (id, (token, kind)) in self.tokens.iter().zip(self.token_types).enumerate() {
            match *kind {
                CONTROL | USER_DEFINED => added.push((id, *kind == CONTROL)),
                UNUSED => {}
                _ => drop(vocab.insert(token.clone(), id as u32)),
            }
        }
        // The tokenizers crate gives added tokens the ids after the last token of the vocabulary, unless the vocabulary
        // contains the added tokens. If their ids are different, they are therefore put into the vocabulary.
        if !added.iter().map(|(id, _)| *id).eq((vocab.len()..).take(added.len())) {
            vocab.extend(added.iter().map(|&(id, _)| (self.tokens[id].clone(), id as u32)));
        }
        (vocab, added)
    }

    /// Checks that every byte has a token. Otherwise texts would silently lose bytes.
    fn check_bytes(&self, vocab: &Vocab, path: &Path) -> Result<()> {
        let alphabet = ByteLevel::alphabet();
        match alphabet.iter().filter(|byte| !vocab.contains_key(&byte.to_string())).count() {
            0 => Ok(()),
            missing => {
                let got = format!("{} of them", alphabet.len() - missing);
                Err(vocabulary(path, "the tokens of single bytes", "all 256", got))
            }
        }
    }

    fn split_merges(&self, path: &Path) -> Result<Merges> {
        let pair = |(rank, merge): (usize, &String)| match merge.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => Ok((left.to_owned(), right.to_owned())),
            _ => {
                let (what, got) = (format!("merge {rank}"), format!("`{merge}`"));
                Err(vocabulary(path, what, "two tokens with a space between them", got))
            }
        };
        self.merges.iter().enumerate().map(pair).collect()
    }
}

fn vocabulary(
    path: &Path,
    what: impl Into<String>,
    expected: impl Into<String>,
    got: impl Into<String>,
) -> Error {
    let path = path.to_path_buf();
    Error::Vocabulary { path, what: what.into(), expected: expected.into(), got: got.into() }
}
