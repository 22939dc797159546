//! The Docker API proxy of the daemon: when it starts, and what it is told of the host (control.md 4.2).

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{anyhow, bail};
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::core::Ending;
use super::handle::Handle;
use super::inherited::is_awaited;
use crate::api::backend::Backend as _;
use crate::cli::launch::{LaunchOptions, Run};
use crate::docker::endpoint::Endpoint;
use crate::docker::keeper::Keeper;
use crate::docker::proxy::{Dns, Inherited, Listening, Proxy, Seen, Settings};
use crate::docker::tls::acceptor;
use crate::docker::wait_folders::WaitFolders;
use crate::net::{Netlink, Netns, bridge, mac_text, ps};

/// How long Docker may take to say that it is there, before we go on without it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same while somebody waits for us, perhaps Docker.
const SHORT_PATIENCE: Duration = Duration::from_millis(500);
/// Between two tries while Docker is away.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Where the proxy listens; `None` while it does not. Clones share it.
#[derive(Clone, Default)]
pub struct Addresses(Arc<Mutex<Option<Vec<String>>>>);

impl Addresses {
    /// As they are now.
    #[must_use]
    pub fn get(&self) -> Option<Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, addresses: Option<Vec<String>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }
}

/// A proxy that could be started, before anything else is made.
pub(super) struct Prepared {
    endpoint: Endpoint,
    folders: WaitFolders,
    tls: Option<TlsAcceptor>,
    inherited: Vec<Inherited>,
    /// `None`: Docker is not there yet.
    listening: Option<Listening>,
}

/// What the proxy needs of the running daemon.
pub(super) struct Surroundings {
    pub(super) keeper: Keeper,
    pub(super) nl: Netlink,
    pub(super) handle: Handle,
    pub(super) addresses: Addresses,
}

/// Tries what can fail. `None`: no proxy. `inherited`: sockets of the service manager that are nobody else's.
pub(super) async fn prepare(
    options: &LaunchOptions,
    inherited: Vec<Inherited>,
) -> anyhow::Result<Option<Prepared>> {
    if options.docker_api.is_empty() {
        return Ok(None);
    }
    // Also for containers of an earlier run.
    let folders = WaitFolders::prepare(&options.paths.data_dir, options.proxy.multicast_route);
    let asked = match options.proxy.run {
        Run::Off => {
            if let Err(error) = folders {
                tracing::warn!("containers cannot wait for their interface: {error}");
            }
            return Ok(None);
        }
        Run::IfPossible => false,
        Run::Asked => true,
    };
    let tls = options.proxy.tls.as_ref().map(acceptor).transpose()?;
    let Some(endpoint) = Endpoint::parse(&options.docker_api) else {
        let why = format!("{} is no unix:// or tcp:// address", options.docker_api);
        if asked {
            bail!("Could not start proxy: {why}");
        }
        tracing::warn!("no Docker API proxy: {why}");
        return Ok(None);
    };
    let folders = match folders {
        Ok(folders) => folders,
        Err(error) if asked => {
            bail!("Could not start proxy: Could not find the weavewait volume: {error}")
        }
        Err(error) => {
            tracing::warn!("no Docker API proxy: {error}");
            return Ok(None);
        }
    };
    let patience = if is_awaited() && !asked {
        SHORT_PATIENCE
    } else {
        PATIENCE
    };
    let listening = match is_there(&endpoint, patience).await {
        Ok(()) => match listen(options, &endpoint, &inherited).await {
            Ok(listening) => Some(listening),
            Err(error) if asked => return Err(error),
            Err(_) => None,
        },
        Err(why) if asked => bail!(
            "Could not start proxy: no Docker at {}: {why}",
            options.docker_api
        ),
        Err(_) => None,
    };
    Ok(Some(Prepared {
        endpoint,
        folders,
        tls,
        inherited,
        listening,
    }))
}

async fn is_there(endpoint: &Endpoint, patience: Duration) -> Result<(), String> {
    match tokio::time::timeout(patience, endpoint.is_there()).await {
        Ok(answered) => answered,
        Err(_) => Err("no answer".to_owned()),
    }
}

async fn listen(
    options: &LaunchOptions,
    endpoint: &Endpoint,
    inherited: &[Inherited],
) -> anyhow::Result<Listening> {
    let places = &options.proxy.places;
    let inherited: Vec<Inherited> = inherited
        .iter()
        .map(Inherited::try_clone)
        .collect::<io::Result<_>>()?;
    let listening = Listening::at(places, inherited, &options.paths.run_dir, endpoint).await?;
    for address in &listening.addresses {
        tracing::info!("proxy listening on {address}");
    }
    Ok(listening)
}

