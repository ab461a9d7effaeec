//! The Rust code blocks of the guide and of README.md, as documentation tests.

/// `docs/applications.md`.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/applications.md")]
mod applications {}

/// `docs/choosing.md`.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/choosing.md")]
mod choosing {}

/// `docs/first-steps.md`.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/first-steps.md")]
mod first_steps {}

/// `docs/from-python.md`.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/from-python.md")]
mod from_python {}

/// `docs/library.md`.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/library.md")]
mod library {}

/// `README.md`.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme {}
