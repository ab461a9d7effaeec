use std::borrow::Cow;

use qwen3_embed_text::{TruncationSide, truncate};

use crate::{Error, Overflow, Result, normalize};

/// The options of an embedding request, checked and completed with the settings of the embedder.
#[derive(Debug)]
pub(crate) struct EmbedRequest {
    /// The text that is put before every string.
    pub(crate) prompt: String,
    /// The maximum length of a text, in tokens.
    pub(crate) max_tokens: usize,
    pub(crate) overflow: Overflow,
    /// Whether texts end with an end-of-text token, which truncation must keep.
    pub(crate) has_end_of_text: bool,
    pub(crate) row: RowFormat,
}

/// How the vector that the model computes for a text becomes the vector that is returned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowFormat {
    /// The number of values that are kept.
    pub(crate) dimensions: usize,
    /// Whether the kept values are normalized to unit length.
    pub(crate) normalize: bool,
}

impl EmbedRequest {
    /// Applies the overflow policy to the tokens of one text.
    ///
    /// # Errors
    ///
    /// [`Error::TextTooLong`], with the index 0.
    pub(crate) fn fit(&self, tokens: &mut Cow<'_, [u32]>) -> Result<()> {
        let (n_tokens, max_tokens) = (tokens.len(), self.max_tokens);
        if n_tokens <= max_tokens {
            return Ok(());
        }
        match self.overflow {
            Overflow::Error => return Err(Error::TextTooLong { text: 0, n_tokens, max_tokens }),
            Overflow::TruncateLeft => truncate(tokens.to_mut(), max_tokens, TruncationSide::Left),
            Overflow::TruncateRight if self.has_end_of_text => {
                truncate(tokens.to_mut(), max_tokens, TruncationSide::Right);
            }
            Overflow::TruncateRight => tokens.to_mut().truncate(max_tokens),
        }
        Ok(())
    }
}

impl RowFormat {
    /// Writes a vector of the model to `out`, which has [`dimensions`](Self::dimensions) values. The vector is cut
    /// before it is normalized.
    pub(crate) fn write(self, row: &[f32], out: &mut [f32]) {
        out.copy_from_slice(&row[..self.dimensions]);
        if self.normalize {
            normalize(out);
        }
    }
}
