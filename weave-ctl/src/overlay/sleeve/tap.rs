//! The TAP through which containers' frames come and go: several queues, with super-packets and
//! unfinished checksums both ways.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// The largest MTU of a TAP: larger than any container's, as the frames carry more in front.
const MTU: u16 = 65521;
/// Packets that wait in the kernel for each queue.
const QUEUE: u32 = 1000;

/// One queue of the TAP. The interface goes with the last one.
pub struct Tap(SyncDevice);

impl Tap {
    /// Makes the interface, up and silent, in the current network namespace, and opens its queues.
    pub fn open(name: &str, queues: usize) -> io::Result<Vec<Self>> {
        let first = DeviceBuilder::new()
            .name(name)
            .layer(Layer::L2)
            .mtu(MTU)
            .with(|builder| {
                builder
                    .packet_information(false)
                    .offload(true)
                    .multi_queue(true)
                    .tx_queue_len(QUEUE);
            })
            .enable(false)
            .build_sync()?;
        // The kernel would announce itself through it otherwise. Without IPv6 there is nothing to do.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/addr_gen_mode"), "1");
        first.enabled(true)?;
        let mut all = vec![first];
        while let Some(first) = all.first().filter(|_| all.len() < queues) {
            let next = first.try_clone()?;
            all.push(next);
        }
        for queue in &all {
            queue.set_nonblocking(true)?;
        }
        Ok(all.into_iter().map(Self).collect())
    }

    /// Index of the interface.
    pub fn ifindex(&self) -> io::Result<u32> {
        self.0.if_index()
    }

    /// Reads one frame with its header.
    pub fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        self.0.recv(into)
    }

    /// Writes one frame with its header.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.0.send_vectored(parts).map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the device keeps its descriptor open as long as it lives.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
