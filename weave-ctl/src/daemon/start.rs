//! From options to a running daemon. What can fail is tried before anything is made; what was
//! made is taken away again when a later step fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::attachments::Attachments;
use super::connections::{self, Secrecy};
use super::core::{Daemon, Ending, OurChannels, Parts, unix_now};
use super::event::{Event, Events};
use super::exposure::Exposure;
use super::handle::{Handle, resolve_all};
use super::host;
use super::inherited;
use super::keeper::{Inner as Keeping, Rules, Worker};
use super::mtu::Mtu;
use super::names;
use super::neighbours::{FEATURE_IMPLEMENTATION, FEATURE_MTU, FEATURE_PACE, PACE_QUICK};
use super::overlays::Overlays;
use super::proxy::{self, Addresses};
use crate::api::backend::Backend;
use crate::api::http::{Guard, Listener, control_router, metrics_router, serve, status_router};
use crate::cli::launch::{LaunchOptions, Mtu as MtuOption};
use crate::cli::managed_plugin_is_up;
use crate::dns::names::Names;
use crate::dns::server::Server;
use crate::dns::zone::SharedZone;
use crate::docker::events::ContainerEvent;
use crate::docker::keeper::Keeper;
use crate::ipam::allocator::{self, Allocator, Changes};
use crate::ipam::talk::Talk;
use crate::mesh::core::{self, Mesh};
use crate::mesh::handshake::Features;
use crate::mesh::name::{PeerName, ShortId};
use crate::mesh::{Now, reconcile, transport};
use crate::net::link::Link;
use crate::net::{Netlink, bridge, expose};
use crate::store::{Store, Stored};
use crate::{docker, identity, legacy};

/// Runs the daemon in the foreground until SIGINT or SIGTERM, or until SIGUSR1, after which the
/// kernel goes on with all traffic.
pub fn run(options: LaunchOptions) -> anyhow::Result<()> {
    super::logging::init(options.log_level);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start")?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let mut options = options;
        // Each turn is a whole daemon, which ends with our name.
        while start(options.clone(), &mut signals).await? == Ending::Renamed {
            tracing::info!("=== starting anew with another name ===");
            options.resume = true;
            options.peers.clear();
        }
        Ok(())
    })
}

/// Registered once, so that none is lost.
struct Signals {
    hand_over: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            hand_over: signal(SignalKind::user_defined1())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Ending {
        tokio::select! {
            _ = self.interrupt.recv() => Ending::Stop,
            _ = self.terminate.recv() => Ending::Stop,
            _ = self.hand_over.recv() => Ending::HandOver,
        }
    }
}

/// File of the persistent state.
const STORE: &str = "weave.redb";

/// The flag with the peers of the command line.
const LAUNCHED_WITH: &str = "launched-with";

struct Listeners {
    mesh: TcpListener,
    http: [Vec<Listener>; 3],
}

