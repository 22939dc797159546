//! A bad network: loss, reordering and duplicates on the way between one host and the others.
//!
//! ```text
//!   h1 eth0 ──veth── pN   [relay]   in ──veth── out ── bridge ── the other hosts
//! ```
//! netem is not in every kernel, so threads of this process carry the frames between packet sockets.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::lab::firewall::like_a_wire;
use crate::lab::{Host, Lab, netns};
use crate::packets::open;
use crate::random::Random;

/// What happens to frames, each independently, in per cent. Counted on each of the two ways.
#[derive(Debug, Clone, Copy, Default)]
pub struct Impairments {
    /// Are dropped.
    pub loss: u64,
    /// Come after some that were sent later.
    pub reorder: u64,
    /// Come twice.
    pub duplicate: u64,
    /// The same seed and frames, the same fates.
    pub seed: u64,
}

/// How many frames met which fate.
#[derive(Debug, Default)]
struct Counters {
    passed: AtomicU64,
    lost: AtomicU64,
    reordered: AtomicU64,
    duplicated: AtomicU64,
}

/// Frames of both ways together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Sent on, each once.
    pub passed: u64,
    /// Dropped on purpose.
    pub lost: u64,
    /// Held back on purpose.
    pub reordered: u64,
    /// Sent twice on purpose.
    pub duplicated: u64,
}

/// The bad network around one host; the good one is back when this is dropped.
#[derive(Debug)]
pub struct Relay {
    netns: String,
    port: String,
    bridge: String,
    inner: String,
    stop: Arc<AtomicBool>,
    counters: Arc<Counters>,
    threads: Vec<JoinHandle<()>>,
}

/// A held frame goes on after this many others …
const HOLD_FRAMES: u64 = 4;
/// … or after this long.
const HOLD_TIME: Duration = Duration::from_millis(5);
const BATCH: usize = 64;
const FRAME: usize = 10_000;

impl Relay {
    /// Puts it between `host` and its (first) segment.
    ///
    /// # Errors
    /// If devices or sockets cannot be made.
    pub fn start(lab: &Lab, host: &Host, impairments: Impairments) -> Result<Self> {
        let netns = lab.underlay();
        let port = host.ports().next().context("a host without a link")?;
        let segment = port.rsplit('-').next().context("an odd port name")?;
        let (bridge, inner, outer) = (format!("s{segment}"), format!("in-{port}"), format!("out-{port}"));
        #[rustfmt::skip]
        let steps: [&[&str]; 4] = [
            &["link", "add", &inner, "mtu", "9000", "type", "veth", "peer", "name", &outer, "mtu", "9000"],
            &["link", "set", &outer, "master", &bridge, "up"],
            &["link", "set", &inner, "up"],
            &["link", "set", &port, "nomaster"],
        ];
        // From here on, dropping it restores what there was.
        let mut relay = Self {
            netns,
            port: port.clone(),
            bridge: bridge.clone(),
            inner: inner.clone(),
            stop: Arc::new(AtomicBool::new(false)),
            counters: Arc::new(Counters::default()),
            threads: Vec::new(),
        };
        for step in steps {
            relay.ip(step)?;
        }
        // Packet sockets must see what would be on a wire.
        like_a_wire(&relay.netns, &outer)?;
        for device in host.devices() {
            like_a_wire(host.netns(), &device)?;
        }
        let (near, far) = netns::inside(&relay.netns, || Ok((open(&port)?, open(&inner)?)))
            .context("cannot open packet sockets")?;
        let (near, far) = (Arc::new(near), Arc::new(far));
        for (from, to, salt) in [(&near, &far, 1), (&far, &near, 2)] {
            let mut way = Way {
                from: Arc::clone(from),
                to: Arc::clone(to),
                impairments,
                random: Random::new(impairments.seed.wrapping_mul(2) + salt),
                held: VecDeque::new(),
                seen: 0,
                counters: Arc::clone(&relay.counters),
            };
            let stop = Arc::clone(&relay.stop);
            relay.threads.push(std::thread::spawn(move || way.run(&stop)));
        }
        Ok(relay)
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            passed: read(&self.counters.passed),
            lost: read(&self.counters.lost),
            reordered: read(&self.counters.reordered),
            duplicated: read(&self.counters.duplicated),
        }
    }

    fn ip(&self, args: &[&str]) -> Result<()> {
        let mut all = vec!["-n", &self.netns];
        all.extend(args);
        netns::ip(&all).map(drop)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _its_sockets_are_gone = thread.join();
        }
        // All of it fails if the lab is gone already.
        let _was_there = self.ip(&["link", "del", &self.inner]);
        let _was_there = self.ip(&["link", "set", &self.port, "master", &self.bridge]);
    }
}

