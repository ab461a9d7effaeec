//! How the texts of a call are divided into batches, and which tokens they share.

pub(crate) mod budget;
pub(crate) mod plan;
pub(crate) mod prefix_cache;
pub(crate) mod sharing;
