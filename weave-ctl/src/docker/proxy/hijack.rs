//! Connections that are streams in both directions after their heads: attach, exec, and what is built on them.

use std::fmt::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::{future::poll_fn, io};

use hyper::body::{Body as _, Buf as _, Bytes, Incoming};
use hyper::ext::ReasonPhrase;
use hyper::{Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::Failure;
use super::shared::Shared;
use super::upstream::Task;
use crate::docker::endpoint::Stream;

/// Bytes on their way, in each direction.
const BUFFER: usize = 64 << 10;

/// What the client's connection becomes.
pub(super) struct Hijack {
    /// The answer's head, as it is written.
    head: Vec<u8>,
    upstream: Box<dyn Stream>,
    _task: Task,
}

impl Hijack {
    /// From Docker's answer, and the connection it came by.
    pub(super) async fn new(
        mut answer: Response<Incoming>,
        stream: Shared,
        task: Task,
    ) -> Result<Self, Failure> {
        let head = head(&answer);
        let upstream: Box<dyn Stream> = if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgraded = hyper::upgrade::on(&mut answer).await;
            Box::new(TokioIo::new(
                upgraded.map_err(|e| Failure::Request(e.to_string()))?,
            ))
        } else {
            // Without an upgrade hyper reads to the end, and will not write any more.
            Box::new(Raw {
                body: answer.into_body(),
                rest: Bytes::new(),
                stream,
            })
        };
        Ok(Self {
            head,
            upstream,
            _task: task,
        })
    }

    /// Passes everything on in both directions, until both have ended. An end in one direction is passed on as such.
    pub(super) async fn run(mut self, mut client: Shared) -> io::Result<()> {
        client.write_all(&self.head).await?;
        client.flush().await?;
        let copied =
            tokio::io::copy_bidirectional_with_sizes(&mut client, &mut self.upstream, BUFFER, BUFFER).await;
        // What the other end does not hear otherwise: that we are gone.
        let _ = client.shutdown().await;
        copied.map(drop)
    }
}

/// Names have the letter case that Go, and so Docker, gives them.
fn head(answer: &Response<Incoming>) -> Vec<u8> {
    let version = if answer.version() == Version::HTTP_10 {
        "1.0"
    } else {
        "1.1"
    };
    let reason = answer.extensions().get::<ReasonPhrase>();
    let reason = reason.map_or_else(
        || answer.status().canonical_reason().unwrap_or_default().as_bytes(),
        |reason| reason.as_bytes(),
    );
    let mut line = String::new();
    let _infallible = write!(line, "HTTP/{version} {} ", answer.status().as_str());
    let mut head = line.into_bytes();
    head.extend_from_slice(reason);
    head.extend_from_slice(b"\r\n");
    for (name, value) in answer.headers() {
        let mut first = true;
        for byte in name.as_str().bytes() {
            head.push(if first { byte.to_ascii_uppercase() } else { byte });
            first = byte == b'-';
        }
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// A connection whose answer has no end but that of the connection: hyper reads it, we write it.
struct Raw {
    body: Incoming,
    rest: Bytes,
    stream: Shared,
}

impl AsyncRead for Raw {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
            }
        }
        let count = self.rest.len().min(buf.remaining());
        buf.put_slice(self.rest.split_to(count).chunk());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Raw {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Never ends.
pub(super) async fn never<T>() -> T {
    poll_fn(|_| Poll::Pending).await
}
