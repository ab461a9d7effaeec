use axum::Router;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// The files of the playground: path, content type and content.
const FILES: [(&str, &str, &str); 7] = [
    ("/", HTML, include_str!("../playground/index.html")),
    ("/playground/style.css", CSS, include_str!("../playground/style.css")),
    ("/playground/script.js", JAVASCRIPT, include_str!("../playground/script.js")),
    ("/playground/document.js", JAVASCRIPT, include_str!("../playground/document.js")),
    ("/playground/map.js", JAVASCRIPT, include_str!("../playground/map.js")),
    ("/playground/requests.js", JAVASCRIPT, include_str!("../playground/requests.js")),
    ("/playground/vectors.js", JAVASCRIPT, include_str!("../playground/vectors.js")),
];

/// The routes of the playground.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, content_type, content)| {
        router.route(path, get(async move || file(content_type, content)))
    })
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
