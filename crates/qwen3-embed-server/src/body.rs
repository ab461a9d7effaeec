use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::coding::Coding;
use crate::error::ApiError;
use crate::middleware::Permit;
use crate::{AppState, ServerOptions};

/// From this size on, in bytes, a body is not parsed on a thread that serves connections: it would keep the
/// others waiting.
const LARGE: usize = 32 * 1024;

/// Bodies that are decompressed at once: each may become as large as the payload limit, however small it was.
static DECOMPRESSING: Semaphore = Semaphore::const_new(4);

/// A request's body, read from JSON. Fields that are not known are ignored.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned + Send + 'static> FromRequest<AppState> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let coding = Coding::of(request.headers())?;
        let limit = state.options().payload_limit;
        let permit = request.extensions().get::<Permit>().cloned();
        // It is here already, see `arrived`.
        let bytes = to_bytes(request.into_body(), usize::MAX).await;
        let bytes = bytes.map_err(|error| ApiError::internal(error.to_string()))?;
        // A compressed body may be large, whatever its length.
        if bytes.len() < LARGE && coding == Coding::Identity {
            return parse(&bytes).map(Self);
        }
        let slot = match coding {
            Coding::Identity => None,
            // It is never closed.
            _ => DECOMPRESSING.acquire().await.ok(),
        };
        let parsed = tokio::task::spawn_blocking(move || {
            let _guards = (permit, slot);
            parse(&coding.decode(bytes, limit)?)
        });
        parsed.await.map_err(|error| ApiError::internal(error.to_string()))?.map(Self)
    }
}

/// The request when the whole of its body is here.
pub(crate) async fn arrived(request: Request, limits: &ServerOptions) -> Result<Request, ApiError> {
    check_content_type(request.headers())?;
    Coding::of(request.headers())?;
    if declared_length(request.headers()) > limits.payload_limit as u64 {
        return Err(ApiError::too_large("the body", limits.payload_limit));
    }
    let (head, body) = request.into_parts();
    let body = Limited::new(body, limits.payload_limit).collect();
    let body = timeout(limits.body_timeout, body).await;
    match body.map_err(|_| ApiError::too_slow(limits.body_timeout))? {
        Ok(body) => Ok(Request::from_parts(head, Body::from(body.to_bytes()))),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ApiError::too_large("the body", limits.payload_limit))
        }
        Err(error) => Err(ApiError::invalid(format!("the body could not be read: {error}"))),
    }
}

/// What the client says that the body's length is.
fn declared_length(headers: &HeaderMap) -> u64 {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    length.and_then(|length| length.parse().ok()).unwrap_or(0)
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Err(ApiError::not_json("none"));
    };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || essence.ends_with("+json") {
        Ok(())
    } else {
        Err(ApiError::not_json(&format!("`{}`", String::from_utf8_lossy(value.as_bytes()))))
    }
}

fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, ApiError> {
    // Serde would take a list of a struct's fields for the struct.
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => {}
        Some(&first) => {
            let first = match first {
                b'"' => "\"".to_owned(),
                _ => first.escape_ascii().to_string(),
            };
            let message = format!("the body is not a JSON object: it begins with `{first}`");
            return Err(ApiError::invalid(message));
        }
        None => return Err(ApiError::invalid("the body is empty: expected a JSON object")),
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        // What is wrong with a field's name is at `?`, in the object around it.
        refusal(path.trim_end_matches(['?', '.']), error.inner())
    })?;
    let rest = deserializer.end();
    rest.map_err(|error| ApiError::invalid(format!("the body is not JSON: {error}")))?;
    Ok(value)
}

/// What is said of a body with this error at this place.
fn refusal(path: &str, error: &serde_json::Error) -> ApiError {
    let is_syntax = error.classify() != Category::Data;
    match (is_syntax, path) {
        (true, "") => ApiError::invalid(format!("the body is not JSON: {error}")),
        (true, _) => {
            let message = format!("{path} is not JSON: {error}{}", surrogate_hint(error));
            ApiError::invalid(message).about(path)
        }
        (false, "") => {
            let message = error.to_string();
            let field = named(&message).map(str::to_owned);
            let error = ApiError::invalid(message);
            match field {
                Some(field) => error.about(field),
                None => error,
            }
        }
        (false, _) => ApiError::invalid(format!("{path}: {error}")).about(path),
    }
}

/// What serde_json does not say of half of a surrogate pair, which is how a text ends that was cut within an
/// emoji.
fn surrogate_hint(error: &serde_json::Error) -> &'static str {
    let message = error.to_string();
    let is_half = ["lone leading surrogate", "unexpected end of hex escape"];
    if is_half.iter().any(|half| message.starts_with(half)) {
        r"; half of a surrogate pair, such as `\ud83d`, is no character"
    } else {
        ""
    }
}

/// The field that a message of serde's is about, where it is missing or there twice.
fn named(message: &str) -> Option<&str> {
    let rest = message.strip_prefix("missing field `");
    let rest = rest.or_else(|| message.strip_prefix("duplicate field `"))?;
    Some(rest.split_once('`')?.0)
}
