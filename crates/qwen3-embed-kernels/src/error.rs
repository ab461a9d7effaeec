/// What can go wrong in a kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand does not have the shape that the operation needs.
    #[error("{op}: expected {expected}, got a tensor of shape {got:?}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The shape that it needs, in the letters of the crate's documentation.
        expected: String,
        /// The shape that it was given.
        got: Vec<usize>,
    },
    /// An operand is of another type than the operation computes with.
    #[error("{op}: expected a tensor of {expected}, got one of {got}")]
    Type {
        /// The operation.
        op: &'static str,
        /// The type that it needs.
        expected: &'static str,
        /// The type that it was given.
        got: &'static str,
    },
    /// A text of a batch has no token, so that it has no last token either.
    #[error("text {text} of the batch has no tokens")]
    EmptyText {
        /// Index of the text in the batch.
        text: usize,
    },
    /// A segment of a batch continues one that does not come before it.
    #[error(
        "segment {segment} of the batch continues segment {parent}, which is not an earlier one"
    )]
    Parent {
        /// Index of the segment.
        segment: usize,
        /// Index of the one that it is to continue.
        parent: usize,
    },
    /// The batch has more tokens than row indices can count.
    #[error("a batch of {n_tokens} tokens is over the limit of {} tokens", u32::MAX)]
    BatchTooLarge {
        /// Tokens in the batch, or `usize::MAX` if even that overflowed.
        n_tokens: usize,
    },
    /// candle refused or failed an operation: out of memory on a device, or a bug of ours.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
}

/// A result whose error is this crate's.
pub type Result<T> = std::result::Result<T, Error>;
