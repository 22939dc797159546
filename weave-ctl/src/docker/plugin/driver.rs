//! The network driver: networks, endpoints, and containers that join and leave (control.md 4.9, 4.10).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::ipam::Addresses;
use super::messages::{EndpointCreated, Interface, InterfaceName, Joined, Request, StaticRoute};
use super::network;
use super::options::{self, Networks};
use crate::ipam::address::Cidr;
use crate::net::{Mac, Netlink, endpoint, mac_text};

/// How long Docker may take to tell of a network that it made without us. It waits for our answer meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// One of the drivers, as Docker knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// The name of its socket, without `.sock`.
    pub name: String,
    /// Are its networks those of all hosts?
    pub scope: Scope,
    /// Does it give addresses, too?
    pub ipam: bool,
}

/// How far a network of a driver goes, in Docker's eyes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All hosts that share a cluster store, or a swarm.
    Global,
    /// One host.
    Local,
    /// That of the engine: all hosts if it has a cluster store, which keeps such networks; else it could keep none.
    Stored,
}

impl Scope {
    /// Docker's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored if !has_cluster_store(Path::new("/")) => "local",
            Self::Global | Self::Stored => "global",
            Self::Local => "local",
        }
    }
}

/// Has the Docker engine of this host been given a cluster store? Engines had them up to release 20.10. It cannot be
/// asked itself, as it may be about to start.
fn has_cluster_store(root: &Path) -> bool {
    const OPTION: &str = "cluster-store";
    let has = |path: PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains(OPTION));
    let processes = fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    let is_docker = |process: &Path| {
        let name = fs::read_to_string(process.join("comm"));
        name.is_ok_and(|name| matches!(name.trim_end(), "dockerd" | "docker"))
    };
    has(root.join("etc/docker/daemon.json"))
        || processes
            .map(|entry| entry.path())
            .any(|process| is_docker(&process) && has(process.join("cmdline")))
}

/// The plugin, whatever the driver. Clones share everything.
pub struct Plugin<B>(Arc<Inner<B>>);

impl<B> Clone for Plugin<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// What a plugin needs.
pub struct Inner<B> {
    /// Addresses and names.
    pub backend: B,
    /// The host's devices.
    pub nl: Netlink,
    /// The weave bridge.
    pub bridge: String,
    /// Docker's endpoint; empty: it cannot be asked.
    pub docker: String,
    /// Names of our drivers.
    pub drivers: Vec<String>,
    /// What is known of networks.
    pub networks: Networks,
    /// As a managed plugin: is there a route for multicast in all networks?
    pub v2_multicast: Option<bool>,
}

impl<A: Addresses> Plugin<A> {
    /// A plugin that is not served yet.
    #[must_use]
    pub fn new(inner: Inner<A>) -> Self {
        Self(Arc::new(inner))
    }

    /// What networks were made with.
    #[must_use]
    pub fn networks(&self) -> &Networks {
        &self.0.networks
    }

    pub(super) fn inner(&self) -> &Inner<A> {
        &self.0
    }

    /// `CreateNetwork`.
    ///
    /// # Errors
    /// If an option makes no sense.
    pub fn create_network(&self, id: &str, options: Option<&Map<String, Value>>) -> Result<(), String> {
        // As a managed plugin we are told of each network on each node.
        let multicast = match self.0.v2_multicast {
            Some(multicast) => multicast,
            None => options::of_request(options).map_err(|e| e.to_string())?,
        };
        self.0.networks.add(id, multicast);
        Ok(())
    }

    /// `DeleteNetwork`.
    pub fn delete_network(&self, id: &str) {
        self.0.networks.remove(id);
    }

