use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::error::ApiError;
use crate::routes::{cohere, embeddings, models, pages, probes, rerank, root, tei};
use crate::{AppState, middleware};

/// Paths that are aliases, each with the path that it stands for. The OpenAPI document describes both in the same way.
const ALIASES: [(&str, &str); 4] = [
    ("/embeddings", "/v1/embeddings"),
    ("/rerank", "/v1/rerank"),
    ("/score", "/v1/score"),
    ("/health", "/readyz"),
];

/// The parts of the OpenAPI document that do not belong to a route.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "qwen3-embed",
        description = "Text embeddings and rerank scores with Qwen3 models. Bodies may be compressed: \
                       `Content-Encoding` may be `gzip` or `zstd`."
    ),
    paths(models::one),
    // The documentation page shows the tags in this order.
    tags(
        (name = "OpenAI"),
        (name = "Cohere"),
        (name = "Reranking"),
        (name = "text-embeddings-inference"),
        (name = "Operations")
    )
)]
struct ApiDoc;

/// The router with all routes and middleware of the server.
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
    // Swagger UI's validator is a public server. Without this setting, the page would send the OpenAPI document to it.
    let settings = Config::default().validator_url("none");
    let docs = SwaggerUi::new("/docs").url("/openapi.json", document).config(settings);
    let docs = Router::from(docs).layer(from_fn(docs_file));
    let router = routes
        .merge(docs)
        .merge(pages::routes())
        .fallback(no_such_path)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(state.clone(), middleware::authorize));
    // The layer that is added last runs first. CORS runs before the check of the API key, because a browser's preflight
    // request has no key.
    let router = match cors(&state.options().cors_allow_origin) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    let router = router.layer(from_fn_with_state(state.clone(), middleware::observe));
    // Layers of a router run after routing, but the slash must be removed before routing. Therefore the router becomes
    // a service inside another router.
    let router = router.with_state(state).map_request(middleware::remove_trailing_slash);
    Router::new().fallback_service(router)
}

/// The OpenAPI document of the server's routes.
pub fn openapi() -> Document {
    documented(&AppState::new(Default::default())).to_openapi()
}

/// The routes of the API with their OpenAPI descriptions. Requests to the routes in `limited` count against
/// [`max_concurrent_requests`](crate::ServerOptions::max_concurrent_requests).
fn documented(state: &AppState) -> OpenApiRouter<AppState> {
    let limited = OpenApiRouter::with_openapi(ApiDoc::openapi())
        .routes(routes!(embeddings::embeddings))
        .routes(routes!(cohere::embed))
        .routes(routes!(rerank::rerank))
        .routes(routes!(rerank::rerank_v2))
        .routes(routes!(rerank::score))
        .routes(routes!(root::root))
        .routes(routes!(tei::embed))
        .routes(routes!(tei::similarity))
        .routes(routes!(tei::tokenize))
        .routes(routes!(tei::decode))
        .route("/embeddings", post(embeddings::embeddings))
        .route("/rerank", post(rerank::rerank))
        .route("/score", post(rerank::score))
        .route_layer(from_fn_with_state(state.clone(), middleware::limit));
    let mut router = limited
        .routes(routes!(models::list))
        // A model name may contain slashes that are not percent-encoded. OpenAPI cannot describe such a path.
        .route("/v1/models/{*id}", get(models::one))
        .routes(routes!(tei::info))
        .routes(routes!(probes::livez))
        .routes(routes!(probes::readyz))
        .routes(routes!(probes::metrics))
        .route("/health", get(probes::readyz));
    for (path, of) in ALIASES {
        describe_alias(router.get_openapi_mut(), path, of);
    }
    router
}

/// Adds `path` to the document as a copy of the path `of`.
fn describe_alias(document: &mut Document, path: &str, of: &str) {
    let paths = &mut document.paths.paths;
    let Some(mut item) = paths.get(of).cloned() else { return };
    for operation in [&mut item.get, &mut item.post].into_iter().flatten() {
        // The id of an operation must be unique.
        operation.operation_id = Some(path.trim_start_matches('/').replace('/', "_"));
    }
    paths.insert(path.to_owned(), item);
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        // An origin that is not a valid header value cannot be sent by a browser.
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let exposed = ["x-request-id", "retry-after"].map(HeaderName::from_static);
    let layer = CorsLayer::new().allow_origin(allowed).expose_headers(exposed);
    // All headers that the browser asks for are allowed, because clients add their own headers. `*` would not be
    // enough, because it does not include `Authorization`.
    Some(layer.allow_methods(Any).allow_headers(AllowHeaders::mirror_request()))
}

/// Replaces the errors of Swagger UI's file handler by [`ApiError`].
async fn docs_file(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    if matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST) {
        return ApiError::no_such_path(method.as_str(), &path).into_response();
    }
    response
}

async fn no_such_path(request: Request) -> ApiError {
    ApiError::no_such_path(request.method().as_str(), request.uri().path())
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::method_not_allowed(request.method().as_str(), request.uri().path())
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    // The panic hook has already written the panic message to standard error.
    ApiError::internal("the server has a bug: it panicked").into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;

    async fn panics() -> &'static str {
        panic!("this message must not be in the response")
    }

    #[test]
    fn panic_becomes_error_response() {
        let router = Router::new().route("/", get(panics));
        let router = router.layer(CatchPanicLayer::custom(panicked));
        let body = futures_executor::block_on(async {
            let response = router.oneshot(Request::new(Body::empty())).await.unwrap();
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            response.into_body().collect().await.unwrap().to_bytes()
        });
        let expected = json!({ "error": {
            "message": "the server has a bug: it panicked",
            "type": "server_error",
            "param": null,
            "code": "internal_error",
        } });
        assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), expected);
    }
}
