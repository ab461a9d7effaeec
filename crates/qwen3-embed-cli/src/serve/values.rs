//! Parsers of the values of flags.

use std::time::Duration;

use clap::builder::RangedU64ValueParser;

/// Parses a number of at least 1.
pub(super) fn count() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// Parses `*`, or an origin in the format in which browsers send it.
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
    Err("expected `*`, or an origin in lower case without a path, such as https://example.org"
        .to_owned())
}

/// Parses a number of seconds.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("expected a number, got `{text}`"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// Parses a number of seconds that is more than 0.
pub(super) fn some_seconds(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => Err("expected more than 0 seconds, got 0".to_owned()),
        time => Ok(time),
    }
}

/// Parses the name of a model. White space around the name, for instance after a comma, is removed.
pub(super) fn model_name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("expected a name, got an empty one".to_owned()),
        name => Ok(name.to_owned()),
    }
}
