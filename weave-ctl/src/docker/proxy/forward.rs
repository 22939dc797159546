//! One request: to Docker, and Docker's answer back.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use hyper::{HeaderMap, Request, Response, Uri};
use tokio::sync::{Notify, mpsc};

use super::answer::{AnyBody, Relayed, Sent, refusal};
use super::hijack::{Hijack, never};
use super::intercept::{After, is_changeable};
use super::shared::Shared;
use super::upstream::is_stream;
use super::{Failure, Proxy};

/// The client's side of a request.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) stream: Shared,
    /// Takes the connection out of hyper's hands.
    pub(super) hijacks: mpsc::Sender<Hijack>,
}

impl Proxy {
    /// Answers a request. If the connection becomes a stream, this never ends.
    pub(super) async fn answer(
        self: Arc<Self>,
        client: Client,
        request: Request<Incoming>,
    ) -> Response<AnyBody> {
        match self.exchange(client, request).await {
            Ok(answer) => answer,
            Err(failure) => {
                tracing::debug!("answered by the proxy: {failure}");
                refusal(&failure)
            }
        }
    }

    async fn exchange(
        &self,
        client: Client,
        request: Request<Incoming>,
    ) -> Result<Response<AnyBody>, Failure> {
        // Of a stream, what comes after the head is not for us to look at.
        let stream = may_become_stream(&request);
        let (ready, after) = self.intercept(request).await?;
        let mut upstream = self.docker.open::<AnyBody>().await?;
        let sent = Arc::new(Notify::new());
        let request = ready.map(|body| Sent::to(upstream.stream.clone(), body, sent.clone()));
        let (here, there) = (client.stream.clone(), upstream.stream.clone());
        let mut ending: BoxFuture<'static, ()> = Box::pin(async move {
            if stream {
                never::<()>().await;
            }
            sent.notified().await;
            here.ended().await;
            there.finish().await;
        });
        let mut ended = false;
        let answer = {
            let answer = upstream.sender.send_request(for_docker(request));
            let mut answer = std::pin::pin!(answer);
            loop {
                tokio::select! {
                    biased;
                    answer = &mut answer => break answer,
                    () = &mut ending, if !ended => ended = true,
                }
            }
        };
        let answer = answer.map_err(|e| Failure::Request(because(&e)))?;
        if is_stream(&answer) {
            let hijack = Hijack::new(answer, upstream.stream, upstream.task).await?;
            let _ = client.hijacks.send(hijack).await;
            return never().await;
        }
        match after {
            After::Attached(expected) if answer.status().is_success() => {
                let attached = async { expected.finished().await.map_err(Failure::Other) };
                tokio::select! {
                    attached = attached => attached?,
                    // The client has gone.
                    () = &mut ending, if !ended => ended = true,
                }
            }
            After::Addresses(within) if is_changeable(&answer) => {
                let gone = async {
                    if ended {
                        never::<()>().await;
                    }
                    ending.await;
                };
                return self.with_address(within, answer, gone).await;
            }
            _ => {}
        }
        let task = upstream.task;
        Ok(answer.map(|body| {
            let relayed = Relayed {
                body,
                ending: (!ended).then_some(ending),
                _task: task,
            };
            relayed.boxed_unsync()
        }))
    }
}

/// With an upgrade, or as old clients have it, without.
fn may_become_stream(request: &Request<Incoming>) -> bool {
    let path = request.uri().path();
    request.headers().contains_key(UPGRADE)
        || path.ends_with("/attach")
        || (path.ends_with("/start") && path.contains("/exec/"))
}

/// The same request, as Docker's server takes it.
fn for_docker(mut request: Request<AnyBody>) -> Request<AnyBody> {
    if let Some(path) = request.uri().path_and_query() {
        // Also if the client has said it in the way of other proxies, with the host before it.
        let uri: Result<Uri, _> = path.as_str().parse();
        if let Ok(uri) = uri {
            *request.uri_mut() = uri;
        }
    }
    old_host(request.headers_mut());
    request
}

/// Old clients name the socket's path as host, which Docker's server refuses.
fn old_host(headers: &mut HeaderMap) {
    if headers
        .get(HOST)
        .is_some_and(|host| host.as_bytes().starts_with(b"/"))
    {
        headers.insert(HOST, HeaderValue::from_static(""));
        headers.append(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// An error with what it comes from.
fn because(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", because(source)),
        None => error.to_string(),
    }
}
