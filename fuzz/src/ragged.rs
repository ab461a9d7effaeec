//! The segments of a ragged batch.
//!
//! Properties: segments are rejected exactly if they violate a documented rule. Otherwise the rows of given segments
//! come first and last tokens come last, every row belongs to one token, and the path of a text is the rows of its
//! tokens, whose positions count from 0.

use arbitrary::{Arbitrary, Unstructured};
use qwen3_embed_kernels::{Queries, Ragged, Segment, SegmentKind};

/// A segment of one input.
#[derive(Debug, Arbitrary)]
struct Part {
    n_tokens: u8,
    parent: Option<u8>,
    kind: u8,
}

impl Part {
    fn segment(&self) -> Segment {
        let kinds = [SegmentKind::Given, SegmentKind::Inner, SegmentKind::Text];
        Segment {
            n_tokens: self.n_tokens.into(),
            parent: self.parent.map(usize::from),
            kind: kinds[usize::from(self.kind) % 3],
        }
    }
}

/// Checks one batch.
pub fn check(data: &[u8]) {
    let Ok(parts) = Vec::<Part>::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let segments: Vec<Segment> = parts.iter().map(Part::segment).collect();
    let is_valid = |(idx, segment): (usize, &Segment)| {
        segment.n_tokens > 0 && segment.parent.is_none_or(|parent| parent < idx)
    };
    let is_valid = segments.iter().enumerate().all(is_valid);
    let batch = Ragged::from_segments(segments.iter().copied());
    assert_eq!(batch.is_ok(), is_valid, "{batch:?}");
    let Ok(batch) = batch else { return };
    let has_parents = segments.iter().any(|segment| segment.parent.is_some());
    assert_eq!(batch.clone().bidirectional().is_err(), has_parents);
    check_rows(&batch, &segments);
}

fn check_rows(batch: &Ragged, segments: &[Segment]) {
    let positions: Vec<usize> = batch.positions().collect();
    assert_eq!(positions.len(), batch.n_tokens());
    let first_last = batch.first_query(Queries::Last);
    let mut owners = vec![0; batch.n_rows()];
    for (idx, segment) in segments.iter().enumerate() {
        let path: Vec<usize> = batch.path(idx).collect();
        let (before, own) = path.split_at(path.len() - segment.n_tokens);
        let of_parent = segment.parent.map(|parent| batch.path(parent).collect::<Vec<_>>());
        assert_eq!(before, of_parent.unwrap_or_default());
        for (i, &row) in own.iter().enumerate() {
            owners[row] += 1;
            let is_given = segment.kind == SegmentKind::Given;
            let is_last = segment.kind == SegmentKind::Text && i + 1 == own.len();
            assert_eq!(row < batch.n_given(), is_given);
            assert_eq!(row >= first_last && !is_given, is_last);
            if !is_given {
                assert_eq!(positions[row - batch.n_given()], before.len() + i);
            }
        }
    }
    assert!(owners.iter().all(|&n| n == 1), "rows of several tokens, or of none: {owners:?}");
}

/// Batches with and without common prefixes.
pub fn seeds() -> Vec<Vec<u8>> {
    // A segment is its number of tokens, whether it has a parent, the parent, and its kind. A byte before it says that
    // there is another segment.
    let alone: [[u8; 4]; 3] = [[1, 3, 0, 1], [1, 1, 0, 2], [1, 9, 0, 0]];
    let shared: [[u8; 5]; 3] = [[1, 3, 1, 0, 2], [1, 2, 1, 0, 2], [1, 4, 1, 1, 1]];
    vec![alone.concat(), [&[1, 5, 0, 1], shared.as_flattened()].concat()]
}
