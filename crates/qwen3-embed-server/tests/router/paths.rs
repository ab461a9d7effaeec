//! Paths, methods, model names in paths, and request ids.

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use qwen3_embed_server::{Models, ServerOptions, app};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::common::*;

/// The routes that support GET.
pub(crate) const GETS: [&str; 16] = [
    "/v1/models",
    "/v1/models/wide",
    "/info",
    "/livez",
    "/readyz",
    "/health",
    "/metrics",
    "/openapi.json",
    "/docs/",
    "/docs/index.css",
    "/playground/style.css",
    "/playground/script.js",
    "/playground/document.js",
    "/playground/map.js",
    "/playground/requests.js",
    "/playground/vectors.js",
];

/// The routes that support POST.
pub(crate) const POSTS: [&str; 12] = [
    "/embeddings",
    "/v1/embeddings",
    "/v2/embed",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/v1/score",
    "/score",
    "/embed",
    "/similarity",
    "/tokenize",
    "/decode",
];

#[tokio::test]
async fn unknown_path_is_not_found() {
    let state = ready().await;
    for (method, path) in [
        ("GET", "/nothing"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1"),
        ("POST", "/v1/embeddings//"),
        // Routes of text-embeddings-inference that this server does not have.
        ("GET", "/ping"),
        ("POST", "/invocations"),
        ("POST", "/embed_all"),
        ("POST", "/embed_sparse"),
        ("POST", "/predict"),
        ("GET", "/api-doc/openapi.json"),
        ("POST", "/V1/embeddings"),
        ("POST", "//v1/embeddings"),
        ("POST", "/v1//embeddings"),
        ("POST", "/v1/../v1/embeddings"),
        ("GET", "/playground"),
        ("GET", "/playground/../Cargo.toml"),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd"),
        ("GET", "/%00"),
        ("GET", "/%ff"),
        ("GET", "/%"),
        ("GET", "/docs/%2e%2e/%2e%2e/Cargo.toml"),
        ("GET", "/docs/nothing"),
        ("DELETE", "/"),
        ("PATCH", "/nothing"),
    ] {
        let reply = call(state, request(method, path)).await;
        let named = path.strip_suffix('/').unwrap_or(path);
        let message = format!("there is no route `{method} {named}`; `GET /docs` lists all routes");
        let expected = error("invalid_request_error", Value::Null, "not_found", &message);
        if (method, path) == ("DELETE", "/") {
            assert_eq!(reply.status, 405);
        } else {
            assert_eq!((reply.status, reply.json()), (404, expected));
        }
    }
}

#[tokio::test]
async fn unknown_method_is_not_allowed() {
    let state = ready().await;
    let check = async |method: &str, path: &str, allowed: &str| {
        let reply = call(state, request(method, path)).await;
        let message = format!("`{path}` does not support the method {method}");
        let expected = error("invalid_request_error", Value::Null, "method_not_allowed", &message);
        assert_eq!((reply.status, reply.json()), (405, expected));
        assert_eq!(reply.header("allow"), allowed, "{method} {path}");
    };
    for path in GETS {
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            check(method, path, "GET,HEAD").await;
        }
    }
    for path in POSTS {
        for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            check(method, path, "POST").await;
        }
        assert_eq!(call(state, request("HEAD", path)).await.status, 405);
    }
    // `/` is the page for GET, and a route of text-embeddings-inference for POST.
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
        check(method, "/", "POST,GET,HEAD").await;
    }
}

#[tokio::test]
async fn ignores_trailing_slash() {
    let state = ready().await;
    let same = |reply: Reply| (reply.status, reply.header("content-type").to_owned(), reply.body);
    for path in GETS.into_iter().filter(|path| !["/docs/", "/metrics"].contains(path)) {
        let expected = same(get(state, path).await);
        assert_eq!(same(get(state, &format!("{path}/")).await), expected, "{path}");
        assert_eq!(same(get(state, &format!("{path}/?x=/")).await), expected, "{path}");
    }
    assert_eq!(get(state, "/metrics/").await.status, 200);
    for path in POSTS {
        let expected = same(post(state, path, json!({ "input": 7 })).await);
        assert_eq!(expected.0, 400, "{path}");
        assert_eq!(same(post(state, &format!("{path}/"), json!({ "input": 7 })).await), expected);
    }
    let request = json!({ "input": "a" });
    let expected = post(state, "/v1/embeddings", request.clone()).await.ok();
    assert_eq!(post(state, "/v1/embeddings/", request.clone()).await.ok(), expected);
    assert_eq!(post(state, "/embeddings", request.clone()).await.ok(), expected);
    assert_eq!(post(state, "/embeddings/", request).await.ok(), expected);
    // `/docs` redirects to `/docs/`, which must not redirect back.
    let docs = get(state, "/docs").await;
    assert_eq!((docs.status, docs.header("location")), (303, "/docs/"));
    assert_eq!(get(state, "/docs/").await.status, 200);
    // The request target has the absolute form, which clients send to proxies.
    assert_eq!(get(state, "http://elsewhere.example/livez/").await.text(), "ok");
}

/// A program nests the router beside routes of its own.
#[tokio::test]
async fn router_can_be_nested() {
    let router = Router::new().nest("/models", app(ready().await.clone()));
    for path in ["/models/livez", "/models/livez/"] {
        let response = router.clone().oneshot(request("GET", path)).await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
    for (path, status) in [("/models/v1/embeddings/", 200), ("/v1/embeddings", 404)] {
        let request = post_request(path, r#"{"input":"a"}"#);
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), status, "{path}");
    }
}

