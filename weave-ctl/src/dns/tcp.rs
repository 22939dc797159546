//! Queries over TCP (RFC 7766): several on one connection, answered as the answers come.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddrV4, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::answer::{Answerer, Asker, Verdict};
use super::cache::{put_answer, put_key};
use super::counters::Passed;
use super::server::Shared;
use super::udp::pass_one_on;

/// Connections at one time; further ones wait.
const MOST_CONNECTIONS: usize = 256;
/// Without a whole query for so long, a connection is closed.
const IDLE: Duration = Duration::from_secs(10);
/// For an asker who does not take his answer.
const WRITE: Duration = Duration::from_secs(5);
/// Queries of one connection that wait for others; the next one is read when one of them is answered.
const MOST_WAITING: usize = 16;
/// After a failure to accept: no descriptors left, say.
const PAUSE: Duration = Duration::from_millis(100);

/// The address.
pub fn bind(listen: SocketAddrV4) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    socket.listen(128)?;
    Ok(socket.into())
}

/// Accepts connections until it is aborted, and all of them with it.
pub async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                connections.spawn(async move {
                    // Whatever is wrong with one connection, its other end knows.
                    let _ = converse(&shared, stream).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!("DNS over TCP: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn converse(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    let _ = stream.set_nodelay(true);
    let subnet = match stream.peer_addr()?.ip() {
        std::net::IpAddr::V4(asker) => shared.subnet_of(asker),
        std::net::IpAddr::V6(_) => None,
    };
    let asker = Asker { tcp: true, subnet };
    let mut answerer = Answerer::new(shared.local.clone(), StdRng::seed_from_u64(rand::random()));
    let mut waiting = FuturesUnordered::new();
    let mut read = Vec::new();
    let mut until = Instant::now() + IDLE;
    loop {
        let mut ready = VecDeque::new();
        while waiting.len() < MOST_WAITING
            && let Some(request) = take_frame(&mut read)
        {
            until = Instant::now() + IDLE;
            let mut out = Vec::new();
            let verdict = answerer.answer(&request, &shared.zone.read(), asker, &mut out);
            shared.counters.count(verdict);
            match verdict {
                Verdict::Forward => waiting.push(ask_others(shared, request)),
                Verdict::Ignore => return Ok(()),
                _ => ready.push_back(out),
            }
        }
        let answer = match ready.is_empty() {
            false => ready.into_iter().flat_map(framed).collect(),
            true => tokio::select! {
                Some(answer) = waiting.next() => framed(answer),
                count = stream.read_buf(&mut read), if waiting.len() < MOST_WAITING => match count? {
                    0 => return Ok(()),
                    _ => continue,
                },
                () = sleep_until(until), if waiting.is_empty() => return Ok(()),
            },
        };
        timeout(WRITE, stream.write_all(&answer)).await??;
    }
}

async fn ask_others(shared: &Shared, request: Vec<u8>) -> Vec<u8> {
    let (mut key, mut out) = (Vec::new(), Vec::new());
    if !put_key(&request, true, &mut key) {
        return out;
    }
    match shared.upstream.cached(&key) {
        Some((answer, age)) => {
            put_answer(&answer, &request, age, &mut out);
            shared.counters.passed(Passed::Cached);
        }
        None => pass_one_on(shared, key.into(), &request, true, &mut out).await,
    }
    out
}

/// The next whole query of what has been read.
fn take_frame(read: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = usize::from(u16::from_be_bytes(*read.first_chunk()?));
    let frame = read.get(2..2 + length)?.to_vec();
    read.drain(..2 + length);
    Some(frame)
}

fn framed(answer: Vec<u8>) -> Vec<u8> {
    // No message of ours or of others is longer than a length can say.
    let length = u16::try_from(answer.len()).unwrap_or(u16::MAX);
    let mut out = length.to_be_bytes().to_vec();
    out.extend(answer.into_iter().take(length.into()));
    out
}
