//! How the input is read.

use super::columns::Names;
use crate::embed::args::Part;
use crate::lines::InputArgs;

/// How the input is read.
#[derive(Clone)]
pub(in crate::embed) struct ReadOptions {
    pub(in crate::embed) columns: Names,
    pub(in crate::embed) invalid: InputArgs,
    /// Whether the fields of JSON lines become columns with types.
    pub(in crate::embed) typed: bool,
    pub(in crate::embed) part: Part,
    /// The index of the first record that is read.
    pub(in crate::embed) first_record: u64,
}
