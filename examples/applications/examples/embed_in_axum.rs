//! A web service of one's own with an embedding model inside: one model for all requests, a queue in front of it that
//! makes batches of concurrent requests, timeouts, metrics, and a clean end.
//!
//! ```text
//! cargo run --release --example embed_in_axum
//! curl -s localhost:8080/similarity -H 'content-type: application/json' \
//!     -d '{"a": "你好", "b": "Hello"}'
//! curl -s localhost:8080/metrics
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::Parser;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use qwen3_embed::{EmbedOptions, Embedder, Error, Service, ServiceOptions, cosine};
use qwen3_embed_examples::ModelArgs;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;

/// Answers how similar two texts are.
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:8080")]
    address: SocketAddr,
}

/// What all requests share.
struct App {
    service: Service<Embedder>,
    registry: Registry,
    failures: Counter,
    seconds: Histogram,
}

#[derive(Deserialize)]
struct Texts {
    a: String,
    b: String,
}

#[derive(Serialize)]
struct Similarity {
    cosine: f32,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example prints")]
async fn main() -> Result<()> {
    let args = Args::parse();
    // The queue computes at most this many texts at once, and refuses more than it can hold.
    let options = ServiceOptions::new();
    let app = Arc::new(App::new(args.model.embedder()?.into_service(options)?));
    let router = Router::new()
        .route("/similarity", post(similarity))
        .route("/metrics", get(metrics))
        .layer(RequestBodyLimitLayer::new(64 << 10))
        // A request that is dropped here also leaves the queue.
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(10)))
        .with_state(app);
    let listener = TcpListener::bind(args.address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let end = async { _ = tokio::signal::ctrl_c().await };
    // No new connections after Ctrl-C; requests that are running are answered.
    axum::serve(listener, router).with_graceful_shutdown(end).await?;
    Ok(())
}

impl App {
    fn new(service: Service<Embedder>) -> Self {
        let (mut registry, failures) = (Registry::default(), Counter::default());
        let seconds = Histogram::new(exponential_buckets(0.001, 2.0, 14));
        registry.register("similarity_failures", "Requests without an answer", failures.clone());
        registry.register("similarity_seconds", "Time to compute", seconds.clone());
        Self { service, registry, failures, seconds }
    }
}

async fn similarity(
    State(app): State<Arc<App>>,
    Json(texts): Json<Texts>,
) -> Result<Json<Similarity>, (StatusCode, String)> {
    let start = Instant::now();
    // Both texts wait together with those of other requests, and no thread of tokio computes.
    let embedded = app.service.embed([texts.a, texts.b], EmbedOptions::new()).await;
    let vectors = embedded.inspect_err(|_| _ = app.failures.inc()).map_err(answer)?.embeddings;
    app.seconds.observe(start.elapsed().as_secs_f64());
    let cosine = cosine(vectors.row(0), vectors.row(1)).map_err(answer)?;
    Ok(Json(Similarity { cosine }))
}

/// The status of an error: the client's fault, too many requests, or ours.
fn answer(error: Error) -> (StatusCode, String) {
    let status = match error {
        Error::ServiceFull { .. } => StatusCode::TOO_MANY_REQUESTS,
        Error::TextTooLong { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, error.to_string())
}

async fn metrics(State(app): State<Arc<App>>) -> Result<String, (StatusCode, String)> {
    let mut text = String::new();
    let failed = |error: std::fmt::Error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    encode(&mut text, &app.registry).map_err(failed)?;
    Ok(text)
}
