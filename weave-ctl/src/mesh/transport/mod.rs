//! The TCP control connection: introduction, then messages with their lengths (wire.md 2.1 to 2.6).
//!
//! Errors read like the original's, as they end up in `weave status connections`.

mod introduction;
#[cfg(test)]
mod sealed_tests;
mod socket;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout_at};

use super::crypto::{Exhausted, TAG, TcpCipher, Undecryptable};
use super::message::{MAX_BODY, Message, MessageError};
pub use introduction::{Connected, IntroError, introduce};
pub use socket::{canonical, dial, listen};

/// Most bytes of room made for data that has been announced but has not come.
const CHUNK: usize = 16 * 1024;

/// A control connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The remote has closed or reset the connection.
    #[error("{0}")]
    Ended(String),
    /// The connection broke, or nothing came in time.
    #[error("{0}")]
    Io(String),
    /// An announced length is above the limit.
    #[error("incoming message exceeds maximum size: {size} > {max}")]
    Incoming {
        /// Announced, in bytes.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// A body to send is above the limit.
    #[error("outgoing message exceeds maximum size: {0} > {MAX_BODY}")]
    Outgoing(usize),
    /// A message that cannot be opened.
    #[error(transparent)]
    Undecryptable(#[from] Undecryptable),
    /// Nothing more can be sealed.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// A message that cannot be decoded.
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl TransportError {
    /// `text`, which tells of the cause as well.
    fn new(cause: &io::Error, text: String) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        match cause.kind() {
            BrokenPipe | ConnectionReset => Self::Ended(text),
            _ => Self::Io(text),
        }
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct Reader {
    half: OwnedReadHalf,
    ends: String,
    /// What has come of the present message, with its length.
    buffer: Vec<u8>,
    timeout: Duration,
    /// For the present message; set by the first call that waits for it.
    deadline: Option<Instant>,
    skipped: u64,
    /// Of an encrypted connection, once both ends have a key.
    opener: Option<TcpCipher>,
}

impl Reader {
    /// The next message. It must come whole within 60 s. What is to be skipped (see
    /// [`Message::decode`]) only adds to [`Self::skipped`]. After an error nothing more can be read.
    ///
    /// Cancel safe: a call that is given up goes on in the next one, with the same deadline.
    pub async fn next(&mut self) -> Result<Message, TransportError> {
        loop {
            let frame = self.frame(MAX_BODY).await?;
            match Message::decode(frame.body())? {
                Some(message) => return Ok(message),
                None => self.skipped += 1,
            }
        }
    }

    /// The time to the remote and back, as the kernel has measured it lately.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        let stream: &TcpStream = self.half.as_ref();
        socket::round_trip(stream)
    }

    /// How many messages have been skipped so far.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// A length and that many bytes, `max` at most, opened if need be.
    async fn frame(&mut self, max: usize) -> Result<Frame, TransportError> {
        self.fill_in_time(LENGTH).await?;
        let size = self
            .buffer
            .first_chunk()
            .map_or(0, |size| u32::from_be_bytes(*size) as usize);
        if size > max {
            return Err(TransportError::Incoming { size, max });
        }
        self.fill_in_time(LENGTH + size).await?;
        self.deadline = None;
        let mut bytes = std::mem::take(&mut self.buffer);
        let mut start = LENGTH;
        if let Some(opener) = &mut self.opener {
            let sealed = bytes.get_mut(LENGTH..).and_then(<[u8]>::split_first_chunk_mut);
            let (tag, message) = sealed.ok_or(Undecryptable)?;
            opener.open(tag, message)?;
            start += TAG;
        }
        Ok(Frame { bytes, start })
    }

    /// Reads until `buffer` has `length` bytes.
    async fn fill_in_time(&mut self, length: usize) -> Result<(), TransportError> {
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + self.timeout);
        let result = timeout_at(deadline, self.fill(length)).await;
        Err(match result {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) if self.buffer.is_empty() => TransportError::Ended("EOF".to_owned()),
            Ok(Ok(false)) => TransportError::Ended("unexpected EOF".to_owned()),
            Ok(Err(error)) => {
                let text = format!("read {}: read: {}", self.ends, socket::reason(&error));
                TransportError::new(&error, text)
            }
            Err(_) => TransportError::Io(format!("read {}: {}", self.ends, socket::TIMEOUT)),
        })
    }

    /// False at the end of the stream.
    async fn fill(&mut self, length: usize) -> io::Result<bool> {
        while let Some(missing) = length.checked_sub(self.buffer.len()).filter(|n| *n > 0) {
            // Room only for what may come next: an announcement costs a stranger nothing.
            self.buffer.reserve(missing.min(CHUNK));
            let mut half = (&mut self.half).take(missing as u64);
            if half.read_buf(&mut self.buffer).await? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Bytes of a length.
const LENGTH: usize = 4;

/// A message as it came, opened in place.
struct Frame {
    bytes: Vec<u8>,
    /// After the length, and the tag if there is one.
    start: usize,
}

impl Frame {
    fn body(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

/// The sending half.
#[derive(Debug)]
pub struct Writer {
    half: OwnedWriteHalf,
    ends: String,
    /// Of an encrypted connection, once both ends have a key.
    sealer: Option<TcpCipher>,
}

impl Writer {
    /// Sends a body with its length, sealed if need be, in a single write unless the socket's buffer is
    /// full. There is no deadline but the kernel's (`TCP_USER_TIMEOUT`, 10 s without acknowledgement).
    /// Not cancel safe.
    pub async fn send(&mut self, body: &[u8]) -> Result<(), TransportError> {
        let tag = if self.sealer.is_some() { TAG } else { 0 };
        let size = body.len().saturating_add(tag);
        let length = u32::try_from(size).ok().filter(|_| size <= MAX_BODY);
        let length = length.ok_or(TransportError::Outgoing(size))?;

        let mut frame = Vec::with_capacity(LENGTH + size);
        frame.extend_from_slice(&length.to_be_bytes());
        frame.resize(LENGTH + tag, 0);
        frame.extend_from_slice(body);
        if let Some(sealer) = &mut self.sealer
            && let Some((tag, message)) = frame.get_mut(LENGTH..).and_then(<[u8]>::split_first_chunk_mut)
        {
            *tag = sealer.seal(message)?;
        }
        self.write(&frame).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        self.half.write_all(bytes).await.map_err(|error| {
            let text = format!("write {}: write: {}", self.ends, socket::reason(&error));
            TransportError::new(&error, text)
        })
    }
}
