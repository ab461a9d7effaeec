//! Vectors in fewer bits than f32.

pub(crate) mod binary;
pub(crate) mod float16;
pub(crate) mod int8;
