//! The TCP control connection: introduction, then messages with their lengths (wire.md 2.1 to 2.6).
//!
//! Errors read like the original's, as they end up in `weave status connections`.

mod socket;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout_at};

use super::handshake::{
    FLAG_PLAIN, Features, FeaturesError, FlagError, HEADER, HeaderError, MAX_FEATURES, check_flag,
    check_header,
};
use super::message::{MAX_BODY, Message, MessageError};
pub use socket::{canonical, dial, listen};

/// For the exchange of headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// For the rest of the introduction, and for each message after the one before.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes of room made for data that has been announced but has not come.
const CHUNK: usize = 16 * 1024;

/// A control connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The remote has closed the connection between two messages, or it broke, or nothing came in time.
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
    /// A message that cannot be decoded.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// An introduction has failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IntroError {
    /// Header (wire.md 2.2).
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Flag byte (wire.md 2.3).
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// Features (wire.md 2.5).
    #[error(transparent)]
    Features(#[from] FeaturesError),
    /// The connection itself.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// A connection whose ends know each other. It is closed when both halves have been dropped: with
/// RST, unsent data is discarded. A dropped writer alone tells the remote that nothing will follow.
#[derive(Debug)]
pub struct Connected {
    /// Messages from the remote.
    pub reader: Reader,
    /// Messages to the remote.
    pub writer: Writer,
    /// Our end; an IPv4 address is never written as IPv6.
    pub local: SocketAddr,
    /// Their end; likewise.
    pub remote: SocketAddr,
}

/// Introduces both ends of a new connection to each other (wire.md 2.2 to 2.5): header within 10 s,
/// the rest within 60 s. The same for both ends. Not cancel safe: drop the connection with it.
pub async fn introduce(stream: TcpStream, ours: &Features) -> Result<(Connected, Features), IntroError> {
    introduce_within(stream, ours, HEADER_TIMEOUT, READ_TIMEOUT).await
}

async fn introduce_within(
    stream: TcpStream,
    ours: &Features,
    header_timeout: Duration,
    read_timeout: Duration,
) -> Result<(Connected, Features), IntroError> {
    let io_error = |error: io::Error| TransportError::Io(socket::reason(&error));
    socket::configure(&stream).map_err(io_error)?;
    let local = canonical(stream.local_addr().map_err(io_error)?);
    let remote = canonical(stream.peer_addr().map_err(io_error)?);
    let ends = format!("tcp {local}->{remote}");
    let (read, write) = stream.into_split();
    let mut writer = Writer {
        half: write,
        ends: ends.clone(),
    };
    let mut reader = Reader {
        half: read,
        ends,
        buffer: Vec::new(),
        timeout: read_timeout,
        deadline: Some(Instant::now() + header_timeout),
        skipped: 0,
    };

    writer.write(&HEADER).await?;
    let header = reader.fill_in_time(HEADER.len()).await;
    check_header(match (header, <[u8; 7]>::try_from(reader.buffer.as_slice())) {
        (Ok(()), Ok(header)) => header,
        (result, _) => {
            let cause = result.err().map_or_else(String::new, |e| e.to_string());
            let got = std::mem::take(&mut reader.buffer);
            return Err(match got.is_empty() {
                true => HeaderError::Nothing(cause),
                false => HeaderError::Incomplete { got, cause },
            }
            .into());
        }
    })?;

    reader.buffer.clear();
    reader.deadline = Some(Instant::now() + read_timeout);
    writer.write(&[FLAG_PLAIN]).await?;
    reader.fill_in_time(1).await?;
    let flag = reader.buffer.pop();
    check_flag(flag.unwrap_or(FLAG_PLAIN))?;

    writer.send(&ours.encode()).await?;
    let theirs = Features::decode(body(&reader.frame(MAX_FEATURES).await?))?;
    let connected = Connected {
        reader,
        writer,
        local,
        remote,
    };
    Ok((connected, theirs))
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
}

impl Reader {
    /// The next message. It must come whole within 60 s. What is to be skipped (see
    /// [`Message::decode`]) only adds to [`Self::skipped`]. After an error nothing more can be read.
    ///
    /// Cancel safe: a call that is given up goes on in the next one, with the same deadline.
    pub async fn next(&mut self) -> Result<Message, TransportError> {
        loop {
            let frame = self.frame(MAX_BODY).await?;
            match Message::decode(body(&frame))? {
                Some(message) => return Ok(message),
                None => self.skipped += 1,
            }
        }
    }

    /// How many messages have been skipped so far.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// A length and that many bytes, `max` at most.
    async fn frame(&mut self, max: usize) -> Result<Vec<u8>, TransportError> {
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
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Reads until `buffer` has `length` bytes.
    async fn fill_in_time(&mut self, length: usize) -> Result<(), TransportError> {
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + self.timeout);
        let result = timeout_at(deadline, self.fill(length)).await;
        let text = match result {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) if self.buffer.is_empty() => "EOF".to_owned(),
            Ok(Ok(false)) => "unexpected EOF".to_owned(),
            Ok(Err(error)) => format!("read {}: read: {}", self.ends, socket::reason(&error)),
            Err(_) => format!("read {}: {}", self.ends, socket::TIMEOUT),
        };
        Err(TransportError::Io(text))
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

fn body(frame: &[u8]) -> &[u8] {
    frame.get(LENGTH..).unwrap_or_default()
}

/// The sending half.
#[derive(Debug)]
pub struct Writer {
    half: OwnedWriteHalf,
    ends: String,
}

impl Writer {
    /// Sends a body with its length, in a single write unless the socket's buffer is full. There is
    /// no deadline but the kernel's (`TCP_USER_TIMEOUT`, 30 s without acknowledgement). Not cancel safe.
    pub async fn send(&mut self, body: &[u8]) -> Result<(), TransportError> {
        let too_large = TransportError::Outgoing(body.len());
        let length = u32::try_from(body.len()).map_err(|_| too_large.clone())?;
        if body.len() > MAX_BODY {
            return Err(too_large);
        }
        self.write(&[&length.to_be_bytes(), body].concat()).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        self.half.write_all(bytes).await.map_err(|error| {
            TransportError::Io(format!("write {}: write: {}", self.ends, socket::reason(&error)))
        })
    }
}
