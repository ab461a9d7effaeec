//! How values of flags are read.

use std::time::Duration;

use clap::builder::RangedU64ValueParser;

/// Reads a number from 1 on.
pub(super) fn count() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// Reads an origin, or a `*`, as a browser sends it.
pub(super) fn origin(text: &str) -> Result<String, String> {
    let is_origin = text.split_once("://").is_some_and(|(scheme, host)| {
        !scheme.is_empty()
            && !host.is_empty()
            && text.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase())
            && !host.contains(['/', '?', '#', '@'])
    });
    if is_origin || ["*", "null"].contains(&text) {
        return Ok(text.to_owned());
    }
    Err("expected *, or an origin in lower case without a path, such as https://example.org"
        .to_owned())
}

/// Reads a time in seconds.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("expected a number, got `{text}`"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Reads a time in seconds that is not 0.
pub(super) fn some_seconds(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => Err("it must be more than 0".to_owned()),
        time => Ok(time),
    }
}

/// Reads a model's name. White space around it, such as that behind a comma, is not part of it.
pub(super) fn model_name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("a name is empty".to_owned()),
        name => Ok(name.to_owned()),
    }
}