async fn start(options: LaunchOptions, signals: &mut Signals) -> anyhow::Result<Ending> {
    tracing::info!("weave  {}", crate::VERSION);
    let store = Store::open(options.paths.data_dir.join(STORE))?;
    let nl = Netlink::current().await?;
    let existing = nl.find_link(&options.bridge).await?;
    let mut saved = store.load()?;
    let first_launch = saved.identity.is_none();
    let root = Path::new("/");
    let sources = identity::Sources {
        given: options.name,
        persisted: saved.identity.as_ref().map(|known| known.name),
        bridge: existing.as_ref().and_then(|link| link.mac),
        root,
        host_root: root,
    };
    let name = identity::peer_name(&sources, &mut rand::rng())?;
    let now = u64::try_from(unix_now()).unwrap_or_default();
    let mut identity = identity::settled(saved.identity.take(), name, now, &mut rand::rng());
    let nickname = options.nickname.clone();
    tracing::info!("Our name is {name}({nickname})");
    if let Some(why) = &identity.renamed {
        tracing::info!("{why}");
    }
    match options.password {
        Some(_) => tracing::info!("Communication between peers via untrusted networks is encrypted."),
        None => tracing::info!("Communication between peers is unencrypted."),
    }

    if first_launch {
        take_over(&mut saved, &store, &options.paths.data_dir, name)?;
    }

    // The short ID we had before: our kernel and other peers may still be using it.
    let short_id = identity
        .short_id
        .or_else(|| ShortId::new(rand::random_range(0..ShortId::COUNT as u64)))
        .context("no short ID")?;
    identity.short_id = Some(short_id);
    store.save_identity(&identity)?;
    let given = options.peers.join(" ");
    // Started again by a service manager, after a crash or at boot: what `connect` and `forget` have changed holds.
    let again =
        options.managed && saved.direct_peers.is_some() && saved.flags.get(LAUNCHED_WITH) == Some(&given);
    let resume = options.resume || again;
    if !resume {
        store.set_flag(LAUNCHED_WITH, &given)?;
    }
    let peers = if resume {
        saved.direct_peers.clone().unwrap_or_default()
    } else {
        options.peers.clone()
    };
    match resume {
        true => tracing::info!("Restart/resume detected - using persisted peer list: {peers:?}"),
        false => tracing::info!("Launch detected - using supplied peer list: {peers:?}"),
    }
    let (resolved, bad) = resolve_all(&peers, options.port).await;
    if !bad.is_empty() {
        bail!(bad.join("\n"));
    }
    let listeners = listen(&options).await?;
    let mut options = options;
    let mut inherited = inherited::Sockets::passed()?;
    let mut for_plugin = super::plugin::passed(&options, &mut inherited);
    super::plugin::check(&options).await?;
    let proxy = proxy::prepare(&options, inherited.rest()).await?;
    let mtu = match options.mtu {
        MtuOption::Bytes(bytes) => Mtu::fixed(bytes.into()),
        MtuOption::Auto => Mtu::auto(&nl, &options.bridge, options.password.is_some()).await?,
    };
    let events = Events::new();
    let made = Overlays::make(&options, &nl, &events.0, (name, short_id), mtu.bytes).await;
    let zone = SharedZone::default();
    let made = match made {
        Ok(overlays) => super::dns::start(&options, &nl, zone.clone())
            .await
            .map(|dns| (overlays, dns)),
        Err(error) => Err(error),
    };
    // Last of all that can fail: who stands in for us at Docker's calls goes on until then.
    let made = made.and_then(|(overlays, dns)| {
        let sockets = super::plugin::listen(&mut options, &mut for_plugin)?;
        Ok((overlays, dns, sockets))
    });
    let (overlays, dns, plugin_sockets) = match made {
        Ok(made) => made,
        Err(error) => {
            if existing.is_none() {
                take_away(&options, &nl).await;
            }
            return Err(error);
        }
    };
    tracing::info!("Bridge type is {}", overlays.bridge_type());
    if existing.as_ref().is_some_and(|link| link.mtu != mtu.bytes) {
        // Attached by a Weave Net, or by us with another MTU.
        host::set_guest_mtu(&nl, &options.bridge, mtu.bytes);
    }

    let ours = Arc::new(Mutex::new(features(name, &nickname, short_id, &mtu, &overlays)));
    let uid = ours.lock().map(|f| f.uid).unwrap_or_default();
    let mesh = Mesh::new(
        core::Config {
            name,
            nickname: nickname.clone(),
            uid,
            short_id,
            port: options.port,
            conn_limit: options.conn_limit,
            discovery: options.discovery,
            seed: rand::random(),
        },
        Now::ZERO,
    );
    let ipam = options.ipam.as_ref().map(|ipam| {
        let config = allocator::Config {
            name,
            nickname,
            uid,
            universe: ipam.range,
            default_subnet: ipam.default_subnet,
            mode: ipam.init.clone(),
            seed: rand::random(),
        };
        let mut allocator = Allocator::new(config, saved.ipam);
        allocator.set_reclaim_after(ipam.reclaim_after);
        allocator
    });
    let ready = Arc::new(AtomicBool::new(false));
    let default_subnet = options.ipam.as_ref().map(|ipam| ipam.default_subnet);
    let exposure = expose_again(&options, &nl, &store, &saved.exposed, existing.as_ref()).await?;
    let addresses = Addresses::default();
    let attachments = Attachments::restore(std::mem::take(&mut saved.attached), events.0.clone());
    let handle = Handle::new(
        events.0.clone(),
        default_subnet,
        options.port,
        ready.clone(),
        exposure,
        attachments.clone(),
    )
    .with_docker(&options.docker_api)
    .with_dns(
        options.dns.as_ref().map(|dns| dns.domain.clone()),
        dns.as_ref().map(Server::handle),
    )
    .with_proxy(addresses.clone());

    let (stop, stopped) = watch::channel(None);
    let secrecy = Arc::new(Secrecy {
        password: options.password.clone(),
        trusted_subnets: options.trusted_subnets.clone(),
    });
    let accepting = tokio::spawn(connections::accept(
        listeners.mesh,
        events.0.clone(),
        ours.clone(),
        secrecy.clone(),
    ));
    let keeper = Keeper::default();
    let plugin = super::plugin::Service::new(&options, &nl, &handle);
    let following = follow_docker(
        &options,
        &events.0,
        &nl,
        &handle,
        (&keeper, attachments),
        plugin.as_ref(),
    );
    let servers = serve_http(listeners.http, &handle, &stopped);
    let proxy = match proxy {
        Some(proxy) => {
            let around = proxy::Surroundings {
                keeper,
                nl: nl.clone(),
                handle: handle.clone(),
                addresses,
            };
            Some(proxy.start(&options, around, stopped.clone())?)
        }
        None => None,
    };
    let channels = OurChannels {
        ipam,
        talk: Talk::default(),
        names: options.dns.as_ref().map(|dns| Names::new(name, &dns.domain)),
    };
    let daemon = Daemon::new(Parts {
        options,
        secrecy,
        name,
        uid,
        identity,
        mesh,
        channels,
        zone,
        store,
        overlays,
        resolver: dns.as_ref().map(Server::handle),
        nl,
        ours,
        mtu,
        events,
    })?;
    let mut daemon_stopped = stopped.clone();
    let running = tokio::spawn(daemon.run(async move {
        let ending = daemon_stopped.wait_for(Option::is_some).await;
        ending.ok().and_then(|ending| *ending).unwrap_or(Ending::Stop)
    }));
    let texts = resolved.into_iter().map(|peer| peer.text).collect();
    let mut running = running;
    if let Err(error) = handle.connect(texts, true).await {
        // If the daemon has ended, it knows why.
        if let Ok(ended) = tokio::time::timeout(Duration::from_secs(1), &mut running).await {
            ended.context("the daemon's loop has failed")??;
        }
        return Err(error).context("cannot set the initial peers");
    }
    let plugin = match plugin {
        Some(plugin) => Some(plugin.start(&handle, plugin_sockets, &stopped).await?),
        None => None,
    };
    ready.store(true, Ordering::Release);
    // Only systemd listens, if anybody does.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    managed_plugin_is_up();

    let ended = tokio::select! {
        ended = &mut running => Err(ended),
        ending = signals.next() => Ok(ending),
    };
    let result = match ended {
        Err(ended) => {
            let _ = stop.send(Some(Ending::Stop));
            ended
        }
        Ok(ending) => {
            tracing::info!("=== received SIGINT/SIGTERM ===");
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
            let _ = stop.send(Some(ending));
            running.await
        }
    };
    for server in servers.into_iter().chain(proxy) {
        let _ = server.await;
    }
    if let Some(plugin) = plugin {
        plugin.stop().await;
    }
    if let Some(dns) = dns {
        dns.stop().await;
    }
    // The next daemon needs the port.
    for task in std::iter::once(accepting).chain(following) {
        task.abort();
        let _ = task.await;
    }
    tracing::info!("*** exiting");
    result.context("the daemon's loop has failed")?
}