struct Held {
    frame: Vec<u8>,
    /// Goes on when so many frames have been seen.
    after: u64,
    until: Instant,
}

/// One direction.
struct Way {
    from: Arc<OwnedFd>,
    to: Arc<OwnedFd>,
    impairments: Impairments,
    random: Random,
    held: VecDeque<Held>,
    seen: u64,
    counters: Arc<Counters>,
}

impl Way {
    fn run(&mut self, stop: &AtomicBool) {
        let mut buffers = vec![[0u8; FRAME]; BATCH];
        let mut lengths = [0usize; BATCH];
        while !stop.load(Ordering::Relaxed) {
            let count = match receive(&self.from, &mut buffers, &mut lengths) {
                Ok(count) => count,
                // The link is down, or the lab is being removed.
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(10));
                    0
                }
            };
            let mut out: Vec<Cow<'_, [u8]>> = Vec::with_capacity(2 * BATCH);
            for (buffer, length) in buffers.iter().zip(lengths).take(count) {
                self.meet_fate(buffer.get(..length).unwrap_or_default(), &mut out);
            }
            let now = Instant::now();
            self.release(&mut out, |held| held.until <= now);
            send(&self.to, &out);
        }
    }

    fn meet_fate<'a>(&mut self, frame: &'a [u8], out: &mut Vec<Cow<'a, [u8]>>) {
        self.seen += 1;
        if self.random.chance(self.impairments.loss) {
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
        } else if self.random.chance(self.impairments.reorder) {
            self.counters.reordered.fetch_add(1, Ordering::Relaxed);
            self.held.push_back(Held {
                frame: frame.to_vec(),
                after: self.seen + HOLD_FRAMES,
                until: Instant::now() + HOLD_TIME,
            });
        } else {
            self.counters.passed.fetch_add(1, Ordering::Relaxed);
            out.push(Cow::Borrowed(frame));
            if self.random.chance(self.impairments.duplicate) {
                self.counters.duplicated.fetch_add(1, Ordering::Relaxed);
                out.push(Cow::Borrowed(frame));
            }
        }
        let seen = self.seen;
        self.release(out, |held| held.after <= seen);
    }

    fn release(&mut self, out: &mut Vec<Cow<'_, [u8]>>, due: impl Fn(&Held) -> bool) {
        while let Some(held) = self.held.pop_front_if(|held| due(held)) {
            self.counters.passed.fetch_add(1, Ordering::Relaxed);
            out.push(Cow::Owned(held.frame));
        }
    }
}

/// Receives frames in one system call; waits for the first one at most [`HOLD_TIME`].
fn receive(socket: &OwnedFd, buffers: &mut [[u8; FRAME]], lengths: &mut [usize; BATCH]) -> io::Result<usize> {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: passes one valid pollfd.
    if unsafe { libc::poll(&raw mut poll, 1, HOLD_TIME.as_millis() as libc::c_int) } <= 0 {
        return Ok(0);
    }
    // SAFETY: all-zero is a valid value of both: null pointers, no address, no control data.
    let (mut parts, mut messages) = unsafe {
        (
            zeroed::<[libc::iovec; BATCH]>(),
            zeroed::<[libc::mmsghdr; BATCH]>(),
        )
    };
    for ((part, message), buffer) in parts.iter_mut().zip(&mut messages).zip(buffers) {
        part.iov_base = buffer.as_mut_ptr().cast();
        part.iov_len = FRAME;
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: each of the BATCH headers has one part that points to a live buffer of its size.
    let count = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            BATCH as u32,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    for (length, message) in lengths.iter_mut().zip(&messages).take(count) {
        *length = message.msg_len as usize;
    }
    Ok(count)
}

/// Sends frames in few system calls. What does not go is lost, as on a full link.
fn send(socket: &OwnedFd, frames: &[Cow<'_, [u8]>]) {
    for frames in frames.chunks(BATCH) {
        // SAFETY: as in `receive`.
        let (mut parts, mut messages) = unsafe {
            (
                zeroed::<[libc::iovec; BATCH]>(),
                zeroed::<[libc::mmsghdr; BATCH]>(),
            )
        };
        for ((part, message), frame) in parts.iter_mut().zip(&mut messages).zip(frames) {
            // sendmmsg only reads through this pointer.
            part.iov_base = frame.as_ptr().cast_mut().cast();
            part.iov_len = frame.len();
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
        }
        let mut messages = messages.get_mut(..frames.len()).unwrap_or_default();
        while !messages.is_empty() {
            let count = messages.len() as u32;
            // SAFETY: `messages` has `count` headers, each with one part that points to a live frame.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
            // An error is about the first one: go on behind it.
            let done = usize::try_from(sent).unwrap_or(0).max(1);
            messages = messages.get_mut(done..).unwrap_or_default();
        }
    }
}
