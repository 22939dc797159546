//! What the checks need: the daemon's report, and the host as it is. Everything that cannot be found out is
//! left open; nothing here changes anything.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use crate::api::report::Report;
use crate::cli::client::{AskError, Client};
use crate::cli::lock::Lock;
use crate::cli::{Context, Paths};
use crate::daemon::TAP;
use crate::doctor::HostFacts;
use crate::doctor::facts::{Answer, Bridge, Data, Disk, Stranger};
use crate::ipam::address::Cidr;
use crate::net::bridge::HOST_END;
use crate::net::link::Link;
use crate::net::{Netlink, overlap};
use crate::overlay::fastdp::attach::{self, Hook};
use crate::overlay::fastdp::{loader, object};
use crate::store::{self, Store, StoreError};

/// A daemon that is well answers at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// For a name of a target.
const NAME_PATIENCE: Duration = Duration::from_secs(2);
/// How much of the end of the log is read, in bytes, and how much of a line is shown, in characters.
const LOG_TAIL: u64 = 64 * 1024;
const LINE: usize = 200;

/// All that was seen.
pub(super) struct Seen {
    /// The daemon's, if it gave one.
    pub report: Option<Report>,
    /// The rest.
    pub facts: HostFacts,
}

pub(super) async fn look(context: &Context) -> Seen {
    let env = &context.env;
    let (report, answer) = ask(&env.client()).await;
    let lock_holder = Lock::holder(&env.paths.run_dir);
    let root = nix::unistd::geteuid().is_root();
    let alone = lock_holder.is_none() && report.is_none();
    let mut facts = HostFacts {
        version: crate::VERSION.to_owned(),
        root,
        address: env.http_addr.clone(),
        answer,
        lock_holder,
        complaint: complaint(&env.paths.log()),
        kernel: kernel(),
        no_bpffs: (!in_bpffs(&env.paths.bpf_dir)).then(|| env.paths.bpf_dir.display().to_string()),
        no_tun: !Path::new("/dev/net/tun").exists(),
        no_object: object::find().err().map(|error| error.to_string()),
        bridge_name: env.bridge.clone(),
        disk: disk(report.as_ref(), &env.paths),
        resolved: resolve(report.as_ref()).await,
        ..HostFacts::default()
    };
    if alone && root {
        facts.data = data(&env.paths.data_dir);
    }
    if let Ok(nl) = Netlink::current().await
        && let Ok(links) = nl.links().await
    {
        interfaces(&mut facts, report.as_ref(), &links);
        if alone {
            facts.stale_pins = stale_pins(&env.paths.bpf_dir, &links);
            facts.strangers = strangers(context);
        }
        let range = report.as_ref().and_then(|report| report.ipam.as_ref());
        if let Some(range) = range.and_then(|ipam| ipam.range.parse::<Cidr>().ok()) {
            let checked = overlap::check_network(&nl, range, &[&env.bridge]).await;
            facts.overlap = checked.err().map(|error| error.to_string());
        }
    }
    Seen { report, facts }
}

async fn ask(client: &Client) -> (Option<Report>, Answer) {
    let asked = client.ask_accepting("GET", "/report", &[], Some("application/json"));
    match tokio::time::timeout(PATIENCE, asked).await {
        Err(_) => (None, Answer::Silence),
        Ok(Err(AskError::Connect { source, .. })) if source.kind() == std::io::ErrorKind::TimedOut => {
            (None, Answer::Silence)
        }
        Ok(Err(error @ AskError::Connect { .. })) => (None, Answer::Nobody(error.to_string())),
        Ok(Err(AskError::Answer { reason, .. })) => (None, Answer::Other(reason)),
        Ok(Ok(reply)) if reply.status / 100 != 2 => (
            None,
            Answer::Other(format!("its answer has status {}", reply.status)),
        ),
        Ok(Ok(reply)) => match serde_json::from_str(&reply.body) {
            Ok(report) => (Some(report), Answer::Report),
            Err(error) => (None, Answer::Other(format!("its answer is no report: {error}"))),
        },
    }
}

/// The latest line of the log that tells of an error.
fn complaint(log: &Path) -> Option<String> {
    let mut file = fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let bad =
        |line: &&str| line.starts_with("FATA") || line.starts_with("ERRO") || line.contains("panicked at");
    Some(text.lines().rfind(bad)?.chars().take(LINE).collect())
}

fn kernel() -> Option<(u32, u32)> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The directory itself, or the nearest one above it that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(path)
}

fn in_bpffs(dir: &Path) -> bool {
    let bpf = nix::sys::statfs::FsType(libc::BPF_FS_MAGIC as _);
    nix::sys::statfs::statfs(existing(dir)).is_ok_and(|fs| fs.filesystem_type() == bpf)
}

fn disk(report: Option<&Report>, paths: &Paths) -> Option<Disk> {
    let told = report.and_then(|report| report.process.as_ref());
    let dir = told.map_or_else(
        || paths.data_dir.clone(),
        |process| process.data_dir.clone().into(),
    );
    let fs = nix::sys::statvfs::statvfs(existing(&dir)).ok()?;
    let unit = fs.fragment_size();
    Some(Disk {
        path: dir.display().to_string(),
        free: fs.blocks_available().saturating_mul(unit),
        total: fs.blocks().saturating_mul(unit),
    })
}

/// Opens the data file as a daemon would; only while there is none.
fn data(dir: &Path) -> Data {
    let path = dir.join(store::FILE_NAME);
    if !path.exists() {
        return Data::Absent;
    }
    match Store::open(&path).and_then(|store| store.load()) {
        Ok(_) => Data::Good,
        Err(StoreError::Locked(_)) => Data::Unseen,
        Err(error) => Data::Bad(error.to_string()),
    }
}

