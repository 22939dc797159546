//! What the daemon's loop is told by everything around it.

use std::net::SocketAddr;

use tokio::sync::{mpsc, oneshot};

use crate::api::backend::{BackendError, Detail, OwnedList};
use crate::api::report::Report;
use crate::dns::entry::{Id, State};
use crate::dns::names::Filter;
use crate::docker::attachment::Attachment;
use crate::docker::events::ContainerEvent;
use crate::ipam::address::{Address, Cidr};
use crate::ipam::adopt::Adopted;
use crate::ipam::operations::RequestId;
use crate::mesh::ConnId;
use crate::mesh::handshake::Features;
use crate::mesh::message::Message;
use crate::mesh::targets::ResolvedPeer;
use crate::mesh::transport::Connected;
use crate::net::expose::Exposed;
use crate::overlay::sleeve::Arrived;

/// Events waiting for the loop at most; senders wait beyond that.
const DEPTH: usize = 1024;

/// Something happened.
pub enum Event {
    /// A handshake is done.
    Introduced {
        /// Target, if we dialled.
        dialled: Option<SocketAddr>,
        /// The connection.
        connected: Box<Connected>,
        /// Theirs.
        features: Box<Features>,
        /// Ours.
        our_conn_id: u64,
    },
    /// A direct peer's name leads to another address now.
    Moved(ResolvedPeer),
    /// Nothing came of dialling.
    DialFailed {
        /// Whom.
        target: SocketAddr,
        /// Why.
        error: String,
        /// TCP was connected.
        connected: bool,
    },
    /// Nothing came of accepting.
    AcceptFailed {
        /// Whom.
        remote: SocketAddr,
        /// Why.
        error: String,
    },
    /// A message was read.
    Received {
        /// Where.
        conn: ConnId,
        /// What.
        message: Message,
    },
    /// The connection broke.
    Closed {
        /// Which.
        conn: ConnId,
        /// Why.
        error: String,
    },
    /// A message was written; there is room for another.
    WriterFree {
        /// Where.
        conn: ConnId,
    },
    /// Something of an overlay came on sleeve.
    Sleeve {
        /// On which connection.
        conn: ConnId,
        /// What.
        arrived: Arrived,
    },
    /// Somebody asks through the API.
    Request(Request),
    /// Containers found attached at start, with their addresses.
    Found(Vec<(String, Vec<Cidr>)>),
    /// Docker tells of its containers.
    Container(ContainerEvent),
}

/// Where an answer goes.
pub type Answer<T> = oneshot::Sender<Result<T, BackendError>>;

/// What the API asks.
pub enum Request {
    /// Allocate an address.
    Allocate {
        /// Number, for cancelling.
        request: RequestId,
        /// Owner.
        id: String,
        /// In the default subnet if absent.
        subnet: Option<Cidr>,
        /// Release it when the container dies.
        is_container: bool,
        /// Where to answer.
        answer: Answer<Cidr>,
    },
    /// Claim an address.
    Claim {
        /// Number, for cancelling.
        request: RequestId,
        /// Owner.
        id: String,
        /// The address.
        cidr: Cidr,
        /// As for `Allocate`.
        is_container: bool,
        /// Succeed if it cannot be told whose it is.
        no_error_on_unknown: bool,
        /// Where to answer.
        answer: Answer<()>,
    },
    /// Wait for a ring.
    Prime {
        /// Number, for cancelling.
        request: RequestId,
        /// Where to answer.
        answer: Answer<()>,
    },
    /// Take the other side's ring in a conflict.
    Adopt {
        /// Number, for cancelling.
        request: RequestId,
        /// Name or nickname; the only other side if absent.
        peer: Option<String>,
        /// Where to answer.
        answer: Answer<Adopted>,
    },
    /// The client has gone away.
    Cancel(RequestId),
    /// What an owner has.
    Lookup(String, Option<Cidr>, Answer<Vec<Cidr>>),
    /// All owners.
    Owned(Answer<OwnedList>),
    /// Release one address.
    Free(String, Address, Answer<()>),
    /// Release all of an owner's.
    FreeAll(String, Answer<()>),
    /// Add direct peers.
    Connect(Vec<ResolvedPeer>, bool, Answer<()>),
    /// Remove direct peers.
    Forget(Vec<String>, Answer<()>),
    /// Give our address space away.
    Depart(Answer<()>),
    /// Take another's address space.
    RemovePeer {
        /// Number, for cancelling.
        request: RequestId,
        /// Its name or nickname.
        peer: String,
        /// Also if it is still there.
        force: bool,
        /// Where to answer; `None` without IPAM.
        answer: Answer<Option<u32>>,
    },
    /// Keep what is exposed over a restart.
    SaveExposed(Vec<Exposed>, Answer<()>),
    /// Keep how a container was attached, or forget it.
    SaveAttachment(String, Option<Box<Attachment>>, Answer<()>),
    /// Register a name.
    AddName {
        /// Container ID.
        id: String,
        /// One address of it.
        addr: Address,
        /// The name.
        name: String,
        /// Where to answer.
        answer: Answer<()>,
    },
    /// Delete names registered here.
    RemoveNames(Filter, Answer<()>),
    /// All names.
    Names(Answer<Vec<(Id, State)>>),
    /// Everything about us.
    Report(Detail, Answer<Box<Report>>),
}

/// The way to the loop.
#[derive(Clone)]
pub struct Events(mpsc::Sender<Event>);

impl Events {
    /// A new way, and its end.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(DEPTH);
        (Self(sender), receiver)
    }

    /// Tells the loop; waits while it is busy. After its end nobody cares.
    pub async fn send(&self, event: Event) {
        let _ = self.0.send(event).await;
    }

    /// Tells the loop unless it is busy: for what is sent again anyway.
    pub fn offer(&self, event: Event) {
        let _ = self.0.try_send(event);
    }

    /// Tells the loop later, from where waiting is impossible.
    pub fn send_later(&self, event: Event) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.0.try_send(event)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let events = self.clone();
            runtime.spawn(async move { events.send(event).await });
        }
    }
}
