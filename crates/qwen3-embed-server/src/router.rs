use std::any::Any;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, Any as AnyHeader, CorsLayer};
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use crate::error::ApiError;
use crate::routes::{embeddings, models, pages, probes, rerank, tei};
use crate::{AppState, middleware};

/// What the document says of the whole.
#[derive(OpenApi)]
#[openapi(info(
    title = "qwen3-embed",
    description = "Text embeddings and rerank scores with Qwen3 models."
))]
struct ApiDoc;

/// The server's routes.
///
/// # Examples
///
/// ```
/// use qwen3_embed_server::{AppState, ServerOptions, app};
///
/// let router = app(AppState::new(ServerOptions::default()));
/// # let _ = router;
/// ```
pub fn app(state: AppState) -> Router {
    let (routes, document) = documented(&state).split_for_parts();
    let docs = SwaggerUi::new("/docs").url("/openapi.json", document);
    let pages = Router::new()
        .route("/", get(pages::index))
        .route("/playground/style.css", get(pages::style))
        .route("/playground/script.js", get(pages::script));
    let router = routes
        .merge(docs)
        .merge(pages)
        .fallback(no_such_path)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(state.clone(), middleware::authorize));
    let router = match cors(&state.options().cors_allow_origin) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router.layer(from_fn_with_state(state.clone(), middleware::observe)).with_state(state)
}

/// What the server answers, as OpenAPI describes it.
pub fn openapi() -> Document {
    documented(&AppState::new(Default::default())).to_openapi()
}

/// The routes that clients use, with their description.
fn documented(state: &AppState) -> OpenApiRouter<AppState> {
    let limited = OpenApiRouter::with_openapi(ApiDoc::openapi())
        .routes(routes!(embeddings::embeddings))
        .routes(routes!(rerank::rerank))
        .routes(routes!(rerank::score))
        .routes(routes!(tei::embed))
        .routes(routes!(tei::similarity))
        .routes(routes!(tei::tokenize))
        .routes(routes!(tei::decode))
        .route("/v2/rerank", post(rerank::rerank))
        .route("/rerank", post(rerank::rerank))
        .route("/score", post(rerank::score))
        .route_layer(from_fn_with_state(state.clone(), middleware::limit));
    limited
        .routes(routes!(models::list))
        .routes(routes!(models::one))
        // A name with slashes that the client has not encoded.
        .route("/v1/models/{owner}/{name}", get(models::two_parts))
        .routes(routes!(tei::info))
        .routes(routes!(probes::livez))
        .routes(routes!(probes::readyz))
        .routes(routes!(probes::metrics))
        .route("/health", get(probes::readyz))
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        // One that cannot be a header's value is no browser's.
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let exposed = ["x-request-id", "retry-after"].map(HeaderName::from_static);
    let layer = CorsLayer::new().allow_origin(allowed).expose_headers(exposed);
    // Browsers do not count `Authorization` among any headers.
    let headers = ["authorization", "content-type", "x-request-id"].map(HeaderName::from_static);
    Some(layer.allow_methods(AnyHeader).allow_headers(headers))
}

async fn no_such_path(request: Request) -> ApiError {
    ApiError::no_such_path(request.method().as_str(), request.uri().path())
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::method_not_allowed(request.method().as_str(), request.uri().path())
}

fn panicked(_: Box<dyn Any + Send>) -> Response {
    // The panic itself is on standard error.
    ApiError::internal("the server has a bug: it panicked").into_response()
}
