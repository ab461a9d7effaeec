use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use qwen3_embed::{Error, ModelError, ServiceState, TextError};
use serde::Serialize;
use utoipa::ToSchema;

/// The error code for a model whose worker thread has panicked.
const STOPPED: &str = "stopped";

/// The error code for a text that needs more memory than is left.
const OUT_OF_MEMORY: &str = "out_of_memory";

/// Advice in the error about a text that is too long, for the client and for the operator of the server.
const TRUNCATE_HINT: &str = "; set \"truncate\": true to truncate the text, or start the server with `--truncate` to truncate all texts that are too long";

/// The body of every error, in the shape of OpenAI's API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorDetail,
}

/// Details of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
struct ErrorDetail {
    /// A message for people. It names the field and, where they apply, the index and the value.
    message: String,
    /// The kind of error, such as `invalid_request_error`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field of the request that caused the error.
    param: Option<String>,
    /// A code for programs, such as `model_not_found`.
    code: Option<&'static str>,
}

/// An error response. Its body has the shape of OpenAI's API.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    status: StatusCode,
    detail: Box<ErrorDetail>,
    retry_after: Option<Duration>,
}

/// The request field that contains the texts, for error messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    name: &'static str,
    is_list: bool,
    /// A text that is appended to the texts of the list but comes from another field: its index, and the name of that
    /// field.
    last: Option<(usize, &'static str)>,
}

impl Field {
    /// A field that holds a list of texts.
    pub(crate) const fn list(name: &'static str) -> Self {
        Self { name, is_list: true, last: None }
    }

    /// A field that holds one text.
    pub(crate) const fn single(name: &'static str) -> Self {
        Self { name, is_list: false, last: None }
    }

    /// Adds a text that is appended to the `n` texts of the list and comes from the field `name`.
    pub(crate) const fn with_last(self, n: usize, name: &'static str) -> Self {
        Self { last: Some((n, name)), ..self }
    }

