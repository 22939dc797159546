//! Round trips of 64-byte messages over one TCP connection.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

const MESSAGE: usize = 64;
const LIMIT: Duration = Duration::from_secs(10);

/// Round-trip times in microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct RoundTrip {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}

/// Sends every message back, one connection after the other, until killed.
pub fn serve(bind: SocketAddrV4) -> Result<()> {
    let listener = TcpListener::bind(bind)?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        stream.set_nodelay(true)?;
        let mut message = [0; MESSAGE];
        while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {}
    }
    Ok(())
}

/// Exchanges messages for so long and prints [`RoundTrip`] as JSON.
pub fn measure(server: SocketAddrV4, milliseconds: u64) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&server.into(), LIMIT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut message = [0x55; MESSAGE];
    let mut nanoseconds = Vec::with_capacity(1 << 18);
    let end = Instant::now() + Duration::from_millis(milliseconds);
    loop {
        let sent = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        nanoseconds.push(u64::try_from(sent.elapsed().as_nanos())?);
        if sent > end {
            break;
        }
    }
    // The first ones open the window and warm the caches.
    nanoseconds.drain(..nanoseconds.len().min(1000) / 2);
    nanoseconds.sort_unstable();
    let at = |percent: usize| -> Result<f64> {
        let index = (nanoseconds.len() * percent / 100).min(nanoseconds.len() - 1);
        Ok(*nanoseconds.get(index).context("no round trip")? as f64 / 1000.0)
    };
    println!(
        "{}",
        serde_json::to_string(&RoundTrip {
            p50: at(50)?,
            p99: at(99)?
        })?
    );
    Ok(())
}
