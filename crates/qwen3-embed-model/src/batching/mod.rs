//! Divides the texts of a call into batches, and finds the tokens that texts have in common.

pub(crate) mod budget;
pub(crate) mod plan;
pub(crate) mod prefix_cache;
pub(crate) mod sharing;

#[cfg(test)]
mod properties;
