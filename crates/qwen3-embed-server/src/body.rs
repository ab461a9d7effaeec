use axum::BoxError;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::content_encoding::ContentEncoding;
use crate::error::ApiError;
use crate::state::{AppState, BODY_UNIT, BodyPermit, Permit};

/// Bodies of this size in bytes, or larger, are parsed on a blocking thread. On an async thread, parsing them would
/// delay the other connections that the thread serves.
const LARGE: usize = 32 * 1024;

/// Limits how many bodies are decompressed at the same time, because each of them may take as much memory as the
/// payload limit allows, even if it is small when compressed.
static DECOMPRESSING: Semaphore = Semaphore::const_new(4);

/// Extractor for a request body in JSON. Unknown fields are ignored.
///
/// [`axum::Json`] is not used because its errors do not have the shape of [`ApiError`].
#[derive(Debug)]
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned + Send + 'static> FromRequest<AppState> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let encoding = ContentEncoding::of(request.headers())?;
        let limit = state.options().payload_limit;
        let permit = request.extensions().get::<Permit>().cloned();
        let memory = request.extensions().get::<BodyPermit>().cloned();
        // `read_body` has read the whole body already.
        let bytes = to_bytes(request.into_body(), usize::MAX).await;
        let bytes = bytes.map_err(|error| ApiError::internal(error.to_string()))?;
        // A short compressed body may be large when it is decompressed.
        if bytes.len() < LARGE && encoding == ContentEncoding::Identity {
            return parse(&bytes).map(Self);
        }
        let slot = match encoding {
            ContentEncoding::Identity => None,
            // The semaphore is never closed, so this is always `Some`.
            _ => DECOMPRESSING.acquire().await.ok(),
        };
        let parsed = tokio::task::spawn_blocking(move || {
            let _guards = (permit, memory, slot);
            parse(&encoding.decode(bytes, limit)?)
        });
        parsed.await.map_err(|error| ApiError::internal(error.to_string()))?.map(Self)
    }
}

/// Reads the whole body of a request into memory, within the limits of size, time and memory, and checks its headers.
pub(crate) async fn read_body(request: Request, state: &AppState) -> Result<Request, ApiError> {
    let limits = state.options();
    check_content_type(request.headers())?;
    ContentEncoding::of(request.headers())?;
    if declared_length(request.headers()) > limits.payload_limit as u64 {
        return Err(ApiError::too_large("the body", limits.payload_limit));
    }
    let (head, body) = request.into_parts();
    let body = collect(Limited::new(body, limits.payload_limit), state);
    let body = timeout(limits.body_timeout, body).await;
    match body.map_err(|_| ApiError::too_slow(limits.body_timeout))? {
        Ok(None) => Err(ApiError::too_many_bodies(limits.bodies_limit())),
        Ok(Some((body, permit))) => {
            let mut request = Request::from_parts(head, Body::from(body));
            if let Some(permit) = permit {
                request.extensions_mut().insert(BodyPermit::new(permit));
            }
            Ok(request)
        }
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ApiError::too_large("the body", limits.payload_limit))
        }
        Err(error) => Err(ApiError::invalid(format!("the body could not be read: {error}"))),
    }
}

/// Collects a body in one buffer, and takes permits for its size from [`AppState::bodies`]. The result is `None` if other
/// bodies have all permits. [`BodyExt::collect`] would keep a buffer for each chunk, and a client may send chunks of one
/// byte.
async fn collect(
    mut body: Limited<Body>,
    state: &AppState,
) -> Result<Option<(Vec<u8>, Option<OwnedSemaphorePermit>)>, BoxError> {
    let mut bytes = Vec::new();
    let mut permit: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        // The first bytes of a body need no permit, so small requests are always read.
        let n_needed = (bytes.len() + data.len()) / BODY_UNIT;
        let n_missing = n_needed - permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if n_missing > 0 {
            let n_missing = u32::try_from(n_missing)?;
            let Ok(more) = state.bodies().try_acquire_many_owned(n_missing) else {
                return Ok(None);
            };
            match &mut permit {
                Some(permit) => permit.merge(more),
                None => permit = Some(more),
            }
        }
        bytes.extend_from_slice(&data);
    }
    Ok(Some((bytes, permit)))
}

/// The value of the `Content-Length` header; 0 if it is absent.
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
    // Checked here because serde also accepts a JSON array of the fields' values for a struct.
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
        // serde_path_to_error writes `?` for a field whose name is wrong.
        json_error(path.trim_end_matches(['?', '.']), error.inner())
    })?;
    let rest = deserializer.end();
    rest.map_err(|error| ApiError::invalid(format!("the body is not valid JSON: {error}")))?;
    Ok(value)
}

/// The response to a body in which serde_json found `error` at `path`.
fn json_error(path: &str, error: &serde_json::Error) -> ApiError {
    let is_syntax = error.classify() != Category::Data;
    match (is_syntax, path) {
        (true, "") => ApiError::invalid(format!("the body is not valid JSON: {error}")),
        (true, _) => {
            let message = format!("{path} is not valid JSON: {error}{}", surrogate_hint(error));
            ApiError::invalid(message).about(path)
        }
        (false, "") => {
            let message = error.to_string();
            let field = field_in(&message).map(str::to_owned);
            let error = ApiError::invalid(message);
            match field {
                Some(field) => error.about(field),
                None => error,
            }
        }
        (false, _) => ApiError::invalid(format!("{path}: {error}")).about(path),
    }
}

/// An addition to serde_json's message about half of a surrogate pair, which serde_json does not explain. A text that
/// was cut inside an emoji ends with half of a surrogate pair.
fn surrogate_hint(error: &serde_json::Error) -> &'static str {
    let message = error.to_string();
    let is_half = ["lone leading surrogate", "unexpected end of hex escape"];
    if is_half.iter().any(|half| message.starts_with(half)) {
        r"; half of a surrogate pair, such as `\ud83d`, is not a character"
    } else {
        ""
    }
}

/// The name of the field in serde's message about a missing or duplicate field.
fn field_in(message: &str) -> Option<&str> {
    let rest = message.strip_prefix("missing field `");
    let rest = rest.or_else(|| message.strip_prefix("duplicate field `"))?;
    Some(rest.split_once('`')?.0)
}