/// At our first launch on a host: what a Weave Net that ran here before has kept. Our name is saved after this, so
/// that it is done again if we die in between.
fn take_over(saved: &mut Stored, store: &Store, data_dir: &Path, name: PeerName) -> anyhow::Result<()> {
    let Some((path, found)) = legacy::find(data_dir, name)? else {
        return Ok(());
    };
    tracing::info!(
        "Weave Net was here: taking over its address ring, {} addresses and its peers from {}",
        found.addresses(),
        path.display()
    );
    if let Some(ipam) = found.ipam {
        store.save_ipam(&Changes::all(ipam.clone()))?;
        saved.ipam = Some(ipam);
    }
    store.save_direct_peers(&found.direct_peers)?;
    saved.direct_peers = Some(found.direct_peers);
    for (flag, value) in found.flags {
        store.set_flag(&flag, &value)?;
    }
    Ok(())
}

/// What was exposed before, as the bridge that we found, if any, tells.
async fn expose_again(
    options: &LaunchOptions,
    nl: &Netlink,
    store: &Store,
    kept: &[expose::Exposed],
    existing: Option<&Link>,
) -> anyhow::Result<Exposure> {
    let on_bridge = match existing {
        Some(link) => Some(nl.addresses(link.index).await?),
        None => None,
    };
    let list = expose::at_start(kept, on_bridge.as_deref());
    if list != kept {
        store.save_exposed(&list)?;
    }
    let bridges = expose::Bridges {
        weave: options.bridge.clone(),
        docker: options.docker_bridge.clone(),
    };
    Ok(Exposure::restore(nl.clone(), bridges, list).await)
}

