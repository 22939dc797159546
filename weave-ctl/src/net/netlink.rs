//! One netlink connection into one network namespace.

use std::io;
use std::sync::Arc;

use futures_util::StreamExt;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::Handle;
use std::os::fd::{AsFd, AsRawFd};
use tokio::runtime;
use tokio::sync::Mutex;

use super::{NetError, Netns};

/// Set in the header of a dump that the kernel could not finish consistently.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// How often an interrupted dump is begun again before its answer is taken as it is.
const DUMP_ATTEMPTS: usize = 5;

/// What is asked of the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// One object; answered with it.
    Get,
    /// All objects that match.
    Dump,
    /// Something new; it must not exist yet.
    Create,
    /// Change or removal of something that exists.
    Change,
}

/// A netlink connection bound to a namespace. Cheap to clone; the connection ends with the last
/// clone.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
    ns: Netns,
    /// The kernel serves one dump of a socket at a time, and refuses others with EBUSY.
    dumping: Arc<Mutex<()>>,
}

impl Netlink {
    /// Into the namespace of the calling thread. Needs a running tokio runtime, as all of this.
    pub async fn current() -> Result<Self, NetError> {
        Self::open(&Netns::current()?).await
    }

    /// Into `ns`.
    pub async fn open(ns: &Netns) -> Result<Self, NetError> {
        let runtime = runtime::Handle::current();
        let socket = move || {
            // A netlink socket belongs for ever to the namespace of the thread that made it.
            let _guard = runtime.enter();
            // Without the strict check the kernel ignores filters of a dump.
            rtnetlink::new_connection_with_strict_check()
        };
        let opened = if Netns::current()?.id() == ns.id() {
            socket()
        } else {
            ns.run(socket).await?
        };
        let (connection, handle, _) = opened.map_err(|e| NetError::kernel("open a netlink socket", e))?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            ns: ns.clone(),
            dumping: Arc::default(),
        })
    }

    /// The namespace it belongs to.
    #[must_use]
    pub fn ns(&self) -> &Netns {
        &self.ns
    }

    /// Sends one request and collects the answer. `action` is for the error: "cannot ACTION: why".
    pub(crate) async fn ask(
        &self,
        action: &str,
        ask: Ask,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetError> {
        let flags = NLM_F_REQUEST
            | match ask {
                Ask::Get => 0,
                Ask::Dump => NLM_F_DUMP,
                Ask::Create => NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
                Ask::Change => NLM_F_ACK,
            };
        let _turn = match ask {
            Ask::Dump => Some(self.dumping.lock().await),
            _ => None,
        };
        let mut attempt = 1;
        loop {
            let mut request = NetlinkMessage::from(message.clone());
            request.header.flags = flags;
            let (answers, interrupted) = self.exchange(action, request).await?;
            if !interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(answers);
            }
            attempt += 1;
        }
    }

    async fn exchange(
        &self,
        action: &str,
        request: NetlinkMessage<RouteNetlinkMessage>,
    ) -> Result<(Vec<RouteNetlinkMessage>, bool), NetError> {
        let closed = || NetError::kernel(action, io::Error::other("the netlink connection is closed"));
        let mut handle = self.handle.clone();
        let mut stream = handle.request(request).map_err(|_| closed())?;
        let (mut answers, mut interrupted) = (Vec::new(), false);
        while let Some(message) = stream.next().await {
            interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                NetlinkPayload::Error(error) if error.raw_code() != 0 => {
                    let source = io::Error::from_raw_os_error(error.raw_code().saturating_abs());
                    return Err(NetError::kernel(action, source));
                }
                _ => {}
            }
        }
        Ok((answers, interrupted))
    }

    /// The number by which this namespace knows `other`; `None` if it has no link to it.
    pub async fn nsid_of(&self, other: &Netns) -> Result<Option<i32>, NetError> {
        let fd = u32::try_from(other.as_fd().as_raw_fd()).unwrap_or_default();
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(fd));
        let answers = self
            .ask(
                "look up a network namespace",
                Ask::Get,
                RouteNetlinkMessage::GetNsId(message),
            )
            .await?;
        Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNsId(found) => found.attributes.into_iter().find_map(|a| match a {
                NsidAttribute::Id(id) if id >= 0 => Some(id),
                _ => None,
            }),
            _ => None,
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures_util::future::join_all;

    use crate::net::testing::{ip, new_host};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn several_may_ask_for_everything_at_once() {
        let Some(nl) = new_host().await else { return };
        // More than fits into one datagram, so that the answers overlap.
        for n in 0..60 {
            ip(nl.ns(), &format!("link add b{n} type bridge")).await;
        }
        let asking = (0..8).map(|_| {
            let nl = nl.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    assert_eq!(nl.links().await.unwrap().len(), 61, "the loopback device, too");
                }
            })
        });
        for asked in join_all(asking.collect::<Vec<_>>()).await {
            asked.unwrap();
        }
    }
}
