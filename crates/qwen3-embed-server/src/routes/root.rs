use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::response::Response;

use super::rerank::rerank;
use super::tei::{EmbedRequest, embed};
use crate::AppState;
use crate::error::ErrorBody;

/// Embeds texts like `/embed`, or ranks texts like `/rerank` if the server has only a reranker.
///
/// Clients of text-embeddings-inference send requests here if they are configured with the server's address only.
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
    // While models are being loaded, either handler may be called, because both return the same error.
    if state.served_if_loaded().is_some_and(|served| served.serves_only_reranker()) {
        rerank.call(request, state).await
    } else {
        embed.call(request, state).await
    }
}
