//! The daemon as the HTTP API sees it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use super::attachments::Attachments;
use super::event::{Answer, Event, Events, Request};
use super::exposure::Exposure;
use super::proxy::Addresses;
use super::requests::is_docker_id;
use crate::api::backend::{Backend, BackendError, Detail, DnsFacts, OwnedList};
use crate::api::report::{Proxy, Report};
use crate::dns::entry::{Id, State};
use crate::dns::names::Filter;
use crate::dns::server;
use crate::docker;
use crate::docker::attachment::Attachment;
use crate::ipam::address::{Address, Cidr};
use crate::ipam::adopt::Adopted;
use crate::ipam::operations::RequestId;
use crate::mesh::targets::ResolvedPeer;
use crate::net::expose::Exposed;

/// For a name that was found before.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How often we look whether a container that waits for an address still lives.
const LIFE_CHECK: Duration = Duration::from_secs(5);

/// A way to ask the daemon's loop. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    events: Events,
    default_subnet: Option<Cidr>,
    port: u16,
    next_request: Arc<AtomicU64>,
    ready: Arc<AtomicBool>,
    docker: Option<Arc<str>>,
    exposure: Exposure,
    attachments: Attachments,
    dns: Option<Arc<NameService>>,
    proxy: Addresses,
}

/// WeaveDNS, as far as it does not change.
struct NameService {
    domain: String,
    server: Option<server::Handle>,
}

/// Cancels a request whose client went away.
struct CancelOnDrop<'a> {
    events: &'a Events,
    request: RequestId,
    armed: bool,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.events
                .send_later(Event::Request(Request::Cancel(self.request)));
        }
    }
}

impl Handle {
    /// `default_subnet` is `None` without IPAM; `port` is taken for peers given without one.
    #[must_use]
    pub fn new(
        events: Events,
        default_subnet: Option<Cidr>,
        port: u16,
        ready: Arc<AtomicBool>,
        exposure: Exposure,
        attachments: Attachments,
    ) -> Self {
        Self {
            events,
            default_subnet,
            port,
            next_request: Arc::new(AtomicU64::new(1)),
            ready,
            docker: None,
            exposure,
            attachments,
            dns: None,
            proxy: Addresses::default(),
        }
    }

    /// Docker's endpoint, for requests that ask whether the container lives (control.md 1.10); empty: none.
    #[must_use]
    pub fn with_docker(self, host: &str) -> Self {
        let docker = (!host.is_empty()).then(|| host.into());
        Self { docker, ..self }
    }

    /// WeaveDNS with its local domain, if it is on.
    #[must_use]
    pub fn with_dns(self, domain: Option<String>, server: Option<server::Handle>) -> Self {
        let dns = domain.map(|domain| Arc::new(NameService { domain, server }));
        Self { dns, ..self }
    }

    /// Where the Docker API proxy listens.
    #[must_use]
    pub fn with_proxy(self, proxy: Addresses) -> Self {
        Self { proxy, ..self }
    }

    /// A container that is gone gets no address.
    async fn must_live(&self, id: &str, check: bool) -> Result<(), BackendError> {
        match &self.docker {
            Some(host) if check && docker::is_gone(host, id).await => Err(BackendError::Cancelled),
            _ => Ok(()),
        }
    }

    /// Waits for a request of a container as long as that lives: its end may be told before the request arrives.
    async fn while_it_lives<T>(
        &self,
        id: &str,
        check: bool,
        asked: impl Future<Output = Result<T, BackendError>>,
    ) -> Result<T, BackendError> {
        self.must_live(id, check).await?;
        let mut asked = std::pin::pin!(asked);
        loop {
            if let Ok(answer) = tokio::time::timeout(LIFE_CHECK, &mut asked).await {
                return answer;
            }
            self.must_live(id, check).await?;
        }
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, BackendError> {
        let (answer, result) = oneshot::channel();
        self.events.send(Event::Request(request(answer))).await;
        result.await.unwrap_or(Err(BackendError::Stopping))
    }

    /// For requests that may wait long: given up when the client goes away.
    async fn ask_patiently<T>(
        &self,
        request: impl FnOnce(RequestId, Answer<T>) -> Request,
    ) -> Result<T, BackendError> {
        let number = self.next_request.fetch_add(1, Ordering::Relaxed);
        let mut guard = CancelOnDrop {
            events: &self.events,
            request: number,
            armed: true,
        };
        let result = self.ask(|answer| request(number, answer)).await;
        guard.armed = false;
        result
    }
}

impl Backend for Handle {
    fn ipam_enabled(&self) -> bool {
        self.default_subnet.is_some()
    }

