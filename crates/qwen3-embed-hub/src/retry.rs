use std::thread;
use std::time::Duration;

use crate::error::{Failure, HubProblem};
use crate::hub::Hub;

/// The longest wait between two attempts, unless the header `Retry-After` of a response has a longer one.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Repeats a request until it succeeds, fails permanently, or has failed `attempts` times.
pub(crate) fn retry<T>(
    hub: &Hub,
    attempts: u32,
    request: impl Fn() -> Result<T, Failure>,
) -> Result<T, HubProblem> {
    let mut attempt = 1;
    loop {
        attempt += 1;
        match request() {
            Ok(value) => return Ok(value),
            Err(Failure::Transient(_, wait)) if attempt <= attempts => pause(hub, attempt, wait),
            Err(failure) => return Err(failure.into_problem()),
        }
    }
}

/// Waits before the attempt with number `attempt`; the first attempt has the number 1. The wait is `requested`, the
/// value of `Retry-After`, if there is one. Otherwise it doubles with each attempt.
pub(crate) fn pause(hub: &Hub, attempt: u32, requested: Option<Duration>) {
    let doubled = 2u32.saturating_pow(attempt.saturating_sub(2));
    let wait = || hub.retry_wait.saturating_mul(doubled).min(MAX_WAIT);
    thread::sleep(requested.unwrap_or_else(wait));
}
