use std::time::Duration;

use crate::error::{Failure, HubProblem};
use crate::hub::Hub;

/// Upper limit of the wait from the header `Retry-After`.
const MAX_REQUESTED_WAIT: Duration = Duration::from_secs(60);

/// A response of the hub whose status is an error.
#[derive(Debug)]
pub(crate) struct Refusal<'a> {
    pub(crate) status: u16,
    /// The header `X-Error-Code`.
    pub(crate) code: Option<&'a str>,
    /// The header `X-Error-Message`, or the standard text for the status.
    pub(crate) message: String,
    /// The header `Retry-After`.
    pub(crate) retry_after: Option<Duration>,
}

impl Refusal<'_> {
    /// Converts the response to the failure of a request for a repository at a revision.
    pub(crate) fn failure(self, hub: &Hub, repo: &str, revision: &str) -> Failure {
        let Self { status, code, message, retry_after } = self;
        Failure::Permanent(match (status, code) {
            (_, Some("GatedRepo")) => {
                HubProblem::Gated { page: format!("{}/{repo}", hub.endpoint), status, message }
            }
            (_, Some("RevisionNotFound")) => {
                HubProblem::NoSuchRevision { revision: revision.to_owned(), status, message }
            }
            (_, Some("EntryNotFound")) => HubProblem::NoSuchFile,
            (401, _) if message.contains("Invalid credentials") => {
                HubProblem::BadToken { status, message }
            }
            (401 | 404, _) => HubProblem::NoSuchModel { status, message },
            (403, _) => HubProblem::Forbidden { status, message },
            (408 | 429 | 500 | 502 | 503 | 504, _) => {
                let wait = retry_after.map(|wait| wait.min(MAX_REQUESTED_WAIT));
                return Failure::Transient(HubProblem::Status { status, message }, wait);
            }
            (status, _) => HubProblem::Status { status, message },
        })
    }
}
