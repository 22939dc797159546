//! A daemon for tests of the interface: fixed data, and a record of what was asked of it.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::backend::{Backend, BackendError, Detail, DnsFacts, OwnedList};
use super::report::Report;
use crate::dns::entry::{Id, State};
use crate::dns::names::Filter;
use crate::docker::attachment::{Attachment, Kept};
use crate::ipam::address::{Address, Cidr};
use crate::ipam::adopt::Adopted;

/// The double. Clones share everything.
#[derive(Clone)]
pub struct Double(Arc<Inner>);

pub struct Inner {
    pub ipam: bool,
    pub ready: AtomicBool,
    pub report: Report,
    pub owned: Mutex<OwnedList>,
    pub dns: Option<DnsFacts>,
    pub names: Mutex<Vec<(Id, State)>>,
    /// One line for each call that changes something.
    pub calls: Mutex<Vec<String>>,
    /// Allocations of `forever` and primes wait for this.
    pub gate: Notify,
    /// Told when a waiting request begins, and when it is dropped.
    pub waiting: Notify,
    pub dropped: Notify,
}

impl std::ops::Deref for Double {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Double {
    pub fn new(report: Report) -> Self {
        Self(Arc::new(Inner {
            ipam: report.ipam.is_some(),
            ready: AtomicBool::new(true),
            dns: report.dns.as_ref().map(|dns| DnsFacts {
                domain: dns.domain.clone(),
                address: dns.address.parse().ok(),
            }),
            names: Mutex::new(names(&report)),
            report,
            owned: Mutex::default(),
            calls: Mutex::default(),
            gate: Notify::new(),
            waiting: Notify::new(),
            dropped: Notify::new(),
        }))
    }

    pub fn without_ipam() -> Self {
        Self::new(Report::default())
    }

    pub fn own(&self, id: &str, cidr: &str) {
        self.owned
            .lock()
            .unwrap()
            .push((id.to_owned(), vec![cidr.parse().unwrap()]));
    }

    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn call(&self, text: String) {
        self.calls.lock().unwrap().push(text);
    }

    async fn wait(&self) {
        struct OnDrop<'a>(&'a Notify);
        impl Drop for OnDrop<'_> {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        let _on_drop = OnDrop(&self.dropped);
        self.waiting.notify_one();
        self.gate.notified().await;
    }

    fn owned_by(&self, id: &str) -> Vec<Cidr> {
        let owned = self.owned.lock().unwrap();
        owned
            .iter()
            .filter(|(owner, _)| owner == id)
            .flat_map(|(_, c)| c.clone())
            .collect()
    }
}

fn names(report: &Report) -> Vec<(Id, State)> {
    let entries = report.dns.iter().flat_map(|dns| &dns.entries);
    let entry = |e: &super::report::DnsEntry| {
        let addr: Ipv4Addr = e.address.parse().unwrap();
        let origin = e.origin.parse().unwrap();
        let id = Id::new(&e.container_id, origin, addr.into(), &e.hostname).unwrap();
        let state = State {
            version: e.version,
            tombstone: e.tombstone,
        };
        (id, state)
    };
    entries.map(entry).collect()
}

fn bad<T>(text: impl Into<String>) -> Result<T, BackendError> {
    Err(BackendError::BadRequest(text.into()))
}

impl Backend for Double {
    fn ipam_enabled(&self) -> bool {
        self.ipam
    }

    async fn allocate(
        &self,
        id: String,
        subnet: Option<Cidr>,
        check_alive: bool,
    ) -> Result<Cidr, BackendError> {
        self.call(format!("allocate {id} {subnet:?} {check_alive}"));
        if id == "forever" {
            self.wait().await;
        }
        if id == "cancelled" {
            return Err(BackendError::Cancelled);
        }
        let universe: Cidr = "10.32.0.0/12".parse().unwrap();
        if let Some(subnet) = subnet.filter(|s| !s.range().overlaps(universe.range())) {
            return bad(format!("range {subnet} out of bounds: {universe}"));
        }
        let cidr = self
            .owned_by(&id)
            .first()
            .copied()
            .unwrap_or("10.32.0.9/12".parse().unwrap());
        Ok(Cidr {
            prefix_len: subnet.map_or(12, |s| s.prefix_len),
            ..cidr
        })
    }

    async fn claim(
        &self,
        id: String,
        cidr: Cidr,
        check_alive: bool,
        lenient: bool,
    ) -> Result<(), BackendError> {
        self.call(format!("claim {id} {cidr} {check_alive} {lenient}"));
        match (id.as_str(), cidr.to_string().as_str()) {
            ("x3", "10.33.7.7/12") => bad("address 10.33.7.7/12 is already owned by x2"),
            ("x3", "10.44.0.0/12") => {
                bad("address 10.44.0.0/12 is owned by other peer 7a:00:00:00:00:02 (host2)")
            }
            _ => Ok(()),
        }
    }

    async fn lookup(&self, id: String, _: Option<Cidr>) -> Result<Vec<Cidr>, BackendError> {
        Ok(self.owned_by(&id))
    }

    async fn owned(&self) -> Result<OwnedList, BackendError> {
        Ok(self.owned.lock().unwrap().clone())
    }

