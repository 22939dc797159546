//! How both ends of a new connection get to know each other (wire.md 2.2 to 2.5).
//!
//! Nobody is told over the wire why an introduction failed. So whoever sees that the passwords differ
//! waits until the remote has had the chance to see it as well: closing at once would discard what it
//! needs for that.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::{Reader, TransportError, Writer, canonical, socket};
use crate::mesh::crypto::{KeyPair, LowOrderKey, PUBLIC_KEY, Password, SessionKey, TcpCipher};
use crate::mesh::handshake::{
    FLAG_ENCRYPTED, FLAG_PLAIN, Features, FeaturesError, FlagError, HEADER, HeaderError, MAX_FEATURES,
    check_flag, check_header,
};

/// For the exchange of headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// For the rest of the introduction, and for each message after the one before.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the remote may take to find out by itself why we go.
const PARTING: Duration = Duration::from_secs(2);

/// An introduction has failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IntroError {
    /// Header (wire.md 2.2).
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A flag byte that says neither (wire.md 2.3).
    #[error(transparent)]
    Flag(FlagError),
    /// The passwords differ, or one end has none; known, or likely. The cause in the original's words.
    #[error(
        "{cause}: the peer at {remote} {theirs} (WEAVE_PASSWORD or --password must be the same on all hosts)"
    )]
    Password {
        /// What has happened.
        cause: String,
        /// Whose password it is.
        remote: SocketAddr,
        /// What it is compared to ours.
        theirs: &'static str,
    },
    /// A public key that gives no secret.
    #[error("the peer at {remote} cannot be spoken to in secret: {error}")]
    Key {
        /// Why.
        error: LowOrderKey,
        /// Whose key it is.
        remote: SocketAddr,
    },
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
    /// The key of this connection if its messages are sealed: whenever there is a password, also
    /// between peers that trust each other.
    pub session: Option<SessionKey>,
    /// We have said that we trust the remote. When it has said the same (`trusted` of its features),
    /// data goes in clear (wire.md 2.7).
    pub trusted_by_us: bool,
}

impl Connected {
    /// Sends a last message, and waits until the remote has had time to read it.
    pub async fn part_with(mut self, body: &[u8]) {
        if self.writer.send(body).await.is_ok() {
            part(&mut self.reader, &mut self.writer).await;
        }
    }
}

/// Introduces both ends of a new connection to each other (wire.md 2.2 to 2.5): header within 10 s,
/// the rest within 60 s. Messages are sealed if there is a `password`, which must not be empty;
/// `outbound`: we have dialled. Not cancel safe: drop the connection with it.
pub async fn introduce(
    stream: TcpStream,
    ours: &Features,
    password: Option<&Password>,
    outbound: bool,
) -> Result<(Connected, Features), IntroError> {
    let private = || KeyPair::new(Zeroizing::new(rand::random()));
    let introduction = Introduction {
        ours,
        secret: password.map(|password| (private(), password)),
        outbound,
        header_timeout: HEADER_TIMEOUT,
        read_timeout: READ_TIMEOUT,
    };
    introduction.with(stream).await
}

/// Our side of it.
pub(super) struct Introduction<'a> {
    pub(super) ours: &'a Features,
    pub(super) secret: Option<(KeyPair, &'a Password)>,
    pub(super) outbound: bool,
    pub(super) header_timeout: Duration,
    pub(super) read_timeout: Duration,
}

