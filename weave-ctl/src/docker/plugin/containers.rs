//! Containers on our networks, once they have started: their names, and their neighbours' knowledge of them
//! (control.md 2.3, 4.9).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{Mutex, Semaphore};

use super::driver::{Inner, Plugin};
use super::network;
use crate::api::backend::Backend;
use crate::dns::names::Filter;
use crate::docker::client::{Failure, ask};
use crate::docker::events::ContainerEvent;
use crate::docker::{self, DockerContainer};
use crate::net::{Netns, endpoint};

/// Containers that are looked after at a time.
const AT_ONCE: usize = 8;
/// How often, and how long apart, Docker is asked for the process of a container that it says has started.
const TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Inspected {
    name: String,
    state: State,
    config: Config,
    network_settings: NetworkSettings,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct State {
    running: bool,
    pid: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    hostname: String,
    domainname: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkSettings {
    networks: Option<BTreeMap<String, Option<Endpoint>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Endpoint {
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    #[serde(rename = "IPAddress")]
    ip_address: String,
    aliases: Option<Vec<String>>,
}

/// Follows containers. Clones share everything.
pub struct Follower<B> {
    plugin: Plugin<B>,
    driver: String,
    permits: Arc<Semaphore>,
    /// One at a time makes the network.
    making: Arc<Mutex<()>>,
}

impl<B> Clone for Follower<B> {
    fn clone(&self) -> Self {
        Self {
            plugin: self.plugin.clone(),
            driver: self.driver.clone(),
            permits: Arc::clone(&self.permits),
            making: Arc::clone(&self.making),
        }
    }
}

impl<B: Backend> Follower<B> {
    /// `driver`: that of the network `weave`; empty: there shall be none.
    #[must_use]
    pub fn new(plugin: Plugin<B>, driver: String) -> Self {
        Self {
            plugin,
            driver,
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            making: Arc::default(),
        }
    }

    /// Docker has told something.
    pub fn told(&self, event: &ContainerEvent) {
        match event {
            ContainerEvent::Started(id) => self.look_after(id),
            ContainerEvent::Running { ids, .. } => {
                let follower = self.clone();
                tokio::spawn(async move { follower.ensure_network().await });
                ids.iter().for_each(|id| self.look_after(id));
            }
            _ => {}
        }
    }

    /// Makes the network `weave`. What goes wrong is only logged: it is tried again when Docker comes again.
    pub async fn ensure_network(&self) {
        let Inner { backend, docker, .. } = self.plugin.inner();
        let Some(subnet) = backend.default_subnet() else {
            return;
        };
        if self.driver.is_empty() {
            return;
        }
        let _alone = self.making.lock().await;
        if let Err(error) = network::ensure(docker, &self.driver, subnet).await {
            tracing::warn!("cannot make the Docker network \"{}\": {error}", network::NAME);
        }
    }

    /// The same, unless Docker is not there.
    pub async fn ensure_network_if_there(&self) {
        if network::check(&self.plugin.inner().docker).await.is_ok() {
            self.ensure_network().await;
        }
    }

    fn look_after(&self, id: &str) {
        let (follower, id) = (self.clone(), id.to_owned());
        tokio::spawn(async move {
            let _permit = follower.permits.acquire().await;
            if let Err(error) = follower.started(&id).await {
                tracing::warn!("container {id} on a network of ours: {error}");
            }
        });
    }

    async fn started(&self, id: &str) -> Result<(), String> {
        let Inner {
            backend, nl, docker, ..
        } = self.plugin.inner();
        let Some(container) = self.inspect(id).await? else {
            return Ok(());
        };
        let mut ours = Vec::new();
        for found in container.network_settings.networks.iter().flatten() {
            if let Some(of_network) = found.1
                && endpoint::exists(nl, &of_network.endpoint_id)
                    .await
                    .map_err(|e| e.to_string())?
            {
                ours.push(of_network);
            }
        }
        if ours.is_empty() {
            return Ok(());
        }
        let mut named = false;
        if let Some(domain) = backend.dns().map(|dns| dns.domain) {
            for of_network in ours {
                let Ok(addr) = of_network.ip_address.parse::<Ipv4Addr>() else {
                    continue;
                };
                for name in names(&container, id, of_network, &domain) {
                    named = true;
                    let added = backend
                        .add_name(id.to_owned(), addr.into(), name.clone(), false)
                        .await;
                    if let Err(error) = added {
                        tracing::warn!("cannot register {name}: {error}");
                    }
                }
            }
        }
        // Its end may have been told before it had the names.
        if named && docker::is_gone(docker, id).await {
            let filter = Filter {
                container: Some(id.to_owned()),
                ..Filter::default()
            };
            return backend.remove_names(filter).await.map_err(|e| e.to_string());
        }
        let pid = u32::try_from(container.state.pid).unwrap_or_default();
        match Netns::of_pid(pid) {
            Ok(ns) => endpoint::settle(&ns).await.map_err(|e| e.to_string()),
            // It has ended.
            Err(_) => Ok(()),
        }
    }

    /// `None`: it does not run.
    async fn inspect(&self, id: &str) -> Result<Option<Inspected>, String> {
        if !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(None);
        }
        for _ in 0..TRIES {
            let path = format!("/containers/{id}/json");
            match ask::<Inspected>(&self.plugin.inner().docker, &path).await {
                Ok(found) if !found.state.running => return Ok(None),
                Ok(found) if found.state.pid > 0 => return Ok(Some(found)),
                Ok(_) => {}
                Err(Failure::NotFound(_)) => return Ok(None),
                Err(failure) => return Err(failure.reason()),
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(None)
    }
}

/// `Hostname.Domainname`, the container's name and its aliases in the local domain.
fn names(container: &Inspected, id: &str, endpoint: &Endpoint, domain: &str) -> BTreeSet<String> {
    let text = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
    let own = DockerContainer {
        hostname: text(&container.config.hostname),
        domain: text(&container.config.domainname),
        ..DockerContainer::default()
    };
    let local = |name: &str| format!("{name}.{domain}");
    let of_name = Some(container.name.trim_start_matches('/')).filter(|name| !name.is_empty());
    // Docker's own alias, the beginning of the ID, was asked for by nobody.
    let aliases = endpoint.aliases.iter().flatten();
    let aliases = aliases.filter(|alias| !alias.is_empty() && !id.starts_with(alias.as_str()));
    let aliases = aliases.map(|alias| match alias.contains('.') {
        true => alias.clone(),
        false => local(alias),
    });
    own.fqdn()
        .into_iter()
        .chain(of_name.map(local))
        .chain(aliases)
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_of_a_container() {
        let id = "0123456789abcdef".repeat(4);
        // As Docker 20.10 tells.
        let container: Inspected = serde_json::from_value(json!({
            "Id": id, "Name": "/web", "State": {"Running": true, "Pid": 7, "Restarting": false},
            "Config": {"Hostname": "front", "Domainname": "weave.local"},
            "NetworkSettings": {"Bridge": "", "Networks": {"weave": {
                "Aliases": ["db", "a.sub.weave.local", &id[..12]], "NetworkID": "n", "EndpointID": "e",
                "IPAddress": "10.32.0.1", "Links": null}, "gone": null}}}))
        .unwrap();
        let endpoint = container.network_settings.networks.as_ref().unwrap()["weave"]
            .as_ref()
            .unwrap();
        let found: Vec<String> = names(&container, &id, endpoint, "weave.local.")
            .into_iter()
            .collect();
        let expected = [
            "a.sub.weave.local",
            "db.weave.local.",
            "front.weave.local",
            "web.weave.local.",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn without_networks() {
        let bare: Inspected =
            serde_json::from_value(json!({"Name": "/x", "NetworkSettings": {"Networks": null}})).unwrap();
        assert!(bare.network_settings.networks.is_none());
    }
}
