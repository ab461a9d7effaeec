use std::ops::Range;

use crate::{Error, Result};

/// The rows and positions of the tokens of a ragged batch.
///
/// A batch is a forest of *segments*: runs of consecutive tokens that are computed once. A text is a segment, or a
/// chain of segments that begins at a root of the forest. A prefix that several texts share is one segment, and the
/// rest of each of these texts is a segment that continues it.
///
/// The rows of the matrices are in this order:
///
/// 1. the tokens of [given](SegmentKind::Given) segments, whose keys and values are already known;
/// 2. the tokens that are computed, segment by segment, except for
/// 3. the last token of each segment that [ends a text](SegmentKind::Text). These rows are together, because the last
///    layer computes only these rows.
///
/// # Examples
///
/// ```
/// use qwen3_embed_kernels::Ragged;
///
/// let batch = Ragged::from_lengths([3, 1, 2])?;
/// assert_eq!(batch.n_tokens(), 6);
/// assert_eq!(batch.last_rows(), [2, 3, 5]);
/// assert_eq!(batch.positions().collect::<Vec<_>>(), [0, 1, 2, 0, 0, 1]);
/// # Ok::<(), qwen3_embed_kernels::Error>(())
/// ```
///
/// Two texts of five tokens, of which they share the first three:
///
/// ```
/// use qwen3_embed_kernels::{Ragged, Segment, SegmentKind};
///
/// let text = Segment { n_tokens: 2, parent: Some(0), kind: SegmentKind::Text };
/// let shared = Segment { n_tokens: 3, parent: None, kind: SegmentKind::Inner };
/// let batch = Ragged::from_segments([shared, text, text])?;
/// assert_eq!((batch.n_tokens(), batch.n_last()), (7, 2));
/// assert_eq!(batch.path(1).collect::<Vec<_>>(), [0, 1, 2, 3, 5]);
/// assert_eq!(batch.path(2).collect::<Vec<_>>(), [0, 1, 2, 4, 6]);
/// # Ok::<(), qwen3_embed_kernels::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ragged {
    segments: Vec<Placed>,
    is_causal: bool,
    n_given: usize,
    n_tokens: usize,
    n_last: usize,
}

/// A run of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The number of tokens, at least one.
    pub n_tokens: usize,
    /// The index of the segment that this segment continues. It must be smaller than the index of this segment. `None`
    /// if this segment begins a text.
    pub parent: Option<usize>,
    /// Whether the segment is computed, and whether it ends a text.
    pub kind: SegmentKind,
}

/// Whether a segment is computed, and whether it ends a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// The keys and values of the segment are known. It is not computed.
    Given,
    /// The segment is computed and ends no text.
    Inner,
    /// The segment is computed and ends a text: its last token is among the last rows of the batch.
    Text,
}

/// A segment and its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placed {
    segment: Segment,
    /// Position of the first token in its texts.
    start: usize,
    /// Row of the first token, unless the first token is also the last token of a text.
    row: usize,
    /// Row of the last token.
    last_row: usize,
}

/// The rows for which attention computes queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queries {
    /// All rows that are computed.
    All,
    /// The last token of each text.
    Last,
}

impl Ragged {
    /// A batch of texts with these numbers of tokens. The rows of a text follow the rows of the text before it, because
    /// each text is a segment of the kind [`Inner`](SegmentKind::Inner), not [`Text`](SegmentKind::Text). Therefore
    /// [`Queries::Last`] selects no rows of this batch.
    ///
    /// # Errors
    ///
    /// As [`from_segments`](Self::from_segments).
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Result<Self> {
        Self::from_segments(lengths.into_iter().map(|n_tokens| Segment {
            n_tokens,
            parent: None,
            kind: SegmentKind::Inner,
        }))
    }