    async fn allocate(
        &self,
        id: String,
        subnet: Option<Cidr>,
        check_alive: bool,
    ) -> Result<Cidr, BackendError> {
        let asked = self.ask_patiently(|request, answer| Request::Allocate {
            request,
            id: id.clone(),
            subnet,
            is_container: check_alive,
            answer,
        });
        self.while_it_lives(&id, check_alive, asked).await
    }

    async fn claim(
        &self,
        id: String,
        cidr: Cidr,
        check_alive: bool,
        no_error_on_unknown: bool,
    ) -> Result<(), BackendError> {
        let asked = self.ask_patiently(|request, answer| Request::Claim {
            request,
            id: id.clone(),
            cidr,
            is_container: check_alive,
            no_error_on_unknown,
            answer,
        });
        self.while_it_lives(&id, check_alive, asked).await
    }

    async fn lookup(&self, id: String, subnet: Option<Cidr>) -> Result<Vec<Cidr>, BackendError> {
        self.ask(|answer| Request::Lookup(id, subnet, answer)).await
    }

    async fn owned(&self) -> Result<OwnedList, BackendError> {
        self.ask(Request::Owned).await
    }

    async fn free(&self, id: String, addr: Address) -> Result<(), BackendError> {
        self.ask(|answer| Request::Free(id, addr, answer)).await
    }

    async fn free_all(&self, id: String) -> Result<(), BackendError> {
        self.ask(|answer| Request::FreeAll(id, answer)).await
    }

    async fn prime(&self) -> Result<(), BackendError> {
        self.ask_patiently(|request, answer| Request::Prime { request, answer })
            .await
    }

    async fn adopt(&self, peer: Option<String>) -> Result<Adopted, BackendError> {
        self.ask_patiently(|request, answer| Request::Adopt {
            request,
            peer,
            answer,
        })
        .await
    }

    fn default_subnet(&self) -> Option<Cidr> {
        self.default_subnet
    }

    fn dns(&self) -> Option<DnsFacts> {
        self.dns.as_ref().map(|dns| DnsFacts {
            domain: dns.domain.clone(),
            address: dns.server.as_ref().map(|server| server.address().into()),
        })
    }

    async fn add_name(
        &self,
        id: String,
        addr: Address,
        name: String,
        check_alive: bool,
    ) -> Result<(), BackendError> {
        let added = (id.clone(), name.clone());
        self.ask(|answer| Request::AddName {
            id,
            addr,
            name,
            answer,
        })
        .await?;
        let (id, name) = added;
        // Afterwards, as its end may have been told before we had the name.
        if self.must_live(&id, check_alive).await.is_err() {
            let filter = Filter {
                container: Some(id),
                addr: Some(addr),
                name: Some(name),
            };
            self.remove_names(filter).await?;
        }
        Ok(())
    }

    async fn remove_names(&self, filter: Filter) -> Result<(), BackendError> {
        self.ask(|answer| Request::RemoveNames(filter, answer)).await
    }

    async fn names(&self) -> Result<Vec<(Id, State)>, BackendError> {
        self.ask(Request::Names).await
    }

    async fn connect(&self, peers: Vec<String>, replace: bool) -> Result<(), BackendError> {
        let (good, bad) = resolve_all(&peers, self.port).await;
        self.ask(|answer| Request::Connect(good, replace, answer)).await?;
        if bad.is_empty() {
            Ok(())
        } else {
            Err(BackendError::BadRequest(bad.join("\n")))
        }
    }

    async fn forget(&self, peers: Vec<String>) -> Result<(), BackendError> {
        self.ask(|answer| Request::Forget(peers, answer)).await
    }

    async fn depart(&self) -> Result<(), BackendError> {
        self.ask(Request::Depart).await
    }

    async fn remove_peer(&self, peer: String, force: bool) -> Result<Option<u32>, BackendError> {
        self.ask_patiently(|request, answer| Request::RemovePeer {
            request,
            peer,
            force,
            answer,
        })
        .await
    }

    async fn expose(&self, cidr: Cidr, masquerade: bool) -> Result<(), BackendError> {
        self.exposure
            .expose(Exposed { cidr, masquerade }, &self.events)
            .await
    }

    async fn hide(&self, cidr: Cidr) -> Result<(), BackendError> {
        self.exposure.hide(cidr, &self.events).await
    }

    async fn attached(&self, id: String, attachment: Attachment) -> Result<(), BackendError> {
        if !is_docker_id(&id) || attachment.addresses.is_empty() {
            let text = format!("not the full ID of a container of Docker, or no address: {id}");
            return Err(BackendError::BadRequest(text));
        }
        self.attachments.remember(id, attachment).await
    }

    async fn detached(&self, id: String, addrs: Vec<Address>) -> Result<(), BackendError> {
        self.attachments.detached(&id, &addrs).await
    }

