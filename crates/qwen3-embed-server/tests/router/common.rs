use std::sync::OnceLock;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, header};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt;
use qwen3_embed::{Embedder, Reranker, ServiceOptions};
use qwen3_embed_server::{AppState, Models, ServerOptions, app};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tower::ServiceExt;

pub(crate) use qwen3_embed_testing::fixtures;

/// Four texts in four languages.
pub(crate) const TEXTS: [&str; 4] = [
    "今天天气真好,适合出去散步",
    "The weather is great today, perfect for a walk",
    "今日の天気はとても良いです、散歩に最適です",
    "오늘 날씨가 정말 좋네요, 산책하기 딱 좋아요",
];

/// An embedder whose vectors must equal the server's bit for bit.
pub(crate) fn embedder() -> &'static Embedder {
    static EMBEDDER: OnceLock<Embedder> = OnceLock::new();
    EMBEDDER.get_or_init(|| Embedder::builder(fixtures::model("wide")).build().unwrap())
}

/// A reranker whose scores must equal the server's bit for bit.
pub(crate) fn reranker() -> &'static Reranker {
    static RERANKER: OnceLock<Reranker> = OnceLock::new();
    RERANKER.get_or_init(|| Reranker::builder(fixtures::reranker("tied")).build().unwrap())
}

/// Both models, named `wide` and `tied`.
pub(crate) fn both() -> Models {
    Models { embedder: embedder_alone().embedder, reranker: reranker_alone().reranker }
}

/// The embedding model, named `wide`.
pub(crate) fn embedder_alone() -> Models {
    let embedder = Embedder::builder(fixtures::model("wide")).build().unwrap();
    Models { embedder: Some(("wide".into(), embedder)), reranker: None }
}

/// The reranker, named `tied`.
pub(crate) fn reranker_alone() -> Models {
    let reranker = Reranker::builder(fixtures::reranker("tied")).build().unwrap();
    Models { embedder: None, reranker: Some(("tied".into(), reranker)) }
}

/// A running server with the given models.
pub(crate) async fn started(models: Models, options: ServerOptions) -> AppState {
    let state = AppState::new(options);
    state.start(models, ServiceOptions::default()).await.unwrap();
    state
}

/// A server with both models and the default options. Tests share it, so they must not shut it down.
pub(crate) async fn ready() -> &'static AppState {
    static READY: OnceCell<AppState> = OnceCell::const_new();
    READY.get_or_init(|| started(both(), ServerOptions::default())).await
}

/// A response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    /// The value of a header. Empty if there is no such header.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The JSON body. Asserts that the request has succeeded.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/json");
        self.json()
    }
}

/// Sends a request. Asserts the properties that all responses have.
pub(crate) async fn call(state: &AppState, request: Request<Body>) -> Reply {
    let is_head = request.method() == "HEAD";
    let response = app(state.clone()).oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let reply = Reply { status: head.status.as_u16(), headers: head.headers, body };
    assert!(!reply.header("x-request-id").is_empty());
    if reply.status >= 400 && !is_head {
        check_error(&reply);
    }
    reply
}

/// Asserts that an error has exactly the four common keys, and the right type and code for its status.
fn check_error(reply: &Reply) {
    assert_eq!(reply.header("content-type"), "application/json", "{}", reply.text());
    let body = reply.json();
    let error = &body["error"];
    assert_eq!(body, json!({ "error": error }));
    let mut keys: Vec<&String> = error.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["code", "message", "param", "type"]);
    assert!(!error["message"].as_str().unwrap().is_empty());
    let kind = match reply.status {
        401 => "authentication_error",
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    };
    assert_eq!(error["type"], kind);
    let code = match reply.status {
        401 => "invalid_api_key",
        405 => "method_not_allowed",
        408 => "request_timeout",
        413 => "payload_too_large",
        415 => "unsupported_media_type",
        429 => "overloaded",
        _ => return,
    };
    assert_eq!(error["code"], code);
}

/// A request without a body.
pub(crate) fn request(method: &str, path: &str) -> Request<Body> {
    Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
}

/// A POST request with a JSON body.
pub(crate) fn post_request(path: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    request.body(body.into()).unwrap()
}

pub(crate) async fn get(state: &AppState, path: &str) -> Reply {
    call(state, request("GET", path)).await
}

pub(crate) async fn post(state: &AppState, path: &str, body: Value) -> Reply {
    call(state, post_request(path, body.to_string())).await
}

/// The end of the message about a text that is too long.
pub(crate) const TRUNCATE_HINT: &str = "; set \"truncate\": true to truncate the text, or start the server with `--truncate` to truncate all texts that are too long";

/// The body of an error about an invalid request.
pub(crate) fn invalid(param: impl Into<Value>, message: &str) -> Value {
    error("invalid_request_error", param, Value::Null, message)
}

/// The body of an error.
pub(crate) fn error(
    kind: &str,
    param: impl Into<Value>,
    code: impl Into<Value>,
    message: &str,
) -> Value {
    let (param, code) = (param.into(), code.into());
    json!({ "error": { "message": message, "type": kind, "param": param, "code": code } })
}

/// Sends each body to `path`. Asserts that it is rejected with exactly the given parameter and message.
pub(crate) async fn check_refused(state: &AppState, path: &str, cases: &[(&str, &str, &str)]) {
    let mut wrong = String::new();
    for &(body, param, message) in cases {
        let reply = call(state, post_request(path, body.to_owned())).await;
        let param = if param.is_empty() { Value::Null } else { param.into() };
        if reply.status != 400 || reply.json() != invalid(param, message) {
            wrong += &format!("{body:.200}\n{} {:.600}\n", reply.status, reply.text());
        }
    }
    assert!(wrong.is_empty(), "unexpected responses of {path}:\n{wrong}");
}

/// The vector in a response, from a list of numbers or base64.
pub(crate) fn vector(value: &Value) -> Vec<f32> {
    let Some(text) = value.as_str() else { return serde_json::from_value(value.clone()).unwrap() };
    let bytes = BASE64_STANDARD.decode(text).unwrap();
    let (values, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

/// The bits of values, for exact comparisons.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
