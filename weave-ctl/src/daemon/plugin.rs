//! Docker's network plugins in the daemon: their sockets, and what they need of it (control.md 4.9, 4.10).

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::core::{Daemon, Ending};
use super::handle::Handle;
use super::inherited;
use crate::api::backend::Backend as _;
use crate::api::http::{Listener, serve};
use crate::api::report;
use crate::cli::launch::{LaunchOptions, PluginOptions, driver_name};
use crate::cli::{end_standby, start_standby};
use crate::docker::plugin::containers::Follower;
use crate::docker::plugin::driver::{Driver, Inner, Plugin, Scope};
use crate::docker::plugin::options::{FILE_NAME, Networks};
use crate::docker::plugin::record::Record;
use crate::docker::plugin::{network, server, standby};
use crate::net::Netlink;

/// How long the network `weave` may take before we say that we are ready.
const PATIENCE: Duration = Duration::from_secs(20);
/// The same while somebody waits for us, perhaps Docker.
const SHORT_PATIENCE: Duration = Duration::from_secs(1);
/// How long Docker may take to say that it is there.
const CHECK_PATIENCE: Duration = Duration::from_secs(5);
/// Who may use our sockets: root, and the group that an administrator gives them to.
const MODE: u32 = 0o660;

/// A socket that Docker may connect to already.
struct Socket {
    listener: UnixListener,
    /// Who will answer.
    driver: Driver,
    /// Ours to remove; `None`: systemd's.
    file: Option<PathBuf>,
}

/// Those of the plugin. Their files go with them unless they are served.
#[derive(Default)]
pub(super) struct Sockets(Vec<Socket>);

impl Drop for Sockets {
    fn drop(&mut self) {
        self.0
            .iter()
            .filter_map(|socket| socket.file.as_ref())
            .for_each(remove);
    }
}

fn remove(file: &PathBuf) {
    if let Err(error) = fs::remove_file(file)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("cannot remove {}: {error}", file.display());
    }
}

/// The plugin, before its sockets are served.
#[derive(Clone)]
pub(super) struct Service {
    plugin: Plugin<Handle>,
    /// `None`: Docker cannot be asked.
    pub follower: Option<Follower<Handle>>,
    /// But for the sockets.
    record: Record,
    /// Somebody shall stand in for us while we are away.
    standby: bool,
    run_dir: PathBuf,
    data_dir: PathBuf,
}

/// The plugin while it is served.
pub(super) struct Serving {
    service: Service,
    servers: Vec<JoinHandle<()>>,
    starting: JoinHandle<()>,
    standby: Arc<Mutex<Option<Child>>>,
    files: Vec<PathBuf>,
}

/// Its sockets among those of the service manager.
pub(super) fn passed(options: &LaunchOptions, inherited: &mut inherited::Sockets) -> inherited::Sockets {
    let plugin = options.plugin.iter();
    let paths = plugin.flat_map(|plugin| [plugin.socket.as_deref(), plugin.mesh_socket.as_deref()]);
    inherited.split_off(&paths.flatten().collect::<Vec<_>>())
}

/// Is Docker there, if the plugin was asked for?
pub(super) async fn check(options: &LaunchOptions) -> anyhow::Result<()> {
    let needs_docker = |plugin: &PluginOptions| plugin.asked && plugin.v2_multicast.is_none();
    if !options.plugin.as_ref().is_some_and(needs_docker) || options.docker_api.is_empty() {
        return Ok(());
    }
    let checked = tokio::time::timeout(CHECK_PATIENCE, network::check(&options.docker_api)).await;
    let why = match checked {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(why)) => why,
        Err(_) => "no answer".to_owned(),
    };
    bail!("Unable to start docker client: {why}")
}

/// Listens where Docker looks for plugins. A plugin that nobody asked for is left out if that fails.
pub(super) fn listen(
    options: &mut LaunchOptions,
    inherited: &mut inherited::Sockets,
) -> anyhow::Result<Sockets> {
    let Some(plugin) = &options.plugin else {
        return Ok(Sockets::default());
    };
    end_standby(&options.paths.run_dir);
    match bind(plugin, inherited) {
        Err(error) if !plugin.asked => {
            tracing::warn!("there is no Docker plugin: {error:#}");
            options.plugin = None;
            Ok(Sockets::default())
        }
        bound => bound,
    }
}

fn bind(options: &PluginOptions, inherited: &mut inherited::Sockets) -> anyhow::Result<Sockets> {
    let is_v2 = options.v2_multicast.is_some();
    let scope = if is_v2 { Scope::Global } else { Scope::Stored };
    let mut sockets = Sockets::default();
    for (path, scope, ipam) in [
        (&options.socket, scope, false),
        (&options.mesh_socket, Scope::Local, true),
    ] {
        let Some(path) = path else { continue };
        let name = driver_name(Some(path));
        let (listener, file) = match inherited.take_at(path) {
            Some(socket) => (socket.into(), None),
            None => (make(path)?, Some(path.clone())),
        };
        sockets.0.push(Socket {
            listener,
            driver: Driver { name, scope, ipam },
            file,
        });
    }
    Ok(sockets)
}

