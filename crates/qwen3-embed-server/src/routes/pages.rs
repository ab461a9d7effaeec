use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};

const INDEX: &str = include_str!("../playground/index.html");
const STYLE: &str = include_str!("../playground/style.css");
const SCRIPT: &str = include_str!("../playground/script.js");

/// The page of the playground.
pub(crate) async fn index() -> Response {
    file("text/html; charset=utf-8", INDEX)
}

/// The style sheet of the playground.
pub(crate) async fn style() -> Response {
    file("text/css; charset=utf-8", STYLE)
}

/// The script of the playground.
pub(crate) async fn script() -> Response {
    file("text/javascript; charset=utf-8", SCRIPT)
}

/// A response with a file of the playground. Its content security policy allows requests to this server only.
fn file(content_type: &'static str, content: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Browsers must load the file again each time, because another version of the server may have another file.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    let headers: HeaderMap =
        headers.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
    (headers, content).into_response()
}
