//! Answers with the headers and line ends of control.md 3.1.

use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::api::backend::BackendError;

/// Plain text in bodies.
pub const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// JSON in bodies.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer with a body; an empty one has no type.
pub fn body(status: StatusCode, kind: HeaderValue, text: String) -> Response {
    let mut response = (status, text).into_response();
    let headers = response.headers_mut();
    if headers.remove(CONTENT_TYPE).is_some() && !is_empty(&response) {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
}

fn is_empty(response: &Response) -> bool {
    use axum::body::HttpBody as _;
    response.body().is_end_stream()
}

/// 200 with text.
pub fn text(text: impl Into<String>) -> Response {
    body(StatusCode::OK, TEXT, text.into())
}

/// 204.
pub fn no_content() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// An error: its text and a newline.
pub fn error(status: StatusCode, text: impl std::fmt::Display) -> Response {
    let mut response = body(status, TEXT, format!("{text}\n"));
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

/// 400.
pub fn bad_request(text: impl std::fmt::Display) -> Response {
    error(StatusCode::BAD_REQUEST, text)
}

/// 404.
pub async fn not_found() -> Response {
    error(StatusCode::NOT_FOUND, "404 page not found")
}

impl IntoResponse for BackendError {
    fn into_response(self) -> Response {
        match self {
            Self::BadRequest(text) => bad_request(text),
            Self::Internal(text) => error(StatusCode::INTERNAL_SERVER_ERROR, text),
            Self::Cancelled => text("cancelled"),
            Self::Stopping => error(StatusCode::SERVICE_UNAVAILABLE, self),
        }
    }
}
