use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::response::Response;

use super::rerank::rerank;
use super::tei::{EmbedRequest, embed};
use crate::AppState;
use crate::error::ErrorBody;

/// The same as `/embed`, or as `/rerank` where only a reranker is served.
///
/// Clients of text-embeddings-inference that are given no more than the server's address send requests here.
#[utoipa::path(
    post,
    path = "/",
    tag = "text-embeddings-inference",
    request_body = EmbedRequest,
    responses(
        (status = 200, body = Vec<Vec<f32>>),
        (status = "4XX", body = ErrorBody),
        (status = "5XX", body = ErrorBody),
    ),
)]
pub(crate) async fn root(State(state): State<AppState>, request: Request) -> Response {
    // While models are being loaded, both answer that they are.
    if state.served_if_loaded().is_some_and(|served| served.only_ranks()) {
        rerank.call(request, state).await
    } else {
        embed.call(request, state).await
    }
}