impl Introduction<'_> {
    pub(super) async fn with(&self, stream: TcpStream) -> Result<(Connected, Features), IntroError> {
        let io_error = |error: io::Error| TransportError::Io(socket::reason(&error));
        socket::configure(&stream).map_err(io_error)?;
        let local = canonical(stream.local_addr().map_err(io_error)?);
        let remote = canonical(stream.peer_addr().map_err(io_error)?);
        let ends = format!("tcp {local}->{remote}");
        let (read, write) = stream.into_split();
        let mut writer = Writer {
            half: write,
            ends: ends.clone(),
            sealer: None,
        };
        let mut reader = Reader {
            half: read,
            ends,
            buffer: Vec::new(),
            timeout: self.read_timeout,
            deadline: Some(Instant::now() + self.header_timeout),
            skipped: 0,
            opener: None,
        };
        exchange_headers(&mut reader, &mut writer).await?;
        reader.deadline = Some(Instant::now() + self.read_timeout);
        let secrets = async {
            let session = self.exchange_keys(&mut reader, &mut writer, remote).await?;
            let theirs = self.exchange_features(&mut reader, &mut writer, remote).await?;
            Ok((session, theirs))
        };
        match secrets.await {
            Ok((session, theirs)) => {
                let connected = Connected {
                    reader,
                    writer,
                    local,
                    remote,
                    session,
                    trusted_by_us: self.ours.trusted,
                };
                Ok((connected, theirs))
            }
            Err(error) => {
                if matches!(error, IntroError::Password { .. }) {
                    part(&mut reader, &mut writer).await;
                }
                Err(error)
            }
        }
    }

    /// Flags, and public keys when both ends have a password (wire.md 2.3, 2.4). From here on both halves
    /// seal and open.
    async fn exchange_keys(
        &self,
        reader: &mut Reader,
        writer: &mut Writer,
        remote: SocketAddr,
    ) -> Result<Option<SessionKey>, IntroError> {
        let differs = |cause: &dyn ToString, theirs| IntroError::Password {
            cause: cause.to_string(),
            remote,
            theirs,
        };
        // An original that has seen our flag resets before it has sent its own.
        let likely = match self.secret {
            Some(_) => "probably has no password, but this host has one",
            None => "probably has a password, but this host has none",
        };
        let ended = |error: TransportError| match error {
            TransportError::Ended(cause) => differs(&cause, likely),
            other => other.into(),
        };
        let flag_and_key = match &self.secret {
            None => vec![FLAG_PLAIN],
            Some((pair, _)) => [[FLAG_ENCRYPTED].as_slice(), &pair.public()].concat(),
        };
        writer.write(&flag_and_key).await.map_err(ended)?;
        reader.fill_in_time(1).await.map_err(ended)?;
        let flag = reader.buffer.pop().unwrap_or(FLAG_PLAIN);
        check_flag(flag, self.secret.is_some()).map_err(|error| match error {
            FlagError::Plain => differs(&error, "has no password, but this host has one"),
            FlagError::Encrypted => differs(&error, "has a password, but this host has none"),
            FlagError::Bad(_) => IntroError::Flag(error),
        })?;
        let Some((pair, password)) = &self.secret else {
            return Ok(None);
        };
        reader.fill_in_time(PUBLIC_KEY).await?;
        let theirs = reader.buffer.first_chunk().copied().unwrap_or_default();
        reader.buffer.clear();
        let session =
            SessionKey::derive(pair, theirs, password).map_err(|error| IntroError::Key { error, remote })?;
        writer.sealer = Some(TcpCipher::new(&session, self.outbound));
        reader.opener = Some(TcpCipher::new(&session, !self.outbound));
        Ok(Some(session))
    }

    /// The first message each way; the first that can tell whether the passwords are the same.
    async fn exchange_features(
        &self,
        reader: &mut Reader,
        writer: &mut Writer,
        remote: SocketAddr,
    ) -> Result<Features, IntroError> {
        let differs = |error: TransportError| {
            let theirs = match &error {
                TransportError::Undecryptable(_) => "has another password",
                TransportError::Ended(_) if self.secret.is_some() => "probably has another password",
                _ => return error.into(),
            };
            IntroError::Password {
                cause: error.to_string(),
                remote,
                theirs,
            }
        };
        writer.send(&self.ours.encode()).await.map_err(differs)?;
        let frame = reader.frame(MAX_FEATURES).await.map_err(differs)?;
        Ok(Features::decode(frame.body())?)
    }
}

async fn exchange_headers(reader: &mut Reader, writer: &mut Writer) -> Result<(), IntroError> {
    writer.write(&HEADER).await?;
    let header = reader.fill_in_time(HEADER.len()).await;
    let got = std::mem::take(&mut reader.buffer);
    match (header, <[u8; 7]>::try_from(got.as_slice())) {
        (Ok(()), Ok(header)) => Ok(check_header(header)?),
        (result, _) => {
            let cause = result.err().map_or_else(String::new, |e| e.to_string());
            Err(match got.is_empty() {
                true => HeaderError::Nothing(cause),
                false => HeaderError::Incomplete { got, cause },
            }
            .into())
        }
    }
}

/// Says that nothing will follow, and waits until the remote has gone, too.
async fn part(reader: &mut Reader, writer: &mut Writer) {
    let _ = writer.half.shutdown().await;
    let mut rest = (&mut reader.half).take(MAX_FEATURES as u64);
    let _ = timeout(PARTING, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
}
