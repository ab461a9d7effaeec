//! Where the functions are computed, if not by a server.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::{Error, Models};

/// Where the functions are computed.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// In this process.
    Here(Arc<Models>),
    /// Elsewhere: this process only plans queries.
    Executors,
}

impl Place {
    /// The models of this process.
    pub(crate) fn models(&self, function: &'static str) -> Result<&Models, Error> {
        match self {
            Self::Here(models) => Ok(models),
            Self::Executors => Err(Error::NotHere { function }),
        }
    }

    pub(crate) fn is_here(&self) -> bool {
        matches!(self, Self::Here(_))
    }

    fn address(&self) -> Option<*const Models> {
        match self {
            Self::Here(models) => Some(Arc::as_ptr(models)),
            Self::Executors => None,
        }
    }
}

// Functions are equal if they use the same models.
impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.address() == other.address()
    }
}

impl Eq for Place {}

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address().hash(state);
    }
}
