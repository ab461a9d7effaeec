use std::ops::Range;

use crate::{Error, Result};

/// Where each text of a ragged batch begins and ends.
///
/// # Examples
///
/// ```
/// use qwen3_embed_kernels::Ragged;
///
/// let batch = Ragged::from_lengths([3, 1, 2])?;
/// assert_eq!(batch.n_tokens(), 6);
/// assert_eq!(batch.range(2), 4..6);
/// assert_eq!(batch.last_rows(), [2, 3, 5]);
/// assert_eq!(batch.positions().collect::<Vec<_>>(), [0, 1, 2, 0, 0, 1]);
/// # Ok::<(), qwen3_embed_kernels::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ragged {
    /// N + 1 row indices: text `i` is rows `offsets[i]..offsets[i + 1]`.
    offsets: Vec<usize>,
}

impl Ragged {
    /// A batch of texts with these lengths, in tokens.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyText`] if a length is zero, [`Error::BatchTooLarge`] if row indices would not
    /// fit in 32 bits.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Result<Self> {
        let mut offsets = vec![0];
        let mut n_tokens = 0usize;
        for (text, length) in lengths.into_iter().enumerate() {
            if length == 0 {
                return Err(Error::EmptyText { text });
            }
            n_tokens = n_tokens.saturating_add(length);
            if n_tokens > u32::MAX as usize {
                return Err(Error::BatchTooLarge { n_tokens });
            }
            offsets.push(n_tokens);
        }
        Ok(Self { offsets })
    }

    /// Number of texts, N.
    pub fn n_texts(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of tokens of all texts together, T.
    pub fn n_tokens(&self) -> usize {
        self.offsets[self.n_texts()]
    }

    /// The rows of text `text`.
    ///
    /// # Panics
    ///
    /// If `text` is not below [`n_texts`](Self::n_texts).
    pub fn range(&self, text: usize) -> Range<usize> {
        self.offsets[text]..self.offsets[text + 1]
    }

    /// The rows of each text, in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.offsets.windows(2).map(|w| w[0]..w[1])
    }

    /// The row of each text's last token.
    pub fn last_rows(&self) -> Vec<u32> {
        // `from_lengths` keeps every offset within u32.
        self.offsets[1..].iter().map(|&end| end as u32 - 1).collect()
    }

    /// Each row's position within its own text.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.ranges().flat_map(|range| 0..range.len())
    }

    /// Length of the longest text, 0 for an empty batch.
    pub fn max_length(&self) -> usize {
        self.ranges().map(|range| range.len()).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_batch_has_no_rows() {
        let batch = Ragged::from_lengths([]).unwrap();
        assert_eq!((batch.n_texts(), batch.n_tokens(), batch.max_length()), (0, 0, 0));
        assert!(batch.last_rows().is_empty());
        assert_eq!(batch.positions().count(), 0);
    }

    #[test]
    fn a_text_without_tokens_is_refused() {
        let error = Ragged::from_lengths([2, 0]).unwrap_err();
        assert!(matches!(error, Error::EmptyText { text: 1 }), "{error}");
    }

    #[test]
    fn more_rows_than_indices_are_refused() {
        for lengths in [vec![u32::MAX as usize, 1], vec![usize::MAX, 1], vec![1, usize::MAX]] {
            let error = Ragged::from_lengths(lengths).unwrap_err();
            assert!(matches!(error, Error::BatchTooLarge { .. }), "{error}");
        }
    }
}
