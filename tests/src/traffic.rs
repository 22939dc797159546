//! Traffic with contents that are checked on arrival.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::lab::netns;
use crate::process::{LIMIT, wait_for};

const PORT: u16 = 5999;
const STALL: Duration = Duration::from_secs(60);

/// Sends `bytes` bytes of a known pattern over one TCP connection between two network namespaces and compares all of them on
/// arrival. Segments are as large as the sender's stack makes them, so this meets what pings do
/// not: super-packets, checksums left to the hardware, MTU.
///
/// # Errors
/// If the connection fails, stalls, or a byte differs.
pub fn bulk_tcp(from: &str, to: &str, address: Ipv4Addr, bytes: usize) -> Result<()> {
    bulk_tcp_amid(from, to, address, bytes, || Ok(()))
}

/// As [`bulk_tcp`]; when half of it has arrived, the receiver calls `halfway` and then reads on.
///
/// # Errors
/// As [`bulk_tcp`], and those of `halfway`.
pub fn bulk_tcp_amid(
    from: &str,
    to: &str,
    address: Ipv4Addr,
    bytes: usize,
    halfway: impl FnOnce() -> Result<()> + Send,
) -> Result<()> {
    // A child being started by another thread may still hold the last transfer's listener.
    let listener = wait_for("the port to be free", STALL, || {
        let listener = netns::inside(to, || Ok(TcpListener::bind(SocketAddr::from((address, PORT)))?));
        match listener {
            Err(error) if in_use(&error) => Ok(None),
            other => other.map(Some),
        }
    })
    .context("cannot listen at the receiver")?;
    let pattern = pattern();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&listener, &pattern, bytes, halfway));
        let sent = netns::inside(from, || send(address, &pattern, bytes));
        if sent.is_err() {
            // Wakes the receiver if it is still waiting for a connection.
            let _fails_if_connected = netns::inside(to, || Ok(TcpStream::connect((address, PORT))?));
        }
        let received = receiver.join().map_err(|_| anyhow!("the receiver panicked"))?;
        sent.context("sending")?;
        received.context("receiving")
    })
}

fn in_use(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}

fn send(address: Ipv4Addr, pattern: &[u8], bytes: usize) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, PORT)), STALL)?;
    stream.set_write_timeout(Some(STALL))?;
    let mut left = bytes;
    while left > 0 {
        let part = pattern.get(..left).unwrap_or(pattern);
        stream.write_all(part)?;
        left -= part.len();
    }
    Ok(())
}

fn receive(
    listener: &TcpListener,
    pattern: &[u8],
    bytes: usize,
    halfway: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut halfway = Some(halfway);
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(STALL))?;
    let mut buffer = vec![0; pattern.len()];
    let mut received = 0;
    while received < bytes {
        let want = pattern.len().min(bytes - received);
        let (buffer, expected) = (buffer.get_mut(..want), pattern.get(..want));
        let buffer = buffer.context("part larger than the pattern")?;
        stream
            .read_exact(buffer)
            .with_context(|| format!("after {received} bytes"))?;
        ensure!(
            Some(&*buffer) == expected,
            "bytes {received}.. differ from what was sent"
        );
        received += want;
        if received * 2 >= bytes
            && let Some(halfway) = halfway.take()
        {
            halfway()?;
        }
    }
    Ok(())
}

/// One TCP connection that carries numbered messages until it is told to finish.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    gap: Arc<AtomicU64>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<u64>>,
}

impl Stream {
    /// Connects and starts to send, between two network namespaces.
    ///
    /// # Errors
    /// If the connection does not come about.
    pub fn start(from: &str, to: &str, address: Ipv4Addr) -> Result<Self> {
        let end = SocketAddr::from((address, PORT + 1));
        let listener = netns::inside(to, || Ok(TcpListener::bind(end)?))?;
        let mut output = netns::inside(from, || Ok(TcpStream::connect_timeout(&end, STALL)?))?;
        output.set_nodelay(true)?;
        output.set_write_timeout(Some(STALL))?;
        let (mut input, _) = listener.accept()?;
        input.set_read_timeout(Some(STALL))?;
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let gap = Arc::new(AtomicU64::new(0));
        let (told, counted, longest) = (Arc::clone(&stop), Arc::clone(&received), Arc::clone(&gap));
        let sender = std::thread::spawn(move || {
            let mut number = 0u64;
            while !told.load(Ordering::SeqCst) {
                output
                    .write_all(&number.to_be_bytes())
                    .with_context(|| format!("message {number} was not sent"))?;
                number += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(number)
        });
        let receiver = std::thread::spawn(move || {
            let mut message = [0; 8];
            let mut expected = 0u64;
            let mut last = Instant::now();
            loop {
                match input.read_exact(&mut message) {
                    Ok(()) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(expected),
                    Err(error) => {
                        return Err(error).with_context(|| format!("message {expected} did not arrive"));
                    }
                }
                ensure!(
                    u64::from_be_bytes(message) == expected,
                    "another message than {expected} arrived"
                );
                expected += 1;
                let gap = u64::try_from(last.elapsed().as_millis()).unwrap_or(u64::MAX);
                longest.fetch_max(gap, Ordering::SeqCst);
                last = Instant::now();
                counted.store(expected, Ordering::SeqCst);
            }
        });
        Ok(Self {
            stop,
            received,
            gap,
            sender,
            receiver,
        })
    }

    /// Waits until `count` more messages have arrived.
    ///
    /// # Errors
    /// If they do not.
    pub fn wait_more(&self, count: u64) -> Result<()> {
        let goal = self.received.load(Ordering::SeqCst) + count;
        wait_for(&format!("{count} more messages over TCP"), LIMIT, || {
            Ok((self.received.load(Ordering::SeqCst) >= goal).then_some(()))
        })
    }

    /// The longest time between two messages since the last call: what a change of path cost TCP.
    pub fn longest_gap(&self) -> Duration {
        Duration::from_millis(self.gap.swap(0, Ordering::SeqCst))
    }

    /// Ends the connection; all that was sent must have arrived.
    ///
    /// # Errors
    /// If something is missing, or the connection had broken.
    pub fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        let sent = self.sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        let received = self
            .receiver
            .join()
            .map_err(|_| anyhow!("the receiver panicked"))??;
        ensure!(sent == received, "{sent} messages sent, {received} arrived");
        Ok(())
    }
}

/// 1 MiB whose every 8 bytes are different, so that a lost, doubled or swapped segment shows.
fn pattern() -> Vec<u8> {
    (0..131_072u64)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes())
        .collect()
}