    /// A batch of these segments.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyText`] if a segment has no tokens, [`Error::Parent`] if a segment continues itself or a later
    /// segment, [`Error::BatchTooLarge`] if row indices do not fit in 32 bits.
    pub fn from_segments(segments: impl IntoIterator<Item = Segment>) -> Result<Self> {
        let mut placed: Vec<Placed> = Vec::new();
        let (mut n_given, mut n_inner, mut n_last) = (0usize, 0usize, 0usize);
        for (idx, segment) in segments.into_iter().enumerate() {
            let Segment { n_tokens, parent, kind } = segment;
            if n_tokens == 0 {
                return Err(Error::EmptyText { text: idx });
            }
            let start = match parent {
                None => 0,
                Some(parent) if parent < idx => placed[parent].end(),
                Some(parent) => return Err(Error::Parent { segment: idx, parent }),
            };
            let is_text = kind == SegmentKind::Text;
            let rows = if kind == SegmentKind::Given { &mut n_given } else { &mut n_inner };
            // The row is relative to its group of rows. The offset is added below.
            let row = *rows;
            *rows = rows.saturating_add(n_tokens - usize::from(is_text));
            n_last += usize::from(is_text);
            let n_rows = n_given.saturating_add(n_inner).saturating_add(n_last);
            if n_rows > u32::MAX as usize {
                return Err(Error::BatchTooLarge { n_tokens: n_rows });
            }
            let last_row = if is_text { n_last - 1 } else { row + n_tokens - 1 };
            placed.push(Placed { segment, start, row, last_row });
        }
        for placed in &mut placed {
            let (row, last_row) = match placed.segment.kind {
                SegmentKind::Given => (0, 0),
                SegmentKind::Inner => (n_given, n_given),
                SegmentKind::Text => (n_given, n_given + n_inner),
            };
            placed.row += row;
            placed.last_row += last_row;
        }
        Ok(Self { segments: placed, is_causal: true, n_given, n_tokens: n_inner + n_last, n_last })
    }

    /// The same batch with bidirectional attention: every token sees its whole text, not only the tokens before it.
    ///
    /// # Errors
    ///
    /// [`Error::Parent`] if a segment continues another segment. In bidirectional attention, the result for a token
    /// depends on the whole text, so texts cannot share segments.
    pub fn bidirectional(self) -> Result<Self> {
        let mut parents = self.segments.iter().map(|placed| placed.segment.parent).enumerate();
        match parents.find_map(|(segment, parent)| Some((segment, parent?))) {
            Some((segment, parent)) => Err(Error::Parent { segment, parent }),
            None => Ok(Self { is_causal: false, ..self }),
        }
    }

    /// The positions that the token at `position` in the texts of `segment` sees: up to the token itself, or up to the
    /// end of the text in a [bidirectional](Self::bidirectional) batch.
    pub fn seen_from(&self, segment: usize, position: usize) -> Range<usize> {
        if self.is_causal { 0..position + 1 } else { 0..self.segments[segment].end() }
    }

    /// Number of segments.
    pub fn n_segments(&self) -> usize {
        self.segments.len()
    }

    /// Rows of given segments, P. These are the first rows.
    pub fn n_given(&self) -> usize {
        self.n_given
    }

    /// Tokens that are computed, T. Their rows come after the rows of given segments.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }

    /// Last tokens of texts, N. These are the last rows.
    pub fn n_last(&self) -> usize {
        self.n_last
    }

    /// Number of rows, P + T.
    pub fn n_rows(&self) -> usize {
        self.n_given + self.n_tokens
    }

    /// The first row that has a query.
    pub fn first_query(&self, queries: Queries) -> usize {
        match queries {
            Queries::All => self.n_given,
            Queries::Last => self.n_rows() - self.n_last,
        }
    }

    /// Whether a token sees only itself and the tokens before it.
    pub fn is_causal(&self) -> bool {
        self.is_causal
    }

    /// The segment with this index.
    ///
    /// # Panics
    ///
    /// If there is no such segment. The methods below that take the index of a segment panic in the same case.
    pub fn segment(&self, segment: usize) -> Segment {
        self.segments[segment].segment
    }

    /// The positions of the tokens of a segment in its texts.
    pub fn positions_of(&self, segment: usize) -> Range<usize> {
        self.segments[segment].start..self.segments[segment].end()
    }

    /// The row of the first token of a segment, unless it is also the last token of a text, and the row of its last
    /// token.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn rows_of(&self, segment: usize) -> [usize; 2] {
        [self.segments[segment].row, self.segments[segment].last_row]
    }

    /// The row of the token at `position` in the texts of `segment`. This is a token of the segment, or of a segment
    /// that it continues.
    pub fn row(&self, mut segment: usize, position: usize) -> usize {
        loop {
            let placed = &self.segments[segment];
            match placed.segment.parent {
                Some(parent) if position < placed.start => segment = parent,
                _ if position + 1 == placed.end() => return placed.last_row,
                _ => return placed.row + (position - placed.start),
            }
        }
    }

    /// The rows of the texts of a segment, from their beginning to the end of the segment.
    pub fn path(&self, segment: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.segments[segment].end()).map(move |position| self.row(segment, position))
    }

    /// The row of the last token of each segment.
    pub fn last_rows(&self) -> Vec<u32> {
        // `from_segments` keeps every row within u32.
        self.segments.iter().map(|placed| placed.last_row as u32).collect()
    }

    /// The position in its text of each row that is computed.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        let computed = || self.segments.iter().filter(|p| p.segment.kind != SegmentKind::Given);
        let inner = computed().flat_map(|p| p.start..p.end() - usize::from(p.is_text()));
        inner.chain(computed().filter(|p| p.is_text()).map(|p| p.end() - 1))
    }

    /// Length of the longest text, 0 for an empty batch.
    pub fn max_length(&self) -> usize {
        self.segments.iter().map(Placed::end).max().unwrap_or(0)
    }
}

