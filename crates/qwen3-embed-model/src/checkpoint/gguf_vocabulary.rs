use crate::Result;
use crate::checkpoint::gguf::Header;

/// The tokenizer that a GGUF file contains, as it is stored there. `qwen3_embed_text` makes a tokenizer of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`: the kind of tokenizer.
    pub model: String,
    /// `tokenizer.ggml.pre`: the rules by which a text is split before byte-pair encoding.
    pub pre_tokenizer: String,
    /// `tokenizer.ggml.tokens`: the tokens in the order of their ids.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`: the kind of each token, as a number of ggml's.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: pairs of tokens, separated by a space, in the order in which they are merged.
    pub merges: Vec<String>,
}

impl GgufVocabulary {
    /// Reads the vocabulary from a file's metadata.
    pub(crate) fn read(header: &Header) -> Result<Self> {
        Ok(Self {
            model: header.string("tokenizer.ggml.model")?.to_owned(),
            pre_tokenizer: header.string("tokenizer.ggml.pre")?.to_owned(),
            tokens: header.strings("tokenizer.ggml.tokens")?,
            token_types: header.integers("tokenizer.ggml.token_type")?,
            merges: header.strings("tokenizer.ggml.merges")?,
        })
    }
}