    async fn report(&self, detail: Detail) -> Result<Report, BackendError> {
        let asked = self.ask(|answer| Request::Report(detail, answer)).await;
        let proxy = self.proxy_addresses().map(|addresses| Proxy { addresses });
        asked.map(|report| Report { proxy, ..*report })
    }

    fn proxy_addresses(&self) -> Option<Vec<String>> {
        self.proxy.get()
    }

    fn ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }
}

/// Resolves peers given by the user; the second list has one error line for each bad one.
pub async fn resolve_all(peers: &[String], port: u16) -> (Vec<ResolvedPeer>, Vec<String>) {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for peer in peers {
        match resolve(peer, port).await {
            Ok(peer) => good.push(peer),
            Err(error) => bad.push(error),
        }
    }
    (good, bad)
}

/// `host` or `host:port` (wire.md 5.1).
async fn resolve(text: &str, our_port: u16) -> Result<ResolvedPeer, String> {
    let (host, port) = split(text)?;
    let found = lookup(host).await?;
    choose(text, &found, port, our_port)
        .ok_or_else(|| format!("cannot resolve peer \"{host}\": no address found"))
}

/// IPv4 rather than IPv6.
fn choose(text: &str, found: &[SocketAddr], port: Option<u16>, our_port: u16) -> Option<ResolvedPeer> {
    let addr = found.iter().find(|addr| addr.is_ipv4()).or(found.first())?;
    Some(ResolvedPeer {
        text: text.to_owned(),
        addr: SocketAddr::new(addr.ip(), port.unwrap_or(our_port)),
        port_given: port.is_some(),
    })
}

async fn lookup(host: &str) -> Result<Vec<SocketAddr>, String> {
    match host.parse::<IpAddr>() {
        Ok(ip) => Ok(vec![SocketAddr::new(ip, 0)]),
        Err(_) => {
            let found = tokio::net::lookup_host((host, 0)).await;
            let failed = |error| format!("cannot resolve peer \"{host}\": {error}");
            Ok(found.map_err(failed)?.collect())
        }
    }
}

/// Where a direct peer is that was at `known`, if its name no longer leads there (weakness W6). A name that
/// cannot be looked up now stays what it was.
pub(super) async fn moved(text: &str, known: SocketAddr, our_port: u16) -> Option<ResolvedPeer> {
    let (host, port) = split(text).ok()?;
    let found = tokio::time::timeout(LOOKUP_TIMEOUT, lookup(host))
        .await
        .ok()?
        .ok()?;
    let stays = |addr: &SocketAddr| addr.ip().to_canonical() == known.ip();
    if found.iter().any(stays) {
        return None;
    }
    choose(text, &found, port, our_port)
}

fn split(text: &str) -> Result<(&str, Option<u16>), String> {
    let invalid = || format!("invalid peer name \"{text}\", should be host[:port]");
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or_else(invalid)?;
            (host, rest.strip_prefix(':'))
        }
        None if text.matches(':').count() > 1 => {
            return Err(format!("address {text}:0: too many colons in address"));
        }
        None => text
            .split_once(':')
            .map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(invalid());
    }
    match port.map(str::parse::<u16>) {
        None => Ok((host, None)),
        Some(Ok(0)) => Ok((host, None)),
        Some(Ok(port)) => Ok((host, Some(port))),
        Some(Err(_)) => Err(invalid()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_that_lead_elsewhere() {
        let here = SocketAddr::from(([127, 0, 0, 1], 6783));
        let gone = SocketAddr::from(([127, 0, 0, 99], 6783));
        assert_eq!(moved("localhost", here, 6783).await, None);
        assert_eq!(moved("127.0.0.99", gone, 6783).await, None);
        assert_eq!(moved("no.such.host.invalid", gone, 6783).await, None);
        let peer = moved("localhost:7000", gone, 6783).await;
        let at = SocketAddr::from(([127, 0, 0, 1], 7000));
        assert_eq!(
            peer.map(|p| (p.text, p.addr)),
            Some(("localhost:7000".to_owned(), at))
        );
    }

    #[test]
    fn peers_as_users_write_them() {
        assert_eq!(split("10.0.0.1"), Ok(("10.0.0.1", None)));
        assert_eq!(split("host:7783"), Ok(("host", Some(7783))));
        assert_eq!(split("[fd00::1]:7783"), Ok(("fd00::1", Some(7783))));
        for bad in ["", ":6783", "host:port", "host:70000", "a b", "[fd00::1"] {
            assert!(
                split(bad).is_err_and(|e| e.contains("should be host[:port]")),
                "{bad}"
            );
        }
        assert_eq!(
            split("fd00::1"),
            Err("address fd00::1:0: too many colons in address".to_owned())
        );
    }
}