    async fn free(&self, id: String, addr: Address) -> Result<(), BackendError> {
        self.call(format!("free {id} {}", Ipv4Addr::from(addr)));
        if id == "x1" {
            return bad(format!(
                "Free: address {} not found for {id}",
                Ipv4Addr::from(addr)
            ));
        }
        Ok(())
    }

    async fn free_all(&self, id: String) -> Result<(), BackendError> {
        self.call(format!("free {id}"));
        let mut owned = self.owned.lock().unwrap();
        let before = owned.len();
        owned.retain(|(owner, _)| *owner != id);
        if owned.len() == before {
            return bad(format!("Delete: no addresses for {id}"));
        }
        Ok(())
    }

    async fn prime(&self) -> Result<(), BackendError> {
        if self.report.ipam.as_ref().is_some_and(|i| i.entries.is_empty()) {
            self.wait().await;
        }
        Ok(())
    }

    async fn adopt(&self, peer: Option<String>) -> Result<Adopted, BackendError> {
        self.call(format!("adopt {peer:?}"));
        if peer.as_deref() == Some("nobody") {
            return bad("there is no conflict with nobody");
        }
        let address = |id: &str, cidr: &str| vec![(id.to_owned(), cidr.parse().unwrap())];
        Ok(Adopted {
            kept: address("x1", "10.32.0.9/12"),
            lost: address("x2", "10.33.7.7/12"),
            waiting: Vec::new(),
        })
    }

    fn default_subnet(&self) -> Option<Cidr> {
        self.report.ipam.as_ref()?.default_subnet.parse().ok()
    }

    fn proxy_addresses(&self) -> Option<Vec<String>> {
        let proxy = self.report.proxy.as_ref();
        proxy.map(|proxy| proxy.addresses.clone())
    }

    fn dns(&self) -> Option<DnsFacts> {
        self.dns.clone()
    }

    async fn add_name(
        &self,
        id: String,
        addr: Address,
        name: String,
        check_alive: bool,
    ) -> Result<(), BackendError> {
        self.call(format!("name {id} {} {name} {check_alive}", Ipv4Addr::from(addr)));
        let origin = self.report.router.name.parse().unwrap();
        if let Some(id) = Id::new(&id, origin, addr, &format!("{name}.")) {
            let mut names = self.names.lock().unwrap();
            names.push((id, State::default()));
            names.sort();
        }
        Ok(())
    }

    async fn remove_names(&self, filter: Filter) -> Result<(), BackendError> {
        self.call(format!("no name {filter:?}"));
        Ok(())
    }

    async fn names(&self) -> Result<Vec<(Id, State)>, BackendError> {
        Ok(self.names.lock().unwrap().clone())
    }

    async fn connect(&self, peers: Vec<String>, replace: bool) -> Result<(), BackendError> {
        self.call(format!("connect {peers:?} {replace}"));
        let unknown: Vec<&str> = peers
            .iter()
            .map(String::as_str)
            .filter(|p| p.contains("invalid"))
            .collect();
        if unknown.is_empty() {
            Ok(())
        } else {
            bad(format!("unknown host {}", unknown.join("\nunknown host ")))
        }
    }

    async fn forget(&self, peers: Vec<String>) -> Result<(), BackendError> {
        self.call(format!("forget {peers:?}"));
        Ok(())
    }

    async fn depart(&self) -> Result<(), BackendError> {
        self.call("depart".to_owned());
        Ok(())
    }

    async fn remove_peer(&self, peer: String, _: bool) -> Result<Option<u32>, BackendError> {
        self.call(format!("remove {peer}"));
        Ok(self.ipam.then_some(match peer.as_str() {
            "host3" => 65536,
            "host2" => 196_608,
            _ => 0,
        }))
    }

    async fn expose(&self, cidr: Cidr, masquerade: bool) -> Result<(), BackendError> {
        self.call(format!("expose {cidr} {masquerade}"));
        if cidr.prefix_len == 32 {
            return Err(BackendError::Internal("the program nft is missing".to_owned()));
        }
        Ok(())
    }

    async fn hide(&self, cidr: Cidr) -> Result<(), BackendError> {
        self.call(format!("hide {cidr}"));
        Ok(())
    }

    async fn attached(&self, id: String, attachment: Attachment) -> Result<(), BackendError> {
        let addrs: Vec<String> = attachment.addresses.iter().map(Kept::text).collect();
        let hosts = attachment.add_hosts.join(" ");
        self.call(format!(
            "attached {id} {} {} {} {} [{hosts}]",
            addrs.join(" "),
            attachment.multicast_route,
            attachment.dns,
            attachment.rewrite_hosts
        ));
        Ok(())
    }

    async fn detached(&self, id: String, addrs: Vec<Address>) -> Result<(), BackendError> {
        let addrs: Vec<String> = addrs.iter().map(|a| Ipv4Addr::from(*a).to_string()).collect();
        self.call(format!("detached {id} {}", addrs.join(" ")));
        Ok(())
    }

    async fn report(&self, _: Detail) -> Result<Report, BackendError> {
        Ok(self.report.clone())
    }

    fn ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }
}