impl Placed {
    /// The position after the last token.
    fn end(&self) -> usize {
        self.start + self.segment.n_tokens
    }

    fn is_text(&self) -> bool {
        self.segment.kind == SegmentKind::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_batch_has_no_rows() {
        let batch = Ragged::from_lengths([]).unwrap();
        assert_eq!((batch.n_segments(), batch.n_rows(), batch.max_length()), (0, 0, 0));
        assert!(batch.last_rows().is_empty());
        assert_eq!(batch.positions().count(), 0);
    }

    #[test]
    fn rejects_text_without_tokens() {
        let error = Ragged::from_lengths([2, 0]).unwrap_err();
        assert!(matches!(error, Error::EmptyText { text: 1 }), "{error}");
    }

    #[test]
    fn rejects_more_rows_than_32_bit_indices() {
        for lengths in [vec![u32::MAX as usize, 1], vec![usize::MAX, 1], vec![1, usize::MAX]] {
            let error = Ragged::from_lengths(lengths).unwrap_err();
            assert!(matches!(error, Error::BatchTooLarge { .. }), "{error}");
        }
    }

    #[test]
    fn rejects_segment_that_continues_itself_or_a_later_one() {
        let segment = |parent| Segment { n_tokens: 1, parent, kind: SegmentKind::Inner };
        for parent in [1, 2, usize::MAX] {
            let error = Ragged::from_segments([segment(None), segment(Some(parent))]).unwrap_err();
            assert!(matches!(error, Error::Parent { segment: 1, .. }), "{error}");
        }
    }

    #[test]
    fn tokens_of_a_bidirectional_batch_see_their_whole_text() {
        let batch = Ragged::from_lengths([2, 3]).unwrap();
        assert_eq!((batch.seen_from(1, 0), batch.seen_from(1, 2)), (0..1, 0..3));
        let batch = batch.bidirectional().unwrap();
        assert!(!batch.is_causal());
        assert_eq!((batch.seen_from(0, 0), batch.seen_from(1, 0)), (0..2, 0..3));
        let segment = |parent| Segment { n_tokens: 1, parent, kind: SegmentKind::Text };
        let shared = Ragged::from_segments([segment(None), segment(Some(0))]).unwrap();
        let error = shared.bidirectional().unwrap_err();
        assert!(matches!(error, Error::Parent { segment: 1, parent: 0 }), "{error}");
    }

    #[test]
    fn rows_are_given_then_computed_then_last_tokens() {
        use SegmentKind::{Given, Inner, Text};
        let segment = |n_tokens, parent, kind| Segment { n_tokens, parent, kind };
        let batch = Ragged::from_segments([
            segment(3, None, Text),
            segment(2, None, Given),
            segment(1, Some(1), Inner),
            segment(2, Some(2), Text),
            // This text continues another text.
            segment(1, Some(3), Text),
            segment(2, Some(0), Given),
            segment(1, Some(5), Text),
        ])
        .unwrap();
        assert_eq!((batch.n_given(), batch.n_tokens(), batch.n_last()), (4, 8, 4));
        let paths: Vec<Vec<usize>> = (0..7).map(|segment| batch.path(segment).collect()).collect();
        let expected: [&[usize]; 7] = [
            &[4, 5, 8],
            &[0, 1],
            &[0, 1, 6],
            &[0, 1, 6, 7, 9],
            &[0, 1, 6, 7, 9, 10],
            &[4, 5, 8, 2, 3],
            &[4, 5, 8, 2, 3, 11],
        ];
        assert_eq!(paths, expected);
        assert_eq!(batch.positions().collect::<Vec<_>>(), [0, 1, 2, 3, 2, 4, 5, 5]);
        assert_eq!(batch.first_query(Queries::Last), 8);
    }
}
