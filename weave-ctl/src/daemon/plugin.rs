//! Docker's network plugins in the daemon: their sockets, and what they need of it (control.md 4.9, 4.10).

use std::fmt;
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, bail};
use nix::sys::socket::{UnixAddr, getsockname};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::core::{Daemon, Ending};
use super::handle::Handle;
use crate::api::http::{Listener, serve};
use crate::api::report;
use crate::cli::launch::{LaunchOptions, PluginOptions, driver_name};
use crate::docker::plugin::containers::Follower;
use crate::docker::plugin::driver::{Driver, Inner, Plugin, Scope};
use crate::docker::plugin::options::{FILE_NAME, Networks};
use crate::docker::plugin::{network, server};
use crate::net::Netlink;

/// How long the network `weave` may take before we say that we are ready.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// Sockets that Docker may connect to already, each with the driver that will answer.
#[derive(Default)]
pub(super) struct Sockets(Vec<(Listener, Driver)>);

/// The plugin, before and after its sockets are served.
#[derive(Clone)]
pub(super) struct Service {
    plugin: Plugin<Handle>,
    /// `None`: Docker cannot be asked.
    pub follower: Option<Follower<Handle>>,
}

/// Listens where Docker looks for plugins. A plugin that nobody asked for is left out if that fails.
pub(super) async fn listen(options: &mut LaunchOptions) -> anyhow::Result<Sockets> {
    let Some(plugin) = &options.plugin else {
        return Ok(Sockets::default());
    };
    if plugin.asked && plugin.v2_multicast.is_none() && !options.docker_api.is_empty() {
        let checked = network::check(&options.docker_api).await;
        checked.map_err(|why| anyhow::anyhow!("Unable to start docker client: {why}"))?;
    }
    match bind(plugin).await {
        Err(error) if !plugin.asked => {
            tracing::warn!("there is no Docker plugin: {error:#}");
            options.plugin = None;
            Ok(Sockets::default())
        }
        bound => bound,
    }
}

async fn bind(options: &PluginOptions) -> anyhow::Result<Sockets> {
    let is_v2 = options.v2_multicast.is_some();
    let scope = if is_v2 { Scope::Global } else { Scope::Stored };
    let mut sockets = Vec::new();
    for (path, scope, ipam) in [
        (&options.socket, scope, false),
        (&options.mesh_socket, Scope::Local, true),
    ] {
        let Some(path) = path else { continue };
        let name = driver_name(Some(path));
        sockets.push((listener(path).await?, Driver { name, scope, ipam }));
    }
    Ok(Sockets(sockets))
}

async fn listener(path: &Path) -> anyhow::Result<Listener> {
    if let Some(inherited) = inherited(path)? {
        return Ok(Listener::inherited(inherited)?);
    }
    if UnixStream::connect(path).is_ok() {
        bail!("another plugin listens on {}", path.display());
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let text = path
        .to_str()
        .context("the path of a plugin socket is not UTF-8")?;
    Listener::bind(text).await?.context("no plugin socket is given")
}

/// A socket that systemd has made, so that Docker can connect before we run.
fn inherited(path: &Path) -> anyhow::Result<Option<UnixListener>> {
    for fd in sd_notify::listen_fds().context("sockets of systemd")? {
        // SAFETY: systemd passes open descriptors, and nobody closes them.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let address = getsockname::<UnixAddr>(std::os::fd::AsRawFd::as_raw_fd(&fd)).ok();
        if address.as_ref().and_then(UnixAddr::path) == Some(path) {
            // A copy: after a change of our name they are looked for again.
            return Ok(Some(fd.try_clone_to_owned()?.into()));
        }
    }
    Ok(None)
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("plugin")
    }
}

impl Service {
    /// `None`: there is no plugin.
    pub(super) fn new(options: &LaunchOptions, nl: &Netlink, handle: &Handle) -> Option<Self> {
        let wanted = options.plugin.as_ref()?;
        let is_v2 = wanted.v2_multicast.is_some();
        let mesh = driver_name(wanted.mesh_socket.as_deref());
        let plugin = Plugin::new(Inner {
            backend: handle.clone(),
            nl: nl.clone(),
            bridge: options.bridge.clone(),
            docker: options.docker_api.clone(),
            drivers: vec![driver_name(wanted.socket.as_deref()), mesh.clone()],
            networks: Networks::load(options.paths.data_dir.join(FILE_NAME)),
            v2_multicast: wanted.v2_multicast,
        });
        let follower =
            (!is_v2 && !options.docker_api.is_empty()).then(|| Follower::new(plugin.clone(), mesh));
        Some(Self { plugin, follower })
    }

    /// Serves until we stop. Docker has the network `weave` afterwards, if it is there.
    pub(super) async fn start(
        &self,
        sockets: Sockets,
        stopped: &watch::Receiver<Option<Ending>>,
    ) -> Vec<JoinHandle<()>> {
        let serving = sockets.0.into_iter().map(|(listener, driver)| {
            tracing::info!("Docker plugin \"{}\" is there", driver.name);
            let mut stopped = stopped.clone();
            let stop = async move {
                let _ = stopped.wait_for(Option::is_some).await;
            };
            let router = server::router(self.plugin.clone(), driver);
            tokio::spawn(serve(listener, router, stop))
        });
        let serving = serving.collect();
        if let Some(follower) = &self.follower
            && tokio::time::timeout(PATIENCE, follower.ensure_network_if_there())
                .await
                .is_err()
        {
            tracing::warn!("Docker takes long to make the network \"{}\"", network::NAME);
        }
        serving
    }
}

impl Daemon {
    /// The plugin for the report.
    pub(super) fn plugin(&self) -> Option<report::Plugin> {
        let options = self.options.plugin.as_ref()?;
        let text = |path: &Option<std::path::PathBuf>| {
            let path = path.as_ref().map(|path| path.display().to_string());
            path.unwrap_or_default()
        };
        let is_v2 = options.v2_multicast.is_some();
        let ipam = self.options.ipam.as_ref();
        Some(report::Plugin {
            config: report::PluginConfig {
                socket: text(&options.socket),
                mesh_socket: text(&options.mesh_socket),
                enable: !is_v2,
                enable_v2: is_v2,
                enable_v2_multicast: options.v2_multicast.unwrap_or(false),
                dns: !is_v2 && self.options.dns.is_some(),
                default_subnet: ipam
                    .map(|ipam| ipam.default_subnet.to_string())
                    .unwrap_or_default(),
                proc_path: "/proc".to_owned(),
            },
            driver_name: driver_name(options.socket.as_deref()),
            mesh_driver_name: driver_name(options.mesh_socket.as_deref()),
        })
    }
}