impl Prepared {
    /// Serves until the daemon stops; as soon as Docker is there.
    pub(super) fn start(
        self,
        options: &LaunchOptions,
        around: Surroundings,
        mut stopped: watch::Receiver<Option<Ending>>,
    ) -> anyhow::Result<JoinHandle<()>> {
        let addresses = around.addresses.clone();
        let listening = self.listening;
        if let Some(listening) = &listening {
            addresses.set(Some(listening.addresses.clone()));
        }
        let (endpoint, tls, inherited) = (self.endpoint.clone(), self.tls, self.inherited);
        let proxy = Arc::new(proxy(options, self.endpoint, self.folders, around)?);
        let options = options.clone();
        Ok(tokio::spawn(async move {
            let stop = async move { drop(stopped.wait_for(Option::is_some).await) };
            let mut stop = std::pin::pin!(stop);
            let listening = match listening {
                Some(listening) => listening,
                None => tokio::select! {
                    () = &mut stop => return,
                    listening = wait(&options, &endpoint, &inherited) => listening,
                },
            };
            addresses.set(Some(listening.addresses.clone()));
            proxy.serve(listening, tls, stop).await;
            addresses.set(None);
        }))
    }
}

/// Waits until Docker is there, and until we can listen.
async fn wait(options: &LaunchOptions, endpoint: &Endpoint, inherited: &[Inherited]) -> Listening {
    let (mut pause, mut told) = (FIRST_PAUSE, None);
    loop {
        let why = match is_there(endpoint, PATIENCE).await {
            Ok(()) => match listen(options, endpoint, inherited).await {
                Ok(listening) => return listening,
                Err(error) => anyhow!("{error:#}"),
            },
            Err(why) => anyhow!("no Docker at {}: {why}", options.docker_api),
        };
        let why = why.to_string();
        if told.as_ref() != Some(&why) {
            tracing::info!("no Docker API proxy yet, trying again from time to time: {why}");
            told = Some(why);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn proxy(
    options: &LaunchOptions,
    docker: Endpoint,
    folders: WaitFolders,
    around: Surroundings,
) -> anyhow::Result<Proxy> {
    let (given, nl, weave) = (&options.proxy, around.nl, options.bridge.clone());
    let handle = around.handle;
    let dns = handle.dns().filter(|_| given.dns);
    let settings = Settings {
        default_ipalloc: given.default_ipalloc,
        multicast: given.multicast_route,
        dns: dns.map(|facts| Dns {
            address: None,
            domain: facts.domain,
        }),
        hostname: given.hostname_rules()?,
        folders,
        rewrite_inspect: given.rewrite_inspect,
    };
    let anywhere = options.dns.as_ref().is_some_and(|dns| dns.listen.is_some());
    let docker_bridge = options.docker_bridge.clone();
    let (names_nl, names_bridge) = (nl.clone(), weave.clone());
    Ok(Proxy {
        docker,
        settings,
        keeper: around.keeper,
        nameserver: Box::new(move || {
            let bridge = if anywhere {
                docker_bridge.clone()
            } else {
                names_bridge.clone()
            };
            let server = handle.dns().and_then(|facts| facts.address);
            Box::pin(reachable(
                names_nl.clone(),
                bridge,
                server.map(|address| address.ip()),
            ))
        }),
        look: Box::new(move |pid| Box::pin(look(nl.clone(), weave.clone(), pid)) as BoxFuture<'_, _>),
    })
}

/// Where containers can ask WeaveDNS. If it listens everywhere: at an address of this bridge.
async fn reachable(nl: Netlink, bridge: String, server: Option<IpAddr>) -> Option<IpAddr> {
    let server = server.filter(|server| !server.is_loopback())?;
    if !server.is_unspecified() {
        return Some(server);
    }
    let (_, addresses) = bridge::exposed(&nl, &bridge).await.ok()?;
    addresses.first().map(|cidr| IpAddr::V4(cidr.addr.into()))
}

async fn look(nl: Netlink, bridge: String, pid: u32) -> Option<Seen> {
    let ns = Netns::of_pid(pid).ok()?;
    let interface = ps::attached(&nl, &bridge, &ns).await.ok()?.into_iter().next()?;
    let cidr = interface.cidrs.first()?;
    Some(Seen {
        mac: mac_text(interface.mac),
        address: std::net::Ipv4Addr::from(cidr.addr).to_string(),
        prefix_len: cidr.prefix_len,
    })
}