#[tokio::test]
async fn head_responds_like_get_without_a_body() {
    for path in GETS {
        let head = call(ready().await, request("HEAD", path)).await;
        let get = get(ready().await, path).await;
        assert_eq!((head.status, get.status), (200, 200), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"));
        assert!(head.body.is_empty() && !get.body.is_empty(), "{path}");
    }
}

#[tokio::test]
async fn ignores_query_string() {
    let reply = get(ready().await, "/livez?x=%ff&y").await;
    assert_eq!(reply.text(), "ok");
    let request = post_request("/embed?model=x", r#"{"inputs":"a"}"#);
    assert_eq!(call(ready().await, request).await.status, 200);
}

#[tokio::test]
async fn accepts_unusual_request_targets() {
    let state = ready().await;
    // The request target has the absolute form, which clients send to proxies.
    assert_eq!(get(state, "http://elsewhere.example/livez").await.text(), "ok");
    assert_eq!(get(state, "http://elsewhere.example").await.status, 200);
    assert_eq!(call(state, request("OPTIONS", "*")).await.status, 404);
    assert_eq!(call(state, request("CONNECT", "elsewhere.example:443")).await.status, 404);
    for path in
        ["/".repeat(10_000), "/a".repeat(20_000), format!("/v1/models/{}", "%61".repeat(9_000))]
    {
        assert_eq!(get(state, &path).await.status, 404);
    }
}

#[tokio::test]
async fn lists_models_and_finds_them_by_name() {
    let state = ready().await;
    let mut list = get(state, "/v1/models").await.ok();
    let created = list["data"][0]["created"].as_u64().unwrap();
    assert!(created > 1_700_000_000);
    let model = |id: &str| json!({ "id": id, "object": "model", "created": created, "owned_by": "qwen3-embed" });
    assert_eq!(list, json!({ "object": "list", "data": [model("wide"), model("tied")] }));
    assert_eq!(get(state, "/v1/models/wide").await.ok(), list["data"][0].take());
    assert_eq!(get(state, "/v1/models/%77ide").await.ok(), model("wide"));
    assert_eq!(get(state, "/v1/models/tied").await.ok(), list["data"][1].take());
    for (path, name) in [
        ("gpt-4", "gpt-4"),
        ("a/b", "a/b"),
        ("a%2Fb/c/d", "a/b/c/d"),
        ("gpt-4/", "gpt-4"),
        ("wide//", "wide/"),
        ("%E5%A4%A9%20%22", "天 \""),
    ] {
        let reply = get(state, &format!("/v1/models/{path}")).await;
        let message =
            format!("the model `{name}` does not exist; this server has [\"wide\", \"tied\"]");
        let expected = error("invalid_request_error", "model", "model_not_found", &message);
        assert_eq!((reply.status, reply.json()), (404, expected));
    }
    let reply = get(state, "/v1/models/%ff").await;
    let expected = invalid("model", "the model name is not valid UTF-8");
    assert_eq!((reply.status, reply.json()), (400, expected));
}

/// By default, a model's name is its path or id, which has slashes.
#[tokio::test]
async fn finds_names_with_slashes_encoded_or_not() {
    for name in ["Qwen/Qwen3-Embedding-0.6B", "/data/models/wide", "./wide/", "a b/c?d"] {
        let mut models = embedder_alone();
        models.embedder.as_mut().unwrap().0 = name.into();
        let state = started(models, ServerOptions::default()).await;
        let encode = |text: &str| text.replace(' ', "%20").replace('?', "%3F");
        for path in [encode(name), encode(name).replace('/', "%2F")] {
            assert_eq!(get(&state, &format!("/v1/models/{path}")).await.ok()["id"], name);
        }
        let request = json!({ "model": name, "input": "a" });
        assert_eq!(post(&state, "/v1/embeddings", request).await.ok()["model"], name);
    }
    let empty = started(Models::default(), ServerOptions::default()).await;
    assert_eq!(get(&empty, "/v1/models").await.ok()["data"], json!([]));
}

async fn request_id(sent: Option<&[u8]>) -> String {
    let mut request = Request::get("/nothing").body(Body::empty()).unwrap();
    if let Some(sent) = sent {
        request.headers_mut().insert("x-request-id", sent.try_into().unwrap());
    }
    let reply = call(ready().await, request).await;
    assert_eq!(reply.headers.get_all("x-request-id").iter().count(), 1);
    reply.header("x-request-id").to_owned()
}

#[tokio::test]
async fn keeps_request_id_or_generates_one() {
    let longest = "x".repeat(128);
    for id in ["1", "req_4711-a/b:c", "two words", &longest] {
        assert_eq!(request_id(Some(id.as_bytes())).await, id);
    }
    let is_made_up = |id: &str| id.len() == 36 && id.matches('-').count() == 4;
    let mut made_up = vec![request_id(None).await, request_id(None).await];
    for id in [&b""[..], "x".repeat(129).as_bytes(), b"\xff", "ä".as_bytes()] {
        made_up.push(request_id(Some(id)).await);
    }
    assert!(made_up.iter().all(|id| is_made_up(id)), "{made_up:?}");
    made_up.sort();
    made_up.dedup();
    assert_eq!(made_up.len(), 6);
}
