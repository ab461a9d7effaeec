use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt;
use subtle::ConstantTimeEq;
use tracing::Instrument;
use uuid::Uuid;

use crate::AppState;
use crate::body::read_body;
use crate::error::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that is accepted from a client, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// The status, in metrics and logs, of a request whose client disconnected before the response. nginx uses the same
/// status.
const CLIENT_DISCONNECTED: u16 = 499;

/// Paths that need no API key.
const PROBES: [&str; 3] = ["/livez", "/readyz", "/health"];

/// The path of the metrics, which needs no API key with [`ServerOptions::public_metrics`].
///
/// [`ServerOptions::public_metrics`]: crate::ServerOptions::public_metrics
const METRICS: &str = "/metrics";

/// The path of the documentation page. `/docs` redirects to this path, because the links of the page are relative.
const DOCS_PAGE: &str = "/docs/";

/// Removes a slash at the end of the path, so that `/v1/embeddings/` is routed like `/v1/embeddings`.
pub(crate) fn remove_trailing_slash(mut request: Request) -> Request {
    let uri = request.uri();
    let shorter = uri.path().strip_suffix('/').filter(|path| !path.is_empty());
    let Some(path) = shorter.filter(|_| uri.path() != DOCS_PAGE) else { return request };
    let path_and_query = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = path_and_query.parse().ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    request
}

/// Assigns a request id (the client's, if it sent one), opens a tracing span, and counts and logs the request.
pub(crate) async fn observe(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let id = request_id(request.headers());
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("none", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!(
        "request",
        id = id.to_str().unwrap_or_default(),
        method = %request.method(),
        path = request.uri().path(),
    );
    async move {
        let mut observed = Observed { state, route, began, status: CLIENT_DISCONNECTED };
        let mut response = next.run(request).await;
        observed.status = response.status().as_u16();
        response.headers_mut().insert(REQUEST_ID, id);
        response
    }
    .instrument(span)
    .await
}

/// Counts and logs a request when this value is dropped: after the response, or when the client disconnects before the
/// response.
struct Observed {
    state: AppState,
    route: String,
    began: Instant,
    status: u16,
}

impl Drop for Observed {
    fn drop(&mut self) {
        let Self { state, route, began, status } = self;
        let (status, latency) = (*status, began.elapsed());
        state.metrics().request(route, status, latency);
        let latency_ms = latency.as_secs_f64() * 1e3;
        let done = if status == CLIENT_DISCONNECTED { "client disconnected" } else { "answered" };
        if PROBES.contains(&route.as_str()) || route == METRICS {
            tracing::debug!(status, latency_ms, "{done}");
        } else {
            tracing::info!(status, latency_ms, "{done}");
        }
    }
}

fn request_id(headers: &HeaderMap) -> HeaderValue {
    match headers.get(REQUEST_ID) {
        Some(id) if !id.is_empty() && id.len() <= MAX_REQUEST_ID && id.to_str().is_ok() => {
            id.clone()
        }
        _ => HeaderValue::from_str(&Uuid::new_v4().to_string())
            .unwrap_or(HeaderValue::from_static("none")),
    }
}

/// Refuses requests without the API key, if the server has one.
pub(crate) async fn authorize(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let Some(key) = &state.options().api_key else { return next.run(request).await };
    let path = request.uri().path();
    if PROBES.contains(&path) || (state.options().public_metrics && path == METRICS) {
        return next.run(request).await;
    }
    let Some(sent) = sent_key(request.headers()) else {
        let message = "this server requires an API key: send `Authorization: Bearer KEY`";
        return ApiError::unauthorized(message).into_response();
    };
    if bool::from(sent.ct_eq(key.as_bytes())) {
        next.run(request).await
    } else {
        ApiError::unauthorized("the API key is wrong").into_response()
    }
}

/// The key in the header `Authorization`: the bearer token, or the password of basic authentication. Browsers use basic
/// authentication and ask their users for the password.
fn sent_key(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let at = value.iter().position(|&byte| byte == b' ')?;
    let (scheme, credentials) = (&value[..at], value[at..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        Some(credentials.to_vec())
    } else if scheme.eq_ignore_ascii_case(b"basic") {
        let decoded = BASE64_STANDARD.decode(credentials).ok()?;
        let colon = decoded.iter().position(|&byte| byte == b':')?;
        Some(decoded[colon + 1..].to_vec())
    } else {
        None
    }
}

/// Refuses a request if `max_concurrent_requests` other requests are being processed.
///
/// A request counts from the arrival of its whole body until its response is written. If the client disconnects, the
/// request counts until all work for it has ended: each piece of work holds a clone of the [`Permit`].
///
/// [`Permit`]: crate::state::Permit
pub(crate) async fn limit(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let overloaded = || {
        let limit = state.options().max_concurrent_requests;
        let message =
            format!("the limit of {limit} concurrent requests is reached; try again later");
        ApiError::overloaded(message, Duration::from_secs(1)).into_response()
    };
    if state.is_at_limit() {
        // The request is refused before its body is read.
        return overloaded();
    }
    let mut request = match read_body(request, &state).await {
        Ok(request) => request,
        Err(error) => return error.into_response(),
    };
    let Some(permit) = state.try_permit() else { return overloaded() };
    request.extensions_mut().insert(permit.clone());
    let response = next.run(request).await;
    response.map(|body| {
        // The permit is dropped together with the response body.
        Body::new(body.map_err(move |error| {
            let _permit = &permit;
            error
        }))
    })
}
