//! The functions with a server. The server of these tests has the contract of OpenAI's, computes with the bundled model
//! and a reranker of the fixtures, and fails as servers do.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use datafusion::arrow::array::{Array, AsArray, RecordBatch, StringArray};
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::Float32Type;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionContext;
use qwen3_embed::{EmbedOptions, Embedder, Prompt, Reranker, Source};
use qwen3_embed_datafusion::{Functions, Server, ServerSettings};
use serde_json::{Value, json};

const RERANKER: &str = "../../../fixtures/rerankers/tied";

struct Models {
    embedder: Embedder,
    reranker: Reranker,
    /// The number of requests so far.
    requests: AtomicUsize,
    /// Whether vectors are encoded as base64 if the request asks for it.
    base64: bool,
}

/// Answers as `POST /v1/embeddings`. Each third request is rejected as by an overloaded server.
async fn embeddings(
    State(models): State<Arc<Models>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Result<Json<Value>, (StatusCode, HeaderMap, String)> {
    let mut retry = HeaderMap::new();
    retry.insert("retry-after", "0".parse().unwrap());
    if models.requests.fetch_add(1, Ordering::Relaxed) % 3 == 1 {
        return Err((StatusCode::TOO_MANY_REQUESTS, retry, "overloaded".to_owned()));
    }
    assert_eq!(headers["authorization"], "Bearer secret");
    if body["model"] != "demo" {
        let message = format!("no model {}", body["model"]);
        return Err((StatusCode::NOT_FOUND, HeaderMap::new(), message));
    }
    let texts: Vec<&str> =
        body["input"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    let mut options = EmbedOptions::new().prompt(Prompt::Document);
    if let Some(dimensions) = body["dimensions"].as_u64() {
        options = options.dimensions(dimensions as usize);
    }
    let vectors = models.embedder.embed_with(texts, &options).unwrap();
    let data = vectors.iter().enumerate().map(|(index, vector)| {
        let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
        let embedding = if models.base64 { json!(STANDARD.encode(bytes)) } else { json!(vector) };
        json!({ "index": index, "embedding": embedding })
    });
    // The order of a response is not promised.
    let data: Vec<Value> = data.rev().collect();
    Ok(Json(json!({ "data": data })))
}

async fn rerank(State(models): State<Arc<Models>>, Json(body): Json<Value>) -> Json<Value> {
    let documents = body["documents"].as_array().unwrap().iter().map(|d| d.as_str().unwrap());
    let ranked =
        models.reranker.rank(body["query"].as_str().unwrap(), &documents.collect::<Vec<_>>());
    let results = ranked
        .unwrap()
        .into_iter()
        .map(|document| json!({ "index": document.index, "relevance_score": document.score }));
    Json(json!({ "results": results.collect::<Vec<_>>() }))
}

/// Starts a server and returns its base address.
async fn start(base64: bool) -> String {
    let models = Arc::new(Models {
        embedder: Embedder::builder(Source::demo()).build().unwrap(),
        reranker: Reranker::builder(RERANKER).build().unwrap(),
        requests: AtomicUsize::new(0),
        base64,
    });
    let routes = Router::new()
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/rerank", post(rerank))
        .with_state(models);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, routes).await });
    format!("http://{address}/v1")
}

fn settings(url: String) -> ServerSettings {
    ServerSettings {
        url,
        api_key: Some("secret".to_owned()),
        model: "demo".to_owned(),
        reranker: Some("reranker".to_owned()),
        dimensions: None,
    }
}

async fn rows(context: &SessionContext, sql: &str) -> RecordBatch {
    let frame = context.sql(sql).await.unwrap();
    let schema = Arc::new(frame.schema().as_arrow().clone());
    concat_batches(&schema, &frame.collect().await.unwrap()).unwrap()
}

#[tokio::test]
async fn results_are_those_of_the_library() {
    for (base64, dimensions) in [(true, None), (false, Some(32))] {
        let settings = ServerSettings { dimensions, ..settings(start(base64).await) };
        let server = Arc::new(Server::connect(settings).await.unwrap());
        let state = SessionStateBuilder::new_with_default_features();
        let state = Functions::remote(&server).register(state).build();
        let context = SessionContext::new_with_state(state);
        // Several requests, with equal texts and nulls.
        let texts: Vec<Option<String>> =
            (0..700).map(|n| (n % 7 != 0).then(|| format!("number {}", n % 500))).collect();
        let column: StringArray = texts.iter().collect();
        let batch = RecordBatch::try_from_iter([("text", Arc::new(column) as _)]).unwrap();
        context.register_batch("documents", batch).unwrap();
        let sql = "SELECT embed(text), embed_query(text), embed_query(text, 'Find'), rerank('number', text)
            FROM documents";
        let got = rows(&context, sql).await;

        let embedder = Embedder::builder(Source::demo());
        let embedder = match dimensions {
            Some(dimensions) => embedder.dimensions(dimensions),
            None => embedder,
        };
        let embedder = embedder.build().unwrap();
        let reranker = Reranker::builder(RERANKER).build().unwrap();
        for row in (0..700).step_by(31) {
            let Some(text) = &texts[row] else {
                assert!((0..4).all(|column| got.column(column).is_null(row)));
                continue;
            };
            let instruction = Prompt::Instruction("Find".to_owned());
            let instructed = EmbedOptions::new().prompt(instruction);
            let expected = [
                embedder.embed_document(text).unwrap(),
                embedder.embed_query(text).unwrap(),
                embedder.embed_with([text.as_str()], &instructed).unwrap().into_vec(),
            ];
            for (column, expected) in expected.iter().enumerate() {
                let vector = got.column(column).as_fixed_size_list().value(row);
                assert_eq!(vector.as_primitive::<Float32Type>().values(), expected.as_slice());
            }
            let score = got.column(3).as_primitive::<Float32Type>().value(row);
            assert_eq!(score, reranker.score("number", text).unwrap());
        }
    }
}

#[tokio::test]
async fn constants_are_sent_to_the_server() {
    let server = Arc::new(Server::connect(settings(start(true).await)).await.unwrap());
    let state = SessionStateBuilder::new_with_default_features();
    let state = Functions::remote(&server).register(state).build();
    let context = SessionContext::new_with_state(state);
    let sql = "SELECT n, embed_query('rain') FROM (VALUES (1), (2), (3)) AS numbers(n)";
    assert_eq!(rows(&context, sql).await.num_rows(), 3);
}

#[tokio::test]
async fn an_error_of_the_server_names_the_address_and_the_problem() {
    let url = start(true).await;
    let unknown = ServerSettings { model: "other".to_owned(), ..settings(url.clone()) };
    let message = Server::connect(unknown).await.unwrap_err().to_string();
    assert!(message.starts_with(&format!("{url}/embeddings: 404")), "{message}");
    assert!(message.contains("no model \"other\""), "{message}");
    let message = Server::connect(settings("nonsense".to_owned())).await.unwrap_err().to_string();
    assert!(message.starts_with("nonsense/embeddings: "), "{message}");
    assert!(!format!("{:?}", settings(url)).contains("secret"));
}