    /// `CreateEndpoint`.
    ///
    /// # Errors
    /// If the interface cannot be made.
    pub async fn create_endpoint(&self, request: &Request) -> Result<EndpointCreated, String> {
        let Some(interface) = &request.interface else {
            return Err("Not supported: creating an interface from within CreateEndpoint".to_owned());
        };
        let given = match interface.mac_address.as_str() {
            "" => None,
            text => Some(parse_mac(text).ok_or_else(|| format!("invalid MAC address: {text}"))?),
        };
        let addrs: Vec<Cidr> = interface.address.parse().into_iter().collect();
        let Inner { nl, bridge, .. } = &*self.0;
        let made = endpoint::create(nl, bridge, &request.endpoint_id, given, &addrs).await;
        let mac = made.map_err(|e| e.to_string())?;
        Ok(EndpointCreated {
            err: "",
            interface: Interface {
                // Docker takes none where it has given one.
                mac_address: given.map_or_else(|| mac_text(mac), |_| String::new()),
                ..Interface::default()
            },
        })
    }

    /// `DeleteEndpoint`.
    pub async fn delete_endpoint(&self, id: &str) {
        match endpoint::delete(&self.0.nl, id).await {
            Ok(true) => {}
            Ok(false) => tracing::warn!("the interface of Docker's endpoint {id} was gone already"),
            Err(error) => tracing::warn!("the interface of Docker's endpoint {id}: {error}"),
        }
    }

    /// `Join`.
    ///
    /// # Errors
    /// If the network is not known, and Docker does not tell of it.
    pub async fn join(&self, request: &Request) -> Result<Joined, String> {
        let routes = self.multicast(&request.network_id).await?.then(|| {
            vec![StaticRoute {
                destination: "224.0.0.0/4",
                route_type: 1,
                next_hop: "",
            }]
        });
        let (_, src_name) = endpoint::names(&request.endpoint_id);
        Ok(Joined {
            err: "",
            interface_name: InterfaceName {
                src_name,
                dst_name: "",
                dst_prefix: endpoint::INSIDE,
            },
            gateway: "",
            gateway_ipv6: "",
            static_routes: routes,
            disable_gateway_service: false,
        })
    }

    async fn multicast(&self, network: &str) -> Result<bool, String> {
        let Inner {
            networks,
            docker,
            drivers,
            v2_multicast,
            ..
        } = &*self.0;
        if let Some(known) = v2_multicast.or_else(|| networks.multicast(network)) {
            return Ok(known);
        }
        let failed = |why: &str| format!("unable to find network info: {why}");
        if docker.is_empty() {
            return Err(failed("Docker cannot be asked"));
        }
        let ours: Vec<&str> = drivers.iter().map(String::as_str).collect();
        let asked = tokio::time::timeout(PATIENCE, network::multicast(docker, network, &ours)).await;
        let told = asked.map_err(|_| failed("Docker does not answer"))?;
        let multicast = told.map_err(|why| failed(&why))?;
        networks.add(network, multicast);
        Ok(multicast)
    }
}

/// As Docker's users may write it.
fn parse_mac(text: &str) -> Option<Mac> {
    crate::net::parse_mac(&text.replace('-', ":"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn engines_with_a_cluster_store() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/7/comm", "grep\n");
        write("proc/7/cmdline", "grep\0--cluster-store\0");
        write("proc/8/comm", "dockerd\n");
        write("proc/8/cmdline", "dockerd\0--data-root\0/d\0");
        assert!(!has_cluster_store(dir.path()));
        write("proc/8/cmdline", "dockerd\0--cluster-store=etcd://e\0");
        assert!(has_cluster_store(dir.path()));
        write("proc/8/cmdline", "dockerd\0");
        write("etc/docker/daemon.json", "{\"cluster-store\": \"etcd://e\"}");
        assert!(has_cluster_store(dir.path()));
    }

    #[test]
    fn ethernet_addresses() {
        assert_eq!(parse_mac("02:42:0A:00:00:01"), Some([2, 0x42, 10, 0, 0, 1]));
        for bad in ["", "02:42:0a:00:00", "02:42:0a:00:00:01:02", "02:42:0a:00:00:0g"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
