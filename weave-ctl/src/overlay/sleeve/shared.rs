//! What a thread of the engine has at hand, besides its own buffers.

use std::sync::Arc;
use std::time::Instant;

use super::counters::Cells;
use super::socket::Socket;
use super::{Arrived, FrameSource};
use crate::mesh::name::PeerName;
use crate::mesh::{ConnId, Now};

/// Whom the threads tell of special frames and path MTUs.
pub type Events = Arc<dyn Fn(ConnId, Arrived) + Send + Sync>;

/// The sockets of one worker.
pub struct Sockets {
    /// Packets are never fragmented.
    pub df: Socket,
    /// The kernel may fragment them.
    pub fragmenting: Socket,
    /// For sending VXLAN.
    pub vxlan: Socket,
}

/// Of one thread.
pub struct Common {
    /// Our name.
    pub own: PeerName,
    /// Who decides where frames go.
    pub source: FrameSource,
    /// Of the thread's worker.
    pub sockets: Arc<Sockets>,
    /// Of this thread alone.
    pub cells: Arc<Cells>,
    /// To the loop.
    pub events: Events,
    /// When the engine started.
    pub start: Instant,
}

impl Common {
    /// The socket of a path.
    #[must_use]
    pub fn socket(&self, df: bool) -> &Socket {
        if df {
            &self.sockets.df
        } else {
            &self.sockets.fragmenting
        }
    }

    /// Time since the engine's start.
    #[must_use]
    pub fn now(&self) -> Now {
        self.start.elapsed()
    }
}
