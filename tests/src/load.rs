//! Many requests to the daemon's HTTP interface over connections that are kept: one thread, so that the client
//! costs little beside the daemon.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Where `weave-ctl` listens on each host.
pub const CONTROL: &str = "127.0.0.1:6784";

/// Without these a report is a template's work, and a POST without a length is refused by some.
const HEADERS: &str = "Accept: application/json\r\nContent-Length: 0\r\n";

/// One request, without a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: &'static str,
    /// With its leading slash.
    pub path: String,
}

impl Request {
    /// An address for `id` from the default subnet.
    pub fn allocate(id: &str) -> Self {
        Self {
            method: "POST",
            path: format!("/ip/{id}"),
        }
    }

    /// All addresses of `id` are given back.
    pub fn free(id: &str) -> Self {
        Self {
            method: "DELETE",
            path: format!("/ip/{id}"),
        }
    }
}

/// One request, alone. The body of a good answer.
///
/// # Errors
/// As [`run`], if there is no answer, or if its status is no success.
pub fn ask(address: SocketAddr, method: &'static str, path: &str, limit: Duration) -> Result<String> {
    let path = path.to_owned();
    let script = vec![Request { method, path }];
    let load = run(address, slice::from_ref(&script), limit, &AtomicUsize::new(0))?;
    let answer = load.answers.into_iter().flatten().next();
    match answer {
        Some(Answer { status, body, .. }) if (200..300).contains(&status) => Ok(body),
        other => bail!("{script:?}: {other:?}"),
    }
}

/// A GET, alone. The body of a good answer.
///
/// # Errors
/// As [`ask`].
pub fn get(address: SocketAddr, path: &str, limit: Duration) -> Result<String> {
    ask(address, "GET", path, limit)
}

/// What came back.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Text.
    pub body: String,
    /// From the request's first byte sent to the answer's last byte read.
    pub microseconds: f64,
}

/// All answers.
#[derive(Debug, Default)]
pub struct Load {
    /// From the first request to the last answer.
    pub seconds: f64,
    /// For each connection, in the order of its script. Shorter if the connection ended before.
    pub answers: Vec<Vec<Answer>>,
}

/// Sends each script over a connection of its own, each request when the one before is answered, until all
/// are answered or the daemon is gone. `answered` counts along.
///
/// # Errors
/// If the daemon cannot be reached, answers what is not HTTP, or takes longer than `limit`.
pub fn run(
    address: SocketAddr,
    scripts: &[Vec<Request>],
    limit: Duration,
    answered: &AtomicUsize,
) -> Result<Load> {
    let mut clients = scripts
        .iter()
        .map(|script| Client::connect(address, script, limit))
        .collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    for client in &mut clients {
        client.send_next();
    }
    loop {
        let mut polled: Vec<libc::pollfd> = clients.iter().map(Client::polled).collect();
        if polled.iter().all(|p| p.fd < 0) {
            break;
        }
        ensure!(start.elapsed() < limit, "no answer for too long");
        let count = libc::nfds_t::try_from(polled.len())?;
        // SAFETY: the pointer and the length are those of one live vector.
        unsafe { libc::poll(polled.as_mut_ptr(), count, 1000) };
        for (client, polled) in clients.iter_mut().zip(&polled) {
            if polled.revents != 0 && client.receive()? {
                answered.fetch_add(1, Ordering::Relaxed);
                client.send_next();
            }
        }
    }
    Ok(Load {
        seconds: start.elapsed().as_secs_f64(),
        answers: clients.into_iter().map(|client| client.answers).collect(),
    })
}

struct Client<'a> {
    /// `None` at the end of the script, and after the daemon's end.
    stream: Option<TcpStream>,
    script: &'a [Request],
    sent: Instant,
    received: Vec<u8>,
    answers: Vec<Answer>,
}

impl<'a> Client<'a> {
    fn connect(address: SocketAddr, script: &'a [Request], limit: Duration) -> Result<Self> {
        let stream =
            TcpStream::connect_timeout(&address, limit).with_context(|| format!("cannot reach {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: Some(stream),
            script,
            sent: Instant::now(),
            received: Vec::new(),
            answers: Vec::with_capacity(script.len()),
        })
    }

    fn polled(&self) -> libc::pollfd {
        libc::pollfd {
            // Negative ones are left out.
            fd: self.stream.as_ref().map_or(-1, AsRawFd::as_raw_fd),
            events: libc::POLLIN,
            revents: 0,
        }
    }

    fn send_next(&mut self) {
        let Some(Request { method, path }) = self.script.get(self.answers.len()) else {
            self.stream = None;
            return;
        };
        let text = format!("{method} {path} HTTP/1.1\r\nHost: weave\r\n{HEADERS}\r\n");
        self.sent = Instant::now();
        // So short that the socket takes it at once.
        let written = self.stream.as_mut().map(|s| s.write_all(text.as_bytes()));
        if !matches!(written, Some(Ok(()))) {
            self.stream = None;
        }
    }

    /// True if an answer is complete.
    fn receive(&mut self) -> Result<bool> {
        let mut buffer = [0; 16 * 1024];
        let Some(stream) = &mut self.stream else {
            return Ok(false);
        };
        match stream.read(&mut buffer) {
            Ok(0) => self.stream = None,
            Ok(count) => self
                .received
                .extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.stream = None,
        }
        let Some((status, body, end)) = parse(&self.received)? else {
            return Ok(false);
        };
        self.received.drain(..end);
        self.answers.push(Answer {
            status,
            body,
            microseconds: self.sent.elapsed().as_secs_f64() * 1e6,
        });
        Ok(true)
    }
}

/// Status, body, and where the answer ends; `None` while it is incomplete.
fn parse(bytes: &[u8]) -> Result<Option<(u16, String, usize)>> {
    let Some(head_end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Ok(None);
    };
    let (head, rest) = bytes.split_at(head_end + 4);
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    let Some(status) = status else {
        bail!("no HTTP: {head}")
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(Ok(0), |length| length.trim().parse::<usize>())?;
    let Some(body) = rest.get(..length) else {
        return Ok(None);
    };
    let body = String::from_utf8_lossy(body).trim().to_owned();
    Ok(Some((status, body, head_end + 4 + length)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn answers_in_pieces() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nX: y\r\n\r\n10.32.0.1/12HTTP";
        for end in 0..whole.len() - 5 {
            assert_eq!(parse(&whole[..end]).unwrap(), None, "{end}");
        }
        let parsed = parse(whole).unwrap();
        assert_eq!(parsed, Some((200, "10.32.0.1/12".to_owned(), whole.len() - 4)));
        let empty = b"HTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(parse(empty).unwrap(), Some((204, String::new(), empty.len())));
        assert!(parse(b"SSH-2.0\r\n\r\n").is_err());
    }

    #[test]
    fn a_server_that_goes_away_ends_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap();
            assert!(request[..count].starts_with(b"POST /ip/a HTTP/1.1\r\n"));
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes")
                .unwrap();
            let _ = stream.read(&mut request).unwrap();
        });
        let script = vec![Request::allocate("a"), Request::free("a")];
        let answered = AtomicUsize::new(0);
        let load = run(address, &[script], Duration::from_secs(60), &answered).unwrap();
        server.join().unwrap();
        assert_eq!(answered.into_inner(), 1);
        let answers = &load.answers[0];
        assert_eq!(
            (answers.len(), answers[0].status, answers[0].body.as_str()),
            (1, 200, "yes")
        );
    }
}