/// A socket of our own. What lies there is removed, unless somebody listens.
fn make(path: &Path) -> anyhow::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        bail!("another plugin listens on {}", path.display());
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let failed = || format!("cannot listen on {}", path.display());
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path).with_context(failed)?,
        Ok(_) => bail!("{} exists and is no socket", path.display()),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).with_context(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(MODE)).with_context(failed)?;
    Ok(listener)
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
            (!is_v2 && !options.docker_api.is_empty()).then(|| Follower::new(plugin.clone(), mesh.clone()));
        Some(Self {
            plugin,
            follower,
            record: Record {
                docker: options.docker_api.clone(),
                driver: mesh,
                sockets: Vec::new(),
            },
            standby: options.standby,
            run_dir: options.paths.run_dir.clone(),
            data_dir: options.paths.data_dir.clone(),
        })
    }

    /// Serves until we stop. Docker has the network `weave` afterwards, if it is there.
    pub(super) async fn start(
        self,
        handle: &Handle,
        mut sockets: Sockets,
        stopped: &watch::Receiver<Option<Ending>>,
    ) -> anyhow::Result<Serving> {
        for addr in standby::take_released(&self.data_dir) {
            let addr = std::net::Ipv4Addr::from(addr).to_string();
            if let Err(error) = handle.free_all(addr).await {
                tracing::info!("Docker has given back what it had not: {error}");
            }
        }
        let (mut servers, mut files, mut copies) = (Vec::new(), Vec::new(), Vec::new());
        for Socket {
            listener,
            driver,
            file,
        } in std::mem::take(&mut sockets.0)
        {
            tracing::info!("Docker plugin \"{}\" is there", driver.name);
            if let Some(file) = file {
                copies.push((OwnedFd::from(listener.try_clone()?), driver.clone()));
                files.push(file);
            }
            let mut stopped = stopped.clone();
            let stop = async move {
                let _ = stopped.wait_for(Option::is_some).await;
            };
            let router = server::router(self.plugin.clone(), driver);
            servers.push(tokio::spawn(serve(Listener::inherited(listener)?, router, stop)));
        }
        let record = Record {
            sockets: files.clone(),
            ..self.record.clone()
        };
        if let Err(error) = record.write(&self.run_dir) {
            tracing::warn!("'weave reset' will not know our sockets: {error}");
        }
        let standby = Arc::new(Mutex::new(None));
        // A managed plugin ends as a whole.
        let stands_by = self.standby && self.follower.is_some() && !copies.is_empty();
        let starting = tokio::spawn(stand_by(
            self.clone(),
            handle.clone(),
            copies,
            stands_by,
            standby.clone(),
        ));
        let patience = if inherited::is_awaited() {
            SHORT_PATIENCE
        } else {
            PATIENCE
        };
        if let Some(follower) = &self.follower
            && tokio::time::timeout(patience, follower.ensure_network_if_there())
                .await
                .is_err()
        {
            tracing::warn!("Docker takes long to make the network \"{}\"", network::NAME);
        }
        Ok(Serving {
            service: self,
            servers,
            starting,
            standby,
            files,
        })
    }
}

/// As soon as Docker has a network of ours it needs somebody to answer when we are gone.
async fn stand_by(
    service: Service,
    handle: Handle,
    sockets: Vec<(OwnedFd, Driver)>,
    wanted: bool,
    started: Arc<Mutex<Option<Child>>>,
) {
    if !wanted {
        return;
    }
    service.plugin.networks().wait_for_one().await;
    match start_standby(
        &sockets,
        handle.default_subnet(),
        &service.run_dir,
        &service.data_dir,
    ) {
        Ok(child) => *started.lock().unwrap_or_else(PoisonError::into_inner) = Some(child),
        Err(error) => tracing::warn!("nobody will answer Docker while weave is away: {error}"),
    }
}

impl Serving {
    /// After our stop: whoever stands in for us takes over, if Docker has networks of ours.
    pub(super) async fn stop(self) {
        for server in self.servers {
            let _ = server.await;
        }
        self.starting.abort();
        let _ = self.starting.await;
        let standby = self.standby.lock().unwrap_or_else(PoisonError::into_inner).take();
        if standby.is_some() && !self.service.plugin.networks().is_empty() {
            // Its standard input is closed with this.
            return;
        }
        end_standby(&self.service.run_dir);
        self.files.iter().for_each(remove);
    }
}

impl Daemon {
    /// The plugin for the report.
    pub(super) fn plugin(&self) -> Option<report::Plugin> {
        let options = self.options.plugin.as_ref()?;
        let text = |path: &Option<PathBuf>| {
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
