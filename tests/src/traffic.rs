//! Traffic with contents that are checked on arrival.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::netns;

const PORT: u16 = 5999;
const STALL: Duration = Duration::from_secs(30);

/// Sends `bytes` bytes of a known pattern over one TCP connection between two network namespaces and compares all of them on
/// arrival. Segments are as large as the sender's stack makes them, so this meets what pings do
/// not: super-packets, checksums left to the hardware, MTU.
///
/// # Errors
/// If the connection fails, stalls, or a byte differs.
pub fn bulk_tcp(from: &str, to: &str, address: Ipv4Addr, bytes: usize) -> Result<()> {
    let listener = netns::inside(to, || Ok(TcpListener::bind(SocketAddr::from((address, PORT)))?))
        .context("cannot listen at the receiver")?;
    let pattern = pattern();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&listener, &pattern, bytes));
        let sent = netns::inside(from, || send(address, &pattern, bytes));
        if sent.is_err() {
            // Wakes the receiver if it is still waiting for a connection.
            let _fails_if_connected = netns::inside(to, || Ok(TcpStream::connect((address, PORT))?));
        }
        let received = receiver
            .join()
            .map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
        sent.context("sending")?;
        received.context("receiving")
    })
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

fn receive(listener: &TcpListener, pattern: &[u8], bytes: usize) -> Result<()> {
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
    }
    Ok(())
}

/// 1 MiB whose every 8 bytes are different, so that a lost, doubled or swapped segment shows.
fn pattern() -> Vec<u8> {
    (0..131_072u64)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes())
        .collect()
}
