//! The log messages of requests, and their levels.

use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use qwen3_embed_server::{AppState, ServerOptions};
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::subscriber::{self, DefaultGuard};
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::common::*;
use crate::limits::{begin, slow};

/// Levels, messages and statuses of log events.
type Lines = Arc<Mutex<Vec<(Level, String, u64)>>>;

/// Records the events that are logged on this thread.
struct Log(Lines);

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("qwen3_embed_server")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.0.lock().unwrap().push((*event.metadata().level(), line.message, line.status));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    status: u64,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "status" {
            self.status = value;
        }
    }
}

fn log() -> (Lines, DefaultGuard) {
    let lines = Lines::default();
    let guard = subscriber::set_default(Log(Arc::clone(&lines)));
    (lines, guard)
}

fn line(level: Level, message: &str, status: u64) -> (Level, String, u64) {
    (level, message.to_owned(), status)
}

#[tokio::test]
async fn logs_no_errors_while_loading_or_draining() {
    let (lines, _guard) = log();
    let state = AppState::new(ServerOptions::default());
    get(&state, "/readyz").await;
    state.start(embedder_alone(), Default::default()).await.unwrap();
    state.announce_shutdown();
    get(&state, "/readyz").await;
    let expected = [
        line(Level::DEBUG, "the model is still being loaded", 503),
        line(Level::DEBUG, "answered", 503),
        line(Level::DEBUG, "the server is shutting down", 503),
        line(Level::DEBUG, "answered", 503),
    ];
    assert_eq!(*lines.lock().unwrap(), expected);
}

#[tokio::test]
async fn logs_error_after_the_worker_thread_panicked() {
    let state = slow(ServerOptions::default()).await;
    let (lines, _guard) = log();
    // A batch has one text, so many texts are waiting when the worker thread panics.
    let request = json!({ "input": vec![TEXTS[1]; 2000] });
    let mut waiting = pin!(post(&state, "/v1/embeddings", request));
    begin(&mut waiting).await;
    state.embedder().unwrap().panic();
    waiting.await;
    get(&state, "/readyz").await;
    let stopped = line(Level::ERROR, "the model has crashed; restart the server", 503);
    assert!(lines.lock().unwrap().contains(&stopped), "{lines:?}");
}

#[tokio::test]
async fn logs_request_of_disconnected_client() {
    let state = slow(ServerOptions::default()).await;
    let (lines, _guard) = log();
    {
        let request = json!({ "input": vec![TEXTS[1]; 20] });
        let mut given_up = pin!(post(&state, "/v1/embeddings", request));
        begin(&mut given_up).await;
    }
    post(&state, "/v1/embeddings", json!({ "input": "a" })).await.ok();
    let expected =
        [line(Level::INFO, "client disconnected", 499), line(Level::INFO, "answered", 200)];
    assert_eq!(*lines.lock().unwrap(), expected);
}
