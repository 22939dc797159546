//! The highest rate of 64-byte UDP packets that arrives with less than 1 % lost.
//!
//! The sender offers a rate, the receiver counts; what counts is what arrived. A TCP connection
//! beside the packets starts and ends each trial.

use std::io::{self, Read, Write};
use std::mem::zeroed;
use std::net::{SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

const PAYLOAD: usize = 64;
const BATCH: usize = 16;
const LOSS: f64 = 0.01;
/// Trials after the first, which offers all the sender has.
const TRIALS: usize = 8;
const LIMIT: Duration = Duration::from_secs(10);

/// The result of the search.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Udp {
    /// Packets per second that arrived, at the highest rate with less than 1 % lost.
    pub delivered: f64,
    /// Packets per second that the sender can offer at most.
    pub offered: f64,
}

/// Counts packets until killed. Answers each byte on the TCP connection with the count so far,
/// once no more packets come.
pub fn receive(bind: SocketAddrV4) -> Result<()> {
    let socket = UdpSocket::bind(bind)?;
    let size: libc::c_int = 4 << 20;
    // SAFETY: passes a valid int and its size; a refusal leaves the default, which only lowers the result.
    unsafe {
        let (pointer, length) = ((&raw const size).cast(), size_of_val(&size) as u32);
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            pointer,
            length,
        );
    }
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut buffers = [[0u8; PAYLOAD]; BATCH];
        loop {
            match batch(&socket, &mut buffers, Direction::Receive) {
                Ok(received) => counted.fetch_add(received, Ordering::Relaxed),
                Err(_) => return,
            };
        }
    });
    let listener = TcpListener::bind(bind)?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut request = [0];
        while stream.read_exact(&mut request).is_ok() {
            let mut seen = count.load(Ordering::Relaxed);
            loop {
                std::thread::sleep(Duration::from_millis(20));
                let now = count.load(Ordering::Relaxed);
                if now == seen {
                    break;
                }
                seen = now;
            }
            if stream.write_all(&seen.to_be_bytes()).is_err() {
                break;
            }
        }
    }
    Ok(())
}

/// Searches with trials of so long and prints [`Udp`] as JSON.
pub fn search(receiver: SocketAddrV4, milliseconds: u64) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(receiver)?;
    let mut control = TcpStream::connect_timeout(&receiver.into(), LIMIT)?;
    control.set_read_timeout(Some(LIMIT))?;
    let mut trial = |rate: f64| -> Result<(f64, f64, f64)> {
        let before = arrived(&mut control)?;
        let (sent, seconds) = offer(&socket, rate, Duration::from_millis(milliseconds))?;
        let received = arrived(&mut control)? - before;
        ensure!(received <= sent, "{received} packets arrived of {sent} sent");
        let (sent, received) = (sent as f64, received as f64);
        Ok((sent / seconds, received / seconds, 1.0 - received / sent))
    };
    let (offered, mut delivered, loss) = trial(f64::INFINITY)?;
    if loss >= LOSS {
        delivered = 0.0;
        let (mut good, mut bad) = (0.0, offered);
        for _ in 0..TRIALS {
            let rate = f64::midpoint(good, bad);
            let (_, mut arrived, mut loss) = trial(rate)?;
            if loss >= LOSS {
                // Something else may have run for a moment: a second chance.
                (_, arrived, loss) = trial(rate)?;
            }
            if loss < LOSS {
                good = rate;
                delivered = f64::max(delivered, arrived);
            } else {
                bad = rate;
            }
        }
    }
    println!("{}", serde_json::to_string(&Udp { delivered, offered })?);
    Ok(())
}

fn arrived(control: &mut TcpStream) -> Result<u64> {
    control.write_all(&[0])?;
    let mut count = [0; 8];
    control
        .read_exact(&mut count)
        .context("the receiver does not answer")?;
    Ok(u64::from_be_bytes(count))
}

/// Sends at `rate` packets a second for `time`; how many were sent, in how many seconds.
fn offer(socket: &UdpSocket, rate: f64, time: Duration) -> Result<(u64, f64)> {
    let mut buffers = [[0u8; PAYLOAD]; BATCH];
    let mut sent = 0;
    let start = Instant::now();
    loop {
        let elapsed = start.elapsed();
        if elapsed >= time {
            return Ok((sent, elapsed.as_secs_f64()));
        }
        // Behind the rate (or without one): send; ahead of it: spin, as sleeping is too coarse.
        if sent as f64 <= rate * elapsed.as_secs_f64() {
            sent += batch(socket, &mut buffers, Direction::Send)?;
        }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Send,
    Receive,
}

/// Sends or receives up to [`BATCH`] packets in one system call; how many it were.
fn batch(socket: &UdpSocket, buffers: &mut [[u8; PAYLOAD]; BATCH], direction: Direction) -> io::Result<u64> {
    // SAFETY: all-zero is a valid value of both: null pointers, no address, no control data.
    let (mut parts, mut messages) = unsafe {
        (
            zeroed::<[libc::iovec; BATCH]>(),
            zeroed::<[libc::mmsghdr; BATCH]>(),
        )
    };
    for ((part, message), buffer) in parts.iter_mut().zip(&mut messages).zip(buffers) {
        *part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: PAYLOAD,
        };
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
    }
    let (fd, list) = (socket.as_raw_fd(), messages.as_mut_ptr());
    // SAFETY: `list` has BATCH headers, each with one part that points to a live buffer of its size.
    let done = unsafe {
        match direction {
            Direction::Send => libc::sendmmsg(fd, list, BATCH as u32, 0),
            Direction::Receive => {
                libc::recvmmsg(fd, list, BATCH as u32, libc::MSG_WAITFORONE, std::ptr::null_mut())
            }
        }
    };
    u64::try_from(done).map_err(|_| io::Error::last_os_error())
}
