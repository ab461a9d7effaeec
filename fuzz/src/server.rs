//! A request to a route of the server.
//!
//! Properties: the status is not a server error. The body of an error has the keys of OpenAI's errors. A successful
//! response is JSON without `null` in the place of a number, because a number that is not finite would be `null`.

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::{Request, header};
use http_body_util::BodyExt;
use qwen3_embed::{Embedder, Reranker, ServiceOptions};
use qwen3_embed_server::{AppState, Models, ServerOptions, app};
use qwen3_embed_testing::fixtures;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

/// The routes that read a body. The first byte of an input chooses one of them.
const ROUTES: [&str; 10] = [
    "/v1/embeddings",
    "/v2/embed",
    "/v1/rerank",
    "/v2/rerank",
    "/v1/score",
    "/",
    "/embed",
    "/similarity",
    "/tokenize",
    "/decode",
];

/// Checks one request: a byte for the route, and the body.
pub fn check(data: &[u8]) {
    let Some((&route, body)) = data.split_first() else { return };
    let route = ROUTES[usize::from(route) % ROUTES.len()];
    let (status, body) = respond(route, body);
    assert!(status < 500, "{status} from {route}: {body}");
    if status == 200 {
        assert!(numbers_are_finite(&body), "a null among numbers of {route}: {body}");
    } else {
        let message = body["error"]["message"].as_str();
        assert!(
            message.is_some_and(|message| !message.is_empty()),
            "{status} from {route}: {body}"
        );
    }
}

/// The status and the body of the response to a request.
fn respond(route: &str, body: &[u8]) -> (u16, Value) {
    static RUNTIME: LazyLock<Runtime> =
        LazyLock::new(|| Builder::new_current_thread().enable_all().build().unwrap());
    static STATE: LazyLock<AppState> = LazyLock::new(|| RUNTIME.block_on(start()));
    let state = AppState::clone(&STATE);
    let request = Request::post(route)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_vec()))
        .unwrap();
    let (status, body) = RUNTIME.block_on(async {
        let response = app(state).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    });
    (status, serde_json::from_slice(&body).expect("a response is JSON"))
}

async fn start() -> AppState {
    let embedder = Embedder::builder(fixtures::model("base")).threads(1).build().unwrap();
    let reranker = Reranker::builder(fixtures::reranker("tied")).threads(1).build().unwrap();
    let models = Models {
        embedder: Some(("base".into(), embedder)),
        reranker: Some(("tied".into(), reranker)),
    };
    let state = AppState::new(ServerOptions::default());
    state.start(models, ServiceOptions::default()).await.unwrap();
    state
}

/// Whether no list contains both numbers and `null`.
fn numbers_are_finite(value: &Value) -> bool {
    match value {
        Value::Array(values) => {
            let is_mixed = values.iter().any(Value::is_number) && values.iter().any(Value::is_null);
            !is_mixed && values.iter().all(numbers_are_finite)
        }
        Value::Object(fields) => fields.values().all(numbers_are_finite),
        _ => true,
    }
}

/// A valid request to each route.
pub fn seeds() -> Vec<Vec<u8>> {
    let bodies = [
        r#"{"model":"base","input":["a","今天"],"dimensions":32,"encoding_format":"base64","instruct":"find"}"#,
        r#"{"model":"base","texts":["a","b"],"input_type":"search_query","embedding_types":["float","int8"],"truncate":"END"}"#,
        r#"{"model":"tied","query":"q","documents":["a",{"text":"b"}],"top_n":1,"return_documents":true,"instruct":"i"}"#,
        r#"{"model":"tied","query":"q","documents":["a","b"],"max_tokens_per_doc":20}"#,
        r#"{"text_1":"q","text_2":["a","b"],"truncate_prompt_tokens":300}"#,
        r#"{"inputs":["a","b"],"truncate":true,"normalize":false}"#,
        r#"{"inputs":"a","prompt_name":"query","truncation_direction":"Left","dimensions":32}"#,
        r#"{"inputs":{"source_sentence":"a","sentences":["b","c"]},"parameters":{"truncate":true}}"#,
        r#"{"inputs":["a b","c"],"add_special_tokens":true}"#,
        r#"{"ids":[[1,2,3],[4]],"skip_special_tokens":false}"#,
    ];
    let seed = |(route, body): (usize, &str)| [&[route as u8], body.as_bytes()].concat();
    // Lists of token ids end with the end-of-text token of the model.
    let tokens = r#"{"input":[[1,2,3,1000],[1000]],"user":null,"encoding_format":"float"}"#;
    bodies.into_iter().enumerate().chain([(0, tokens)]).map(seed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_valid() {
        let mut routes = [false; ROUTES.len()];
        for seed in seeds() {
            let (&route, body) = seed.split_first().unwrap();
            let (status, response) = respond(ROUTES[usize::from(route)], body);
            assert_eq!(status, 200, "{}: {response}", ROUTES[usize::from(route)]);
            routes[usize::from(route)] = true;
        }
        assert_eq!(routes, [true; ROUTES.len()]);
    }
}
