//! The API key.

use axum::body::Body;
use axum::http::{Request, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use qwen3_embed_server::{AppState, ServerOptions};
use serde_json::Value;

use crate::common::*;

const KEY: &str = "sk-0123:456 789";

async fn guarded() -> AppState {
    let options = ServerOptions { api_key: Some(KEY.to_owned()), ..ServerOptions::default() };
    started(embedder_alone(), options).await
}

fn with(mut request: Request<Body>, authorization: &[u8]) -> Request<Body> {
    request.headers_mut().insert(header::AUTHORIZATION, authorization.try_into().unwrap());
    request
}

fn basic(credentials: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(credentials))
}

fn check_refused(reply: &Reply, message: &str) {
    let expected = error("authentication_error", Value::Null, "invalid_api_key", message);
    assert_eq!((reply.status, reply.json()), (401, expected));
    // One header for each challenge, because browsers read only the first challenge of a header.
    let challenges: Vec<_> = reply.headers.get_all(header::WWW_AUTHENTICATE).iter().collect();
    assert_eq!(challenges, ["Bearer", "Basic realm=\"qwen3-embed\", charset=\"UTF-8\""]);
}

const MISSING: &str = "this server requires an API key: send `Authorization: Bearer KEY`";
const WRONG: &str = "the API key is wrong";

#[tokio::test]
async fn all_paths_but_the_probes_require_the_key() {
    let state = guarded().await;
    for path in ["/livez", "/readyz", "/health", "/livez/", "/health/?verbose"] {
        assert_eq!(get(&state, path).await.status, 200);
        // The probes also accept a wrong key.
        let reply = call(&state, with(request("GET", path), b"Bearer x")).await;
        assert_eq!(reply.status, 200);
    }
    for (method, path, status) in [
        ("GET", "/", 200),
        ("GET", "/playground/style.css", 200),
        ("GET", "/playground/script.js", 200),
        ("GET", "/playground/document.js", 200),
        ("GET", "/playground/map.js", 200),
        ("GET", "/playground/requests.js", 200),
        ("GET", "/playground/vectors.js", 200),
        ("GET", "/docs", 303),
        ("GET", "/docs/", 200),
        ("GET", "/docs/swagger-ui.css", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/metrics", 200),
        ("GET", "/metrics/", 200),
        ("GET", "/info", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/models/wide", 200),
        ("GET", "/nothing", 404),
        ("GET", "//livez", 404),
        ("GET", "/%6civez", 404),
        ("POST", "/", 415),
        ("POST", "/embeddings", 415),
        ("POST", "/v1/embeddings", 415),
        ("POST", "/v1/embeddings/", 415),
        ("POST", "/v2/embed", 415),
        ("POST", "/v1/rerank", 415),
        ("POST", "/v2/rerank", 415),
        ("POST", "/rerank", 415),
        ("POST", "/v1/score", 415),
        ("POST", "/score", 415),
        ("POST", "/embed", 415),
        ("POST", "/similarity", 415),
        ("POST", "/tokenize", 415),
        ("POST", "/decode", 415),
        ("DELETE", "/v1/models", 405),
    ] {
        check_refused(&call(&state, request(method, path)).await, MISSING);
        let right = with(request(method, path), format!("Bearer {KEY}").as_bytes());
        assert_eq!(call(&state, right).await.status, status, "{method} {path}");
    }
}

#[tokio::test]
async fn metrics_can_be_public_without_the_key() {
    let options = ServerOptions {
        api_key: Some(KEY.to_owned()),
        public_metrics: true,
        ..ServerOptions::default()
    };
    let state = started(embedder_alone(), options).await;
    for path in ["/metrics", "/metrics/", "/metrics?x"] {
        let reply = get(&state, path).await;
        assert!(reply.status == 200 && reply.text().contains("# TYPE "), "{path}");
    }
    assert_eq!(call(&state, request("POST", "/metrics")).await.status, 405);
    for path in ["/info", "/v1/models", "/openapi.json", "/metrics/x", "//metrics", "/Metrics"] {
        check_refused(&get(&state, path).await, MISSING);
    }
}

#[tokio::test]
async fn accepts_key_as_bearer_token_or_password() {
    let state = guarded().await;
    for authorization in [
        format!("Bearer {KEY}"),
        format!("bearer {KEY}"),
        format!("BEARER   {KEY} "),
        basic(&format!("user:{KEY}")),
        basic(&format!(":{KEY}")),
        basic(&format!("user:{KEY}")).replace("Basic", "basic"),
    ] {
        let reply = call(&state, with(request("GET", "/info"), authorization.as_bytes())).await;
        assert_eq!(reply.status, 200, "{authorization}");
    }
    for (authorization, message) in [
        ("Bearer sk-0123:456 78", WRONG),
        ("Bearer sk-0123:456 7890", WRONG),
        ("Bearer SK-0123:456 789", WRONG),
        ("Bearer \"sk-0123:456 789\"", WRONG),
        ("Bearer ", WRONG),
        (&basic("user:wrong"), WRONG),
        (&basic(&format!("user:x:{KEY}")), WRONG),
        (&basic("user:"), WRONG),
        (&basic("no colon"), MISSING),
        ("Basic ???", MISSING),
        ("Bearer", MISSING),
        (KEY, MISSING),
        ("", MISSING),
        ("Digest username=\"x\"", MISSING),
        (&format!("Token {KEY}"), MISSING),
        (&format!(" Bearer {KEY}"), MISSING),
    ] {
        let reply = call(&state, with(request("GET", "/info"), authorization.as_bytes())).await;
        check_refused(&reply, message);
    }
    let reply = call(&state, with(request("GET", "/info"), b"Bearer \xff\xfe")).await;
    check_refused(&reply, WRONG);
}

#[tokio::test]
async fn without_a_configured_key_any_key_is_accepted() {
    for authorization in ["Bearer anything", "nonsense"] {
        let request = with(request("GET", "/info"), authorization.as_bytes());
        assert_eq!(call(ready().await, request).await.status, 200);
    }
}
