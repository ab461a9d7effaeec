use std::path::Path;

use crate::Result;
use crate::checkpoint::file::MappedFile;
use crate::checkpoint::gguf::Header;

/// The tokenizer's part of a GGUF file, as it is written there: for the crate that knows texts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vocabulary {
    /// `tokenizer.ggml.model`: the kind of tokenizer.
    pub model: String,
    /// `tokenizer.ggml.pre`: how a text is split before it.
    pub pre_tokenizer: String,
    /// `tokenizer.ggml.tokens`: the tokens, in the order of their ids.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`: for each token what it is.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: pairs of tokens with a space between them, the first to be merged first.
    pub merges: Vec<String>,
}

impl Vocabulary {
    /// Reads the vocabulary of the GGUF file at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) or [`Error::Gguf`](crate::Error::Gguf) if the file cannot be
    /// read, [`Error::Field`](crate::Error::Field) if a part of the vocabulary is missing or of
    /// another type.
    pub fn read(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let header = Header::parse(file.bytes(), path)?;
        Ok(Self {
            model: header.string("tokenizer.ggml.model")?.to_owned(),
            pre_tokenizer: header.string("tokenizer.ggml.pre")?.to_owned(),
            tokens: header.strings("tokenizer.ggml.tokens")?,
            token_types: header.integers("tokenizer.ggml.token_type")?,
            merges: header.strings("tokenizer.ggml.merges")?,
        })
    }
}