/// Addresses of targets that are names, where one is needed to tell which target an attempt is for.
async fn resolve(report: Option<&Report>) -> BTreeMap<String, Vec<IpAddr>> {
    let mut resolved = BTreeMap::new();
    let Some(router) = report.map(|report| &report.router) else {
        return resolved;
    };
    if router
        .connections
        .iter()
        .all(|connection| connection.attempt.is_none())
    {
        return resolved;
    }
    for target in &router.targets {
        let host = target.rsplit_once(':').map_or(target.as_str(), |(host, _)| host);
        if target.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok() {
            continue;
        }
        let asked = tokio::net::lookup_host((host, router.port));
        if let Ok(Ok(found)) = tokio::time::timeout(NAME_PATIENCE, asked).await {
            resolved.insert(host.to_owned(), found.map(|address| address.ip()).collect());
        }
    }
    resolved
}

fn interfaces(facts: &mut HostFacts, report: Option<&Report>, links: &[Link]) {
    let bridge = links.iter().find(|link| link.name == facts.bridge_name);
    facts.unplugged = links
        .iter()
        .filter(|link| link.name.starts_with(HOST_END) && link.master.is_none())
        .map(|link| link.name.clone())
        .collect();
    let Some(bridge) = bridge else { return };
    let ports = links.iter().filter(|link| link.master == Some(bridge.index));
    let ports: Vec<String> = ports.map(|link| link.name.clone()).collect();
    let fast = report.and_then(|report| report.fast_datapath.as_ref());
    let bare = fast
        // Filters at clsact are not asked for one by one.
        .filter(|fast| facts.root && fast.program.loaded && fast.attach == "tcx")
        .map(|fast| {
            let underlays = fast.underlay.iter().map(|underlay| underlay.name.clone());
            let all = ports.iter().cloned().chain(underlays);
            all.filter(|name| lacks_program(name, fast.underlay.iter().any(|u| u.name == *name)))
                .collect()
        });
    facts.bridge = Some(Bridge {
        up: bridge.up,
        bare: bare.unwrap_or_default(),
        ports,
    });
}

/// Should it have a program of ours, and has none?
fn lacks_program(name: &str, underlay: bool) -> bool {
    let hooks: &[Hook] = match name {
        _ if underlay => &[Hook::Underlay],
        TAP => &[Hook::SleeveIn, Hook::SleeveOut],
        _ if name.starts_with("vxlan-") => &[Hook::VxlanIn, Hook::VxlanOut],
        _ if name.starts_with(HOST_END) => &[Hook::Port],
        _ => &[],
    };
    // What cannot be asked is not held against anybody.
    hooks
        .iter()
        .any(|hook| attach::is_attached(*hook, name) == Some(false))
}

/// Pins of links whose interface is gone.
fn stale_pins(bpf_dir: &Path, links: &[Link]) -> Vec<String> {
    let entries = fs::read_dir(loader::links_dir(bpf_dir))
        .into_iter()
        .flatten()
        .flatten();
    let stale = entries.filter(|entry| {
        let name = entry.file_name();
        let index = name
            .to_str()
            .and_then(|name| name.rsplit_once('-')?.1.parse::<u32>().ok());
        index.is_some_and(|index| links.iter().all(|link| link.index != index))
    });
    stale.map(|entry| entry.path().display().to_string()).collect()
}

/// Who listens where a daemon of ours would.
fn strangers(context: &Context) -> Vec<Stranger> {
    let env = &context.env;
    let mesh: u16 = env
        .port
        .as_ref()
        .and_then(|port| port.parse().ok())
        .unwrap_or(6783);
    let port_of = |address: &str| {
        address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse::<u16>().ok())
    };
    let tcp = [Some(mesh), port_of(&env.http_addr), port_of(&env.status_addr)];
    let held = super::listeners::tcp(tcp.iter().flatten().copied());
    let udp = super::listeners::udp([mesh]);
    held.into_iter()
        .map(|(port, who)| (format!("TCP port {port}"), who))
        .chain(
            udp.into_iter()
                .map(|(port, who)| (format!("UDP port {port}"), who)),
        )
        .map(|(port, who)| Stranger { port, who })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_complaint_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("weave.log");
        assert_eq!(complaint(&log), None);
        fs::write(&log, "ERRO: one\nINFO: fine\nFATA: two\nINFO: bye\n").unwrap();
        assert_eq!(complaint(&log).unwrap(), "FATA: two");
        fs::write(&log, "INFO: fine\n").unwrap();
        assert_eq!(complaint(&log), None);
    }

    #[test]
    fn a_data_file_that_is_damaged_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(data(dir.path()), Data::Absent);
        assert!(
            !dir.path().join(store::FILE_NAME).exists(),
            "looking makes nothing"
        );
        drop(Store::open(dir.path().join(store::FILE_NAME)).unwrap());
        assert_eq!(data(dir.path()), Data::Good);
        fs::write(dir.path().join(store::FILE_NAME), "this is no database").unwrap();
        assert!(matches!(data(dir.path()), Data::Bad(why) if why.contains("damaged")));
    }

    #[test]
    fn pins_of_interfaces_that_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let links_dir = loader::links_dir(dir.path());
        fs::create_dir_all(&links_dir).unwrap();
        for name in ["port-7", "underlay-8", "other"] {
            fs::write(links_dir.join(name), "").unwrap();
        }
        let here = Link {
            index: 8,
            ..Link::default()
        };
        let stale = stale_pins(dir.path(), &[here]);
        assert_eq!(stale, [links_dir.join("port-7").display().to_string()]);
    }
}