/// Containers are attached when they start; their addresses and names are given back when Docker says that they are
/// gone. As soon as Docker is there, those that are attached get their names.
fn follow_docker(
    options: &LaunchOptions,
    events: &Events,
    nl: &Netlink,
    handle: &Handle,
    (keeper, attachments): (&Keeper, Attachments),
    plugin: Option<&super::plugin::Service>,
) -> Option<JoinHandle<()>> {
    let follower = plugin.and_then(|plugin| plugin.follower.clone());
    if options.docker_api.is_empty() {
        return None;
    }
    let has_names = handle.dns().is_some();
    let (host, events, keeper) = (options.docker_api.clone(), events.clone(), keeper.clone());
    let (nl, bridge, handle) = (nl.clone(), options.bridge.clone(), handle.clone());
    let worker = Worker::new(Keeping::new(
        keeper.clone(),
        host.clone(),
        nl.clone(),
        bridge.clone(),
        handle.clone(),
        events.clone(),
        attachments,
        Rules {
            default_ipalloc: options.proxy.default_ipalloc,
            rewrite_hosts: options.proxy.rewrite_hosts,
            multicast_route: options.proxy.multicast_route,
            dns: options.proxy.dns,
        },
    ));
    Some(tokio::spawn(async move {
        docker::events::watch(&host, keeper.needed(), |event| {
            if has_names && matches!(event, ContainerEvent::Running { first: true, .. }) {
                let (nl, bridge, docker) = (nl.clone(), bridge.clone(), host.clone());
                tokio::spawn(names::repopulate(handle.clone(), nl, bridge, docker));
            }
            if let Some(follower) = &follower {
                follower.told(&event);
            }
            let (events, worker) = (events.clone(), worker.clone());
            async move {
                // The loop first: a container that is to get an address is alive again.
                events.send(Event::Container(event.clone())).await;
                worker.on_event(&event);
            }
        })
        .await;
    }))
}

async fn listen(options: &LaunchOptions) -> anyhow::Result<Listeners> {
    let mesh = transport::listen(options.host, options.port).with_context(|| {
        format!(
            "cannot listen for peers on TCP port {}: is another weave running on this host? Choose another \
             port with --port",
            options.port
        )
    })?;
    let guard = Guard {
        bridge: options.bridge.clone(),
        range: options.ipam.as_ref().map(|ipam| ipam.range),
    };
    let guarded = |listeners: Vec<Listener>| -> Vec<Listener> {
        let guarded = listeners
            .into_iter()
            .map(|listener| listener.guarded(guard.clone()));
        guarded.collect()
    };
    let http = [
        guarded(Listener::bind_all(&options.http_addr).await?),
        guarded(Listener::bind_all(&options.status_addr).await?),
        // Whoever asks for this one wants it to be read, often by a Prometheus in a container.
        Listener::bind_all(&options.metrics_addr).await?,
    ];
    for (what, address) in [("control", &options.http_addr), ("status", &options.status_addr)] {
        if !address.is_empty() {
            tracing::info!("Listening for HTTP {what} messages on {address}");
        }
    }
    Ok(Listeners { mesh, http })
}

/// After a failed first start nothing of ours may stay. State files may: they hold our name.
async fn take_away(options: &LaunchOptions, nl: &Netlink) {
    if let Err(error) = bridge::delete_all(nl, &options.bridge).await {
        tracing::warn!("{error}");
    }
    let pins = &options.paths.bpf_dir;
    match std::fs::remove_dir_all(pins) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("cannot remove {}: {error}", pins.display());
        }
        _ => {}
    }
}

fn features(name: PeerName, nickname: &str, short_id: ShortId, mtu: &Mtu, overlays: &Overlays) -> Features {
    Features {
        name,
        nickname: nickname.to_owned(),
        uid: identity::new_uid(&mut rand::rng()),
        conn_id: 0,
        short_id: Some(short_id),
        trusted: false,
        overlays: Some(overlays.offer()),
        extra: BTreeMap::from([
            (reconcile::FEATURE.to_owned(), reconcile::FEATURE_VALUE.to_owned()),
            (FEATURE_MTU.to_owned(), mtu.bytes.to_string()),
            (FEATURE_PACE.to_owned(), PACE_QUICK.to_owned()),
            (
                FEATURE_IMPLEMENTATION.to_owned(),
                format!("weave-ctl {}", crate::VERSION),
            ),
        ]),
    }
}

fn serve_http(
    listeners: [Vec<Listener>; 3],
    handle: &Handle,
    stopped: &watch::Receiver<Option<Ending>>,
) -> Vec<JoinHandle<()>> {
    let routers = [
        control_router(handle.clone()),
        status_router(handle.clone()),
        metrics_router(handle.clone()),
    ];
    listeners
        .into_iter()
        .zip(routers)
        .flat_map(|(listeners, router)| listeners.into_iter().map(move |l| (l, router.clone())))
        .map(|(listener, router)| {
            let mut stopped = stopped.clone();
            let stop = async move {
                let _ = stopped.wait_for(Option::is_some).await;
            };
            tokio::spawn(serve(listener, router, stop))
        })
        .collect()
}
