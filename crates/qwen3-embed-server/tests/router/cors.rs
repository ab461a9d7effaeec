//! CORS: requests from pages of other origins.

use axum::body::Body;
use axum::http::Request;
use qwen3_embed_server::{AppState, ServerOptions};

use crate::common::*;

const OURS: &str = "https://app.example";

fn server(origins: &[&str], api_key: Option<&str>) -> AppState {
    let cors_allow_origin = origins.iter().map(|origin| (*origin).to_owned()).collect();
    let api_key = api_key.map(str::to_owned);
    AppState::new(ServerOptions { cors_allow_origin, api_key, ..ServerOptions::default() })
}

/// A preflight request with the headers of OpenAI's client.
fn preflight(origin: &str) -> Request<Body> {
    let headers = "authorization,content-type,x-stainless-lang,x-stainless-retry-count";
    Request::options("/v1/embeddings")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", headers)
        .body(Body::empty())
        .unwrap()
}

fn from(origin: &str) -> Request<Body> {
    Request::get("/livez").header("origin", origin).body(Body::empty()).unwrap()
}

fn check_allowed(reply: &Reply, status: u16, origin: &str) {
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (status, origin));
}

fn check_preflight(reply: &Reply, origin: &str) {
    check_allowed(reply, 200, origin);
    let headers = reply.header("access-control-allow-headers");
    let allowed: Vec<&str> = headers.split(',').collect();
    for header in ["authorization", "content-type", "x-stainless-lang", "x-stainless-retry-count"] {
        assert!(allowed.contains(&header), "{headers}");
    }
    let methods = reply.header("access-control-allow-methods");
    assert!(methods == "*" || methods.contains("POST"), "{methods}");
}

#[tokio::test]
async fn allowed_origins_may_send_requests_and_read_responses() {
    let state = server(&["https://other.example", OURS], None);
    check_preflight(&call(&state, preflight(OURS)).await, OURS);
    let reply = call(&state, from(OURS)).await;
    check_allowed(&reply, 200, OURS);
    let exposed = reply.header("access-control-expose-headers");
    assert_eq!(exposed, "x-request-id,retry-after");
    assert!(reply.header("vary").contains("origin"), "{}", reply.header("vary"));
    // Errors have the headers too, so that the page can read them.
    let mut request = request("GET", "/nothing");
    request.headers_mut().insert("origin", OURS.parse().unwrap());
    check_allowed(&call(&state, request).await, 404, OURS);
}

#[tokio::test]
async fn other_origins_get_no_cors_headers() {
    let state = server(&[OURS], None);
    for origin in ["https://evil.example", "http://app.example", "https://app.example:8080", "null"]
    {
        let reply = call(&state, preflight(origin)).await;
        assert_eq!(reply.header("access-control-allow-origin"), "");
        check_allowed(&call(&state, from(origin)).await, 200, "");
    }
}

#[tokio::test]
async fn star_allows_any_origin() {
    let state = server(&[OURS, "*"], None);
    for origin in [OURS, "https://any.example", "null"] {
        check_preflight(&call(&state, preflight(origin)).await, "*");
        check_allowed(&call(&state, from(origin)).await, 200, "*");
    }
}

#[tokio::test]
async fn without_configured_origins_there_are_no_cors_headers() {
    let state = server(&[], None);
    check_allowed(&call(&state, preflight(OURS)).await, 405, "");
    check_allowed(&call(&state, from(OURS)).await, 200, "");
}

#[tokio::test]
async fn preflight_needs_no_key_but_the_request_does() {
    let state = server(&[OURS], Some("key"));
    check_preflight(&call(&state, preflight(OURS)).await, OURS);
    let mut request = request("GET", "/info");
    request.headers_mut().insert("origin", OURS.parse().unwrap());
    check_allowed(&call(&state, request).await, 401, OURS);
}
