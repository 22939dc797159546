//! Request parameters: the query and, for POST, PUT and PATCH, a form body (control.md 3.1).

use std::time::Duration;

use axum::Form;
use axum::extract::{FromRequest, Query, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::response::Response;

use super::reply;

/// A form must have arrived after this long.
const FORM_TIME: Duration = Duration::from_secs(10);

/// Parameters in order; those of the form come first.
pub struct Params(Vec<(String, String)>);

impl Params {
    /// All values of a name.
    pub fn all(self, name: &str) -> Vec<String> {
        self.0
            .into_iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v)
            .collect()
    }

    /// The first value of a name.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Is the first value `true`?
    pub fn is_true(&self, name: &str) -> bool {
        self.first(name) == Some("true")
    }
}

impl<S: Send + Sync> FromRequest<S> for Params {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let Query(query): Query<Vec<(String, String)>> =
            Query::try_from_uri(request.uri()).map_err(reply::bad_request)?;
        let with_body = [Method::POST, Method::PUT, Method::PATCH].contains(request.method());
        let is_form = request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/x-www-form-urlencoded"));
        if !(with_body && is_form) {
            return Ok(Self(query));
        }
        let form = Form::<Vec<(String, String)>>::from_request(request, state);
        match tokio::time::timeout(FORM_TIME, form).await {
            Ok(Ok(Form(form))) => Ok(Self([form, query].concat())),
            Ok(Err(rejected)) => Err(reply::error(rejected.status(), rejected.body_text())),
            Err(_) => Err(reply::error(
                StatusCode::REQUEST_TIMEOUT,
                "the form did not arrive in time",
            )),
        }
    }
}
