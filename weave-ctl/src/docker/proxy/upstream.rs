//! Connections to Docker, and our own questions to it.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use super::Failure;
use super::create::Image;
use super::inspect::Container;
use super::shared::Shared;
use crate::docker::endpoint::Endpoint;

/// More than any honest answer to a question of ours, in bytes.
pub(super) const ANSWER_LIMIT: usize = 64 << 20;

/// Ends the connection when it is dropped.
pub(super) struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection to Docker.
pub(super) struct Upstream<B> {
    pub(super) sender: SendRequest<B>,
    /// The stream below it.
    pub(super) stream: Shared,
    pub(super) task: Task,
}

#[derive(serde::Deserialize)]
struct Refusal {
    message: String,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedImage {
    #[serde(default)]
    config: Option<Image>,
}

impl Endpoint {
    /// Ready for one request.
    pub(super) async fn open<B>(&self) -> Result<Upstream<B>, Failure>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let stream = self
            .connect()
            .await
            .map_err(|e| Failure::Connect(e.to_string()))?;
        let stream = Shared::new(stream);
        let handshake = Builder::new()
            .preserve_header_case(true)
            .title_case_headers(true)
            .handshake(TokioIo::new(stream.clone()));
        let (sender, connection) = handshake.await.map_err(|e| Failure::Connect(e.to_string()))?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!("connection to Docker: {error}");
            }
        });
        Ok(Upstream {
            sender,
            stream,
            task: Task(task),
        })
    }

    /// A question of ours, in the newest version of the API that Docker has. `None`: there is no such thing.
    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Failure> {
        let mut upstream = self.open::<Full<Bytes>>().await?;
        let request = Request::get(path).header(HOST, HeaderValue::from_static("docker"));
        let request = request
            .body(Full::default())
            .map_err(|e| Failure::Request(e.to_string()))?;
        let answer = upstream.sender.send_request(request).await;
        let answer = answer.map_err(|e| Failure::Request(e.to_string()))?;
        let status = answer.status();
        let body = bounded(answer.into_body(), ANSWER_LIMIT).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(Some(serde_json::from_slice(&body)?)),
            status => {
                let told = serde_json::from_slice::<Refusal>(&body);
                let text = told.map_or_else(|_| status.to_string(), |refusal| refusal.message);
                Err(Failure::Other(text))
            }
        }
    }

    /// Is somebody there who answers as Docker does?
    ///
    /// # Errors
    /// Why not.
    pub async fn is_there(&self) -> Result<(), String> {
        match self.ask::<serde_json::Value>("/version").await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err("that is not Docker".to_owned()),
            Err(Failure::Connect(why)) => Err(why),
            Err(failure) => Err(failure.to_string()),
        }
    }

    /// A container by name, ID or beginning of an ID.
    pub(super) async fn container(&self, id: &str) -> Result<Container, Failure> {
        let found = self.ask(&format!("/containers/{}/json", escaped(id))).await?;
        found.ok_or_else(|| Failure::NoContainer(id.to_owned()))
    }

    /// An image's configuration.
    pub(super) async fn image(&self, name: &str) -> Result<Image, Failure> {
        let found: Option<InspectedImage> = self.ask(&format!("/images/{}/json", escaped(name))).await?;
        let found = found.ok_or_else(|| Failure::NoImage(name.to_owned()))?;
        Ok(found.config.unwrap_or_default())
    }
}

/// As part of a path. What is escaped already stays.
fn escaped(text: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~/:@%+".contains(b);
    text.bytes()
        .map(|b| {
            if plain(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

/// All of a body.
pub(super) async fn bounded(body: Incoming, limit: usize) -> Result<Bytes, Failure> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(Failure::TooLong(limit)),
        Err(error) => Err(Failure::Body(error.to_string())),
    }
}

/// Is the body's media type this one?
pub(super) fn is_type(headers: &hyper::HeaderMap, wanted: &str) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes() == wanted.as_bytes())
}

/// The answer's body is a stream in both directions from here on.
pub(super) fn is_stream(answer: &Response<Incoming>) -> bool {
    let headers = answer.headers();
    let framed = headers.contains_key(hyper::header::CONTENT_LENGTH)
        || headers.contains_key(hyper::header::TRANSFER_ENCODING);
    let kinds = [
        "application/vnd.docker.raw-stream",
        "application/vnd.docker.multiplexed-stream",
    ];
    answer.status() == StatusCode::SWITCHING_PROTOCOLS
        || (answer.status() == StatusCode::OK && !framed && kinds.iter().any(|kind| is_type(headers, kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_paths() {
        assert_eq!(escaped("reg:5000/a/b@sha256:0"), "reg:5000/a/b@sha256:0");
        assert_eq!(escaped("a b?c#d\r\n"), "a%20b%3Fc%23d%0D%0A");
    }
}
