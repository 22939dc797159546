//! HTTP to the Docker daemon, over its Unix socket or TCP.
//!
//! The API version is the engine's own, as told by `/_ping`, since old engines refuse newer versions
//! and new ones older.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::endpoint::Endpoint;

const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
/// Engines have answered `/_ping` with their version since this one (Docker 1.13).
const OLDEST: &str = "1.25";
/// More than any honest answer, in bytes.
const MAX_ANSWER: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

/// `DOCKER_HOST`, or the usual socket.
pub(super) fn default_host() -> String {
    let set = std::env::var("DOCKER_HOST").ok();
    set.filter(|host| !host.is_empty())
        .unwrap_or_else(|| DEFAULT_HOST.to_owned())
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no such thing.
    NotFound(String),
    /// The engine answered, with another error.
    Refused(String),
    /// Nobody answered, or nothing that makes sense.
    Unreachable(String),
}

impl Failure {
    /// In words.
    pub(super) fn reason(self) -> String {
        match self {
            Self::NotFound(reason) | Self::Refused(reason) | Self::Unreachable(reason) => reason,
        }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Unreachable(error.to_string())
    }
}

type Connection = SendRequest<Full<Bytes>>;

/// Asks one question; `path` is without the version.
pub(super) async fn ask<T: DeserializeOwned>(host: &str, path: &str) -> Result<T, Failure> {
    let talk = async {
        let body = bounded(request(host, Method::GET, path, None).await?).await?;
        Ok(serde_json::from_slice(&body)?)
    };
    tokio::time::timeout(PATIENCE, talk).await?
}

/// Has something done, with a body in JSON.
pub(super) async fn call(
    host: &str,
    method: Method,
    path: &str,
    body: Option<&serde_json::Value>,
) -> Result<(), Failure> {
    let talk = async {
        let answer = request(host, method, path, body).await?;
        bounded(answer).await.map(drop)
    };
    tokio::time::timeout(PATIENCE, talk).await?
}

/// Asks a question whose answer goes on for ever. Gives it once it has begun.
pub(super) async fn follow(host: &str, path: &str) -> Result<Incoming, Failure> {
    let response = tokio::time::timeout(PATIENCE, request(host, Method::GET, path, None)).await??;
    Ok(response.into_body())
}

/// A successful answer, its body unread.
async fn request(
    host: &str,
    method: Method,
    path: &str,
    body: Option<&serde_json::Value>,
) -> Result<Response<Incoming>, Failure> {
    let mut connection = connect(host).await?;
    let ping = send(&mut connection, Method::GET, "/_ping", None).await?;
    let path = format!("/v{}{path}", version(ping).await?);
    let response = send(&mut connection, method, &path, body).await?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let reason = refusal(status, &bounded(response).await?);
    Err(match status {
        StatusCode::NOT_FOUND => Failure::NotFound(reason),
        _ => Failure::Refused(reason),
    })
}

/// What the engine's answer to a ping says.
async fn version(ping: Response<Incoming>) -> Result<String, Failure> {
    let version = ping.headers().get("Api-Version").and_then(|v| v.to_str().ok());
    let version = version.filter(|v| v.bytes().all(|b| b.is_ascii_digit() || b == b'.'));
    let version = version.unwrap_or(OLDEST).to_owned();
    let _ = bounded(ping).await?;
    Ok(version)
}

fn refusal(status: StatusCode, body: &[u8]) -> String {
    let told = serde_json::from_slice::<Refusal>(body);
    told.map_or_else(|_| status.to_string(), |refusal| refusal.message)
}

async fn bounded(response: Response<Incoming>) -> Result<Bytes, Failure> {
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    Ok(body.map_err(|e| Failure::Unreachable(e.to_string()))?.to_bytes())
}

async fn connect(host: &str) -> Result<Connection, Failure> {
    let forms = || Failure::Unreachable("the address must begin with unix:// or tcp://".to_owned());
    let stream = Endpoint::parse(host).ok_or_else(forms)?.connect().await?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // It ends with the sender; its errors show up there.
    tokio::spawn(connection);
    Ok(sender)
}

async fn send(
    connection: &mut Connection,
    method: Method,
    path: &str,
    body: Option<&serde_json::Value>,
) -> Result<Response<Incoming>, Failure> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("Host", "docker")
        .header("Content-Type", "application/json");
    let request = request.body(Full::from(body.map(ToString::to_string).unwrap_or_default()))?;
    connection.ready().await?;
    Ok(connection.send_request(request).await?)
}