    /// The name of the text at `index`, for example `input[3]`.
    pub(crate) fn at(self, index: usize) -> String {
        if let Some((at, name)) = self.last
            && index == at
        {
            return name.to_owned();
        }
        if self.is_list { format!("{}[{index}]", self.name) } else { self.name.to_owned() }
    }
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let detail = ErrorDetail { message: message.into(), kind, param: None, code: None };
        Self { status, detail: Box::new(detail), retry_after: None }
    }

    fn with_code(mut self, code: &'static str) -> Self {
        self.detail.code = Some(code);
        self
    }

    fn after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Sets the field that caused the error.
    pub(crate) fn about(mut self, param: impl Into<String>) -> Self {
        self.detail.param = Some(param.into());
        self
    }

    /// 400: the request is invalid.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 400: the request names a model of the wrong kind.
    pub(crate) fn wrong_model(message: impl Into<String>) -> Self {
        Self::invalid(message).about("model").with_code("wrong_model")
    }

    /// 401: the API key is missing or wrong.
    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message)
            .with_code("invalid_api_key")
    }

    /// 404: there is no such model.
    pub(crate) fn no_such_model(name: &str, served: &[&str]) -> Self {
        let message = format!("the model `{name}` does not exist; this server has {served:?}");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
            .about("model")
            .with_code("model_not_found")
    }

    /// 404: there is no such path.
    pub(crate) fn no_such_path(method: &str, path: &str) -> Self {
        let message = format!("there is no route `{method} {path}`; `GET /docs` lists all routes");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message).with_code("not_found")
    }

    /// 405: the path does not support the method.
    pub(crate) fn method_not_allowed(method: &str, path: &str) -> Self {
        let message = format!("`{path}` does not support the method {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
            .with_code("method_not_allowed")
    }

    /// 408: the body did not arrive in time.
    pub(crate) fn too_slow(limit: Duration) -> Self {
        let message = format!("the body did not arrive within {} s", limit.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message)
            .with_code("request_timeout")
    }

    /// 413: the body is too large. `body` is the subject of the message, such as "the body".
    pub(crate) fn too_large(body: &str, limit: usize) -> Self {
        let message = format!("{body} is larger than the limit of {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
            .with_code("payload_too_large")
    }

    /// 415: the body is not declared as JSON.
    pub(crate) fn not_json(got: &str) -> Self {
        let message = format!("expected `Content-Type: application/json`, got {got}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message)
            .with_code("unsupported_media_type")
    }

    /// 415: the compression of the body is not supported.
    pub(crate) fn unsupported_encoding(got: &str) -> Self {
        let message =
            format!("expected `Content-Encoding: identity`, `gzip` or `zstd`, got `{got}`");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message)
            .with_code("unsupported_media_type")
    }

    /// 429: too many requests or texts at the same time.
    pub(crate) fn overloaded(message: impl Into<String>, retry_after: Duration) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            .with_code("overloaded")
            .after(retry_after)
    }

    /// 429: the bodies of other requests fill the memory for bodies, whose size is `limit`.
    pub(crate) fn too_many_bodies(limit: usize) -> Self {
        let message = format!(
            "the bodies of other requests fill the limit of {limit} bytes for all bodies; try again later"
        );
        Self::overloaded(message, Duration::from_secs(1))
    }

    /// 413: the server has no memory for a text, which is computed alone if its batch does not fit.
    fn out_of_memory(message: String) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
            .with_code(OUT_OF_MEMORY)
    }

    /// 500: a bug in the server.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
            .with_code("internal_error")
    }

    /// 503: the models are still being loaded.
    pub(crate) fn loading() -> Self {
        let message = "the model is still being loaded";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
            .with_code("loading")
            .after(Duration::from_secs(1))
    }

    /// 503: the service of a model is not running.
    pub(crate) fn not_running(state: ServiceState) -> Self {
        let (message, code) = match state {
            ServiceState::Stopped => ("the model has crashed; restart the server", STOPPED),
            _ => ("the server is shutting down", "draining"),
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
            .with_code(code)
            .after(Duration::from_secs(1))
    }

    /// Converts an error of the model about the texts in `field`.
    pub(crate) fn from_model(error: Error, field: Field) -> Self {
        let message = chain(&error);
        let index = error.text_index();
        // Messages about a text begin with `text INDEX`. The name of the request's field replaces this beginning.
        let rest = index.and_then(|index| message.strip_prefix(&format!("text {index}")));
        let about_text = |index: usize| {
            let name = field.at(index);
            Self::invalid(format!("{name}{}", rest.unwrap_or(&message))).about(name)
        };
        match &error {
            Error::ServiceFull { retry_after, .. } => Self::overloaded(message, *retry_after),
            Error::ServiceDraining => Self::not_running(ServiceState::Draining),
            Error::ServiceStopped => Self::not_running(ServiceState::Stopped),
            Error::Dimensions { got, min, max } => {
                let message = format!("dimensions is {got}; expected {min} to {max}");
                Self::invalid(message).about("dimensions")
            }
            Error::NoSuchPrompt { .. } => Self::invalid(message).about("prompt_name"),
            Error::TextTooLong { text, .. } => {
                let mut error = about_text(*text);
                error.detail.message.push_str(TRUNCATE_HINT);
                error
            }
            Error::Text(TextError::Encode { text, .. } | TextError::WhiteSpace { text, .. })
            | Error::Model(
                ModelError::EmptyText { text }
                | ModelError::TooManyTokens { text, .. }
                | ModelError::TokenOutOfRange { text, .. },
            ) => about_text(*text),
            Error::Model(ModelError::OutOfMemory { .. }) => Self::out_of_memory(message),
            _ => Self::internal(message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, message) = (self.status.as_u16(), &self.detail.message);
        if self.status == StatusCode::INTERNAL_SERVER_ERROR || self.detail.code == Some(STOPPED) {
            tracing::error!(status, "{message}");
        } else if self.detail.code == Some(OUT_OF_MEMORY) {
            // The text may be short enough, and the machine too small.
            tracing::warn!(status, "{message}");
        } else if self.status.is_server_error() {
            // The log already says that the server is loading models or shutting down.
            tracing::debug!(status, "{message}");
        }
        let is_unauthorized = self.status == StatusCode::UNAUTHORIZED;
        let mut response = (self.status, Json(ErrorBody { error: *self.detail })).into_response();
        let headers = response.headers_mut();
        if let Some(delay) = self.retry_after {
            // The header contains whole seconds. It is at most 60, because OpenAI's clients ignore a longer delay.
            let seconds = delay.as_secs_f64().ceil().clamp(1.0, 60.0) as u64;
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if is_unauthorized {
            // Because of the challenge `Basic`, a browser asks its user for the key, as a password, and then shows the
            // page. Each challenge has its own header, because Chromium reads only the first challenge of a header.
            for challenge in ["Bearer", "Basic realm=\"qwen3-embed\", charset=\"UTF-8\""] {
                headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            }
        }
        response
    }
}

/// The message of an error followed by the messages of its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_does_not_fit_in_memory_is_too_large() {
        let (n_tokens, needed_bytes, free_bytes, fitting_tokens) = (9, 9 << 20, 4 << 20, 4);
        let source = None;
        let error =
            ModelError::OutOfMemory { n_tokens, needed_bytes, free_bytes, fitting_tokens, source };
        let error = ApiError::from_model(error.into(), Field::single("input"));
        assert_eq!(error.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(error.detail.code, Some(OUT_OF_MEMORY));
        let expected = "a batch of 9 tokens needs about 9 MiB of memory, and 4 MiB are left: a batch of \
                        4 tokens would fit";
        assert_eq!(error.detail.message, expected);
    }
}
