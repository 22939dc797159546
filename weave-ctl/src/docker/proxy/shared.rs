//! A stream of which both hyper and the proxy have a hand: to see that the other end has stopped sending while an
//! answer is under way, to pass that on, and to go on where hyper has stopped.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use hyper::body::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::docker::endpoint::Stream;

/// Bytes that are read to see whether there are more.
const AHEAD: usize = 4096;

/// A stream; its clones are the same one. Only one task may read at a time.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Inner>>);

struct Inner {
    stream: Box<dyn Stream>,
    /// Read, and not yet taken.
    ahead: Bytes,
    ended: bool,
    flushed: Option<Arc<Notify>>,
}

impl Shared {
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            stream,
            ahead: Bytes::new(),
            ended: false,
            flushed: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts bytes back: they are read next.
    pub(super) fn unread(&self, bytes: Bytes) {
        let mut inner = self.lock();
        inner.ahead = match inner.ahead.is_empty() {
            true => bytes,
            false => [bytes, inner.ahead.clone()].concat().into(),
        };
    }

    /// Notifies when everything is written that is in hyper's buffers now.
    pub(super) fn when_flushed(&self, notify: Arc<Notify>) {
        self.lock().flushed = Some(notify);
    }

    /// Ends when the other side sends no more, and all it has sent is taken. Not to be called while somebody else
    /// waits to read.
    pub(super) async fn ended(&self) {
        std::future::poll_fn(|cx| self.lock().poll_ended(cx)).await;
    }

    /// We send no more.
    pub(super) async fn finish(&self) {
        let done = std::future::poll_fn(|cx| Pin::new(&mut self.lock().stream).poll_shutdown(cx)).await;
        if let Err(error) = done {
            tracing::debug!("half-closing a connection: {error}");
        }
    }
}

impl Inner {
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.ended && self.ahead.is_empty() {
            let mut bytes = [0; AHEAD];
            let mut buffer = ReadBuf::new(&mut bytes);
            // After an error there is nothing to read either.
            let _ = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            self.ahead = Bytes::copy_from_slice(buffer.filled());
            self.ended = self.ahead.is_empty();
        }
        // While there is something to read, it is for others to take it; they poll then.
        match self.ahead.is_empty() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}

impl AsyncRead for Shared {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        if !inner.ahead.is_empty() {
            let count = inner.ahead.len().min(buf.remaining());
            let taken = inner.ahead.split_to(count);
            buf.put_slice(taken.chunk());
            return Poll::Ready(Ok(()));
        }
        if inner.ended {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut inner.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.lock().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.lock().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        ready!(Pin::new(&mut inner.stream).poll_flush(cx))?;
        if let Some(notify) = inner.flushed.take() {
            notify.notify_one();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn nothing_gets_lost_while_the_end_is_waited_for() {
        let (mut far, near) = tokio::io::duplex(64);
        let mut shared = Shared::new(Box::new(near));
        let other = shared.clone();
        let mut ended = Box::pin(other.ended());
        assert!(futures_util::poll!(ended.as_mut()).is_pending());
        far.write_all(b"hello").await.unwrap();
        assert!(futures_util::poll!(ended.as_mut()).is_pending());
        far.shutdown().await.unwrap();
        assert!(
            futures_util::poll!(ended.as_mut()).is_pending(),
            "it is not taken"
        );
        shared.unread(Bytes::from_static(b"oh, "));
        let mut three = [0; 3];
        shared.read_exact(&mut three).await.unwrap();
        assert_eq!(&three, b"oh,");
        let mut rest = String::new();
        shared.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, " hello");
        ended.await;
        // The other direction is still open, until we say otherwise.
        shared.write_all(b"bye").await.unwrap();
        shared.finish().await;
        let mut told = String::new();
        far.read_to_string(&mut told).await.unwrap();
        assert_eq!(told, "bye");
    }
}
