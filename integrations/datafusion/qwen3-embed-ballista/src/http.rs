//! The HTTP server for probes and metrics.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use prometheus::TextEncoder;
use tokio::net::TcpListener;

/// Serves `/livez` and `/metrics`, the latter in the text format of Prometheus, and `/readyz` if the process is not always
/// ready, until the process ends. `update` is called before metrics are read.
///
/// # Errors
///
/// An error if the address cannot be used.
pub(crate) async fn serve(
    address: SocketAddr,
    is_ready: Option<impl Fn() -> bool + Clone + Send + Sync + 'static>,
    update: impl Fn() + Clone + Send + Sync + 'static,
) -> Result<()> {
    let ready = |is_ready: bool| async move {
        match is_ready {
            true => (StatusCode::OK, "ready\n"),
            false => {
                (StatusCode::SERVICE_UNAVAILABLE, "not ready: the scheduler has not answered\n")
            }
        }
    };
    let metrics = move || async move {
        update();
        let text = TextEncoder::new().encode_to_string(&prometheus::gather());
        text.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    };
    let mut routes =
        Router::new().route("/livez", get(|| async { "ok\n" })).route("/metrics", get(metrics));
    if let Some(is_ready) = is_ready {
        routes = routes.route("/readyz", get(move || ready(is_ready())));
    }
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!("the server for probes and metrics ended: {error}");
        }
    });
    Ok(())
}
