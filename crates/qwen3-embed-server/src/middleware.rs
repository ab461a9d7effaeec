use std::sync::Arc;
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
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;
use uuid::Uuid;

use crate::AppState;
use crate::body::arrived;
use crate::error::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that is taken over from a client, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// The status, of nginx's making, of requests that were not answered because their clients had gone.
const CLIENT_GONE: u16 = 499;

/// Paths that are answered without a key.
const PROBES: [&str; 3] = ["/livez", "/readyz", "/health"];

/// The path of the metrics, which is answered without a key if the server is set up so.
const METRICS: &str = "/metrics";

/// The path of the documentation's page. `/docs` redirects to it, and its links are relative to it.
const DOCS_PAGE: &str = "/docs/";

/// Removes a slash at the end of the path, so that `/v1/embeddings/` is routed as `/v1/embeddings`.
pub(crate) fn without_last_slash(mut request: Request) -> Request {
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

/// Gives a request its id, which is the client's own if it sent one, and a span; counts and logs it.
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
        let mut observed = Observed { state, route, began, status: CLIENT_GONE };
        let mut response = next.run(request).await;
        observed.status = response.status().as_u16();
        response.headers_mut().insert(REQUEST_ID, id);
        response
    }
    .instrument(span)
    .await
}

/// What is counted and logged of a request when it is dropped: when there is an answer, or when the client has
/// gone before.
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
        let done = if status == CLIENT_GONE { "given up by the client" } else { "answered" };
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

/// Refuses requests without the key, if there is one.
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
        let message = "this server needs a key: send `Authorization: Bearer KEY`";
        return ApiError::unauthorized(message).into_response();
    };
    if bool::from(sent.ct_eq(key.as_bytes())) {
        next.run(request).await
    } else {
        ApiError::unauthorized("the key is wrong").into_response()
    }
}

/// The key as a bearer token, or as the password that a browser has asked for.
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

/// That one request is worked on. It is shared by all that works for the request.
pub(crate) type Permit = Arc<OwnedSemaphorePermit>;

/// Refuses a request when as many as there may be are worked on: from the arrival of its whole body until its
/// answer is written, and until nothing works for it any more if it is given up.
pub(crate) async fn limit(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let overloaded = || {
        let limit = state.options().max_concurrent_requests;
        let message = format!("{limit} requests are being worked on, which is the limit");
        ApiError::overloaded(message, Duration::from_secs(1)).into_response()
    };
    if state.permits().available_permits() == 0 {
        // Without waiting for the body.
        return overloaded();
    }
    let mut request = match arrived(request, state.options()).await {
        Ok(request) => request,
        Err(error) => return error.into_response(),
    };
    let Ok(permit) = Arc::clone(state.permits()).try_acquire_owned() else { return overloaded() };
    let permit = Permit::new(permit);
    request.extensions_mut().insert(Arc::clone(&permit));
    let response = next.run(request).await;
    response.map(|body| {
        // Dropped with the body.
        Body::new(body.map_err(move |error| {
            let _permit = &permit;
            error
        }))
    })
}
