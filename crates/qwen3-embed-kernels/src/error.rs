use crate::cpu::UnknownKernels;

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
    /// An operand is larger than the device's kernels can compute.
    #[error("{op}: {what} is {got}, the kernels can do {limit} at most")]
    Limit {
        /// The operation.
        op: &'static str,
        /// What is too large.
        what: &'static str,
        /// How large it is.
        got: usize,
        /// How large it may be.
        limit: usize,
    },
    /// The environment names a CPU kernel set that does not exist or that this CPU cannot run.
    #[error(transparent)]
    UnknownKernels(#[from] UnknownKernels),
    /// A CUDA device was asked for, and this program was built without the feature `cuda`.
    #[error("this program was built without the feature `cuda`: it has only the device `cpu`")]
    NoCuda,
    /// A CUDA device cannot be used: there is no such one, no driver, or it is too old.
    #[error("cannot use CUDA device {ordinal}: is there one, with its driver?")]
    Cuda {
        /// The number of the device.
        ordinal: usize,
        /// What the driver said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The device did not take an operation.
    #[error("{op}: the device did not take it")]
    Launch {
        /// The operation.
        op: &'static str,
        /// What the driver or a library said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The device has too little memory for what was asked of it.
    #[error("the device has no memory left")]
    OutOfMemory(#[source] candle_core::Error),
    /// candle refused or failed an operation: a bug of ours, or a device that stopped working.
    #[error("tensor operation failed")]
    Tensor(#[source] candle_core::Error),
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        if crate::ops::is_out_of_memory(&error) {
            return Self::OutOfMemory(error);
        }
        Self::Tensor(error)
    }
}

/// A result whose error is this crate's.
pub type Result<T> = std::result::Result<T, Error>;
