//! Bodies on their way: what the client sends and what Docker answers, passed on piece by piece.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS};
use hyper::{HeaderMap, Response};
use tokio::sync::Notify;

use super::Failure;
use super::shared::Shared;
use super::upstream::Task;

/// Any body.
pub(super) type AnyBody = UnsyncBoxBody<Bytes, hyper::Error>;

/// Bytes that are there already.
pub(super) fn whole(bytes: impl Into<Bytes>) -> AnyBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// The head says how long a body of ours is.
pub(super) fn set_length(headers: &mut HeaderMap, length: usize) {
    headers.remove(TRANSFER_ENCODING);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
}

/// An answer of our own.
pub(super) fn refusal(failure: &Failure) -> Response<AnyBody> {
    let text = format!("{failure}\n");
    let mut answer = Response::new(AnyBody::default());
    *answer.status_mut() = failure.status();
    let headers = answer.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    set_length(headers, text.len());
    *answer.body_mut() = whole(text);
    answer
}

/// A body on its way to Docker. When hyper has taken all of it, Docker has it after the next flush.
pub(super) struct Sent {
    body: AnyBody,
    upstream: Shared,
    sent: Arc<Notify>,
}

impl Sent {
    /// `sent` is notified when Docker has all of the request.
    pub(super) fn to(upstream: Shared, body: AnyBody, sent: Arc<Notify>) -> AnyBody {
        Self { body, upstream, sent }.boxed_unsync()
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.upstream.when_flushed(self.sent.clone());
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Docker's body, with what must live as long.
pub(super) struct Relayed {
    pub(super) body: Incoming,
    /// Passes the client's end on to Docker, once; `None` afterwards.
    pub(super) ending: Option<BoxFuture<'static, ()>>,
    pub(super) _task: Task,
}

impl Body for Relayed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(ending) = &mut self.ending
            && ending.as_mut().poll(cx).is_ready()
        {
            self.ending = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
