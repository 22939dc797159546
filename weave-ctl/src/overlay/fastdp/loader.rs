//! Loads the BPF object with its maps pinned, so that they outlive the controller.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use aya::programs::{ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use weave_common::{
    Config, Counters, EVENT_RING, FloodHops, MAP_VERSION, MAX_MACS, MAX_PEERS, MAX_SOURCES, MacEntry, MacKey,
    NeighbourTraffic, NextHop, Sender, Source,
};

use super::object;

/// Why the fast path could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No object file.
    #[error(transparent)]
    Object(#[from] object::NotFound),
    /// The pin directory is no BPF file system.
    #[error(
        "{0} is not in a BPF file system: run `mount -t bpf bpf /sys/fs/bpf` (only if nothing is mounted there), or set WEAVE_BPF_DIR"
    )]
    NoBpffs(PathBuf),
    /// The pin directory cannot be used.
    #[error("cannot use {path} for pins: {error}")]
    Pins {
        /// The directory or pin.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The kernel or aya refuses the object.
    #[error("cannot load the BPF object {path}")]
    Load {
        /// The object file.
        path: PathBuf,
        /// Why.
        source: Box<EbpfError>,
    },
    /// We lack the right.
    #[error(
        "BPF is not permitted here: it takes CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN (a container: --privileged), and before Linux 5.11 CAP_SYS_RESOURCE or `ulimit -l unlimited`"
    )]
    NotPermitted(#[source] Box<EbpfError>),
    /// The verifier refuses a program.
    #[error("cannot load the BPF program {name}")]
    Program {
        /// Its name.
        name: &'static str,
        /// Why, with the verifier's log.
        source: Box<ProgramError>,
    },
    /// The object has no such program or map: it is another version.
    #[error(
        "the BPF object has no {0}: it belongs to another version of weave; run `cargo xtask build-ebpf`"
    )]
    Missing(&'static str),
}

/// One map's shape: a pin of another shape is not reused.
struct Shape {
    name: &'static str,
    key: usize,
    value: usize,
    max_entries: u32,
}

const SHAPES: [Shape; 10] = [
    Shape {
        name: "CONFIG",
        key: 4,
        value: size_of::<Config>(),
        max_entries: 1,
    },
    Shape {
        name: "MACS",
        key: size_of::<MacKey>(),
        value: size_of::<MacEntry>(),
        max_entries: MAX_MACS,
    },
    Shape {
        name: "PEERS",
        key: 4,
        value: size_of::<NextHop>(),
        max_entries: MAX_PEERS,
    },
    Shape {
        name: "FLOODS",
        key: 4,
        value: size_of::<FloodHops>(),
        max_entries: MAX_PEERS,
    },
    Shape {
        name: "SENDERS",
        key: 4,
        value: size_of::<Sender>(),
        max_entries: MAX_PEERS,
    },
    Shape {
        name: "SOURCES",
        key: 4,
        value: size_of::<Source>(),
        max_entries: MAX_SOURCES,
    },
    Shape {
        name: "COUNTERS",
        key: 4,
        value: size_of::<Counters>(),
        max_entries: 1,
    },
    Shape {
        name: "TRAFFIC",
        key: 4,
        value: 4,
        max_entries: MAX_PEERS,
    },
    Shape {
        name: "NEIGHBOURS",
        key: 4,
        value: size_of::<NeighbourTraffic>(),
        max_entries: MAX_PEERS,
    },
    Shape {
        name: "EVENTS",
        key: 0,
        value: 0,
        max_entries: EVENT_RING,
    },
];

/// Names of the tc programs.
pub const TC_PROGRAMS: [&str; 6] = [
    "weave_port",
    "weave_underlay",
    "weave_vxlan_in",
    "weave_vxlan_out",
    "weave_sleeve_in",
    "weave_sleeve_out",
];
/// Name of the XDP program.
pub const XDP_PROGRAM: &str = "weave_xdp";

/// Where the pins of this version of the maps are, below the pin directory.
#[must_use]
pub fn maps_dir(bpf_dir: &Path) -> PathBuf {
    bpf_dir.join(format!("v{MAP_VERSION}"))
}

/// Where the links are pinned.
#[must_use]
pub fn links_dir(bpf_dir: &Path) -> PathBuf {
    bpf_dir.join("links")
}

/// The loaded object.
pub struct Loaded {
    /// Programs, verified by the kernel, and maps.
    pub ebpf: Ebpf,
    /// The maps were there before: an earlier controller's state.
    pub adopted: bool,
}

/// Loads all programs and maps; maps pinned below `bpf_dir` are reused if their shape is right.
pub fn load(bpf_dir: &Path) -> Result<Loaded, LoadError> {
    let path = object::find()?;
    let maps = maps_dir(bpf_dir);
    prepare_dir(bpf_dir, &maps)?;
    prepare_dir(bpf_dir, &links_dir(bpf_dir))?;
    raise_memlock();
    let adopted = drop_misshapen(&maps)?;
    let mut loader = EbpfLoader::new();
    for shape in &SHAPES {
        loader.map_pin_path(shape.name, maps.join(shape.name));
    }
    let mut ebpf = loader
        .load_file(&path)
        .map_err(|error| match not_permitted(&error) {
            true => LoadError::NotPermitted(Box::new(error)),
            false => LoadError::Load {
                path,
                source: Box::new(error),
            },
        })?;
    for name in TC_PROGRAMS {
        let program = ebpf.program_mut(name).ok_or(LoadError::Missing(name))?;
        let program: &mut SchedClassifier = program.try_into().map_err(|error| LoadError::Program {
            name,
            source: Box::new(error),
        })?;
        program.load().map_err(|error| refused(name, error))?;
    }
    let program = ebpf
        .program_mut(XDP_PROGRAM)
        .ok_or(LoadError::Missing(XDP_PROGRAM))?;
    let program: &mut Xdp = program.try_into().map_err(|error| LoadError::Program {
        name: XDP_PROGRAM,
        source: Box::new(error),
    })?;
    program.load().map_err(|error| refused(XDP_PROGRAM, error))?;
    remove_other_versions(bpf_dir);
    Ok(Loaded { ebpf, adopted })
}

fn refused(name: &'static str, error: ProgramError) -> LoadError {
    if not_permitted(&error) {
        return LoadError::NotPermitted(Box::new(error.into()));
    }
    LoadError::Program {
        name,
        source: Box::new(error),
    }
}

/// The kernel answers EPERM where a right is missing; the verifier's refusal is EACCES.
fn not_permitted(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.raw_os_error() == Some(libc::EPERM))
    })
}

/// Unpins what other versions left: their maps, and the links of programs that read them, which would
/// decide about frames by tables that nobody fills any more.
fn remove_other_versions(bpf_dir: &Path) {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let is_version = |name: &str| name.strip_prefix('v').is_some_and(|v| v.parse::<u32>().is_ok());
    let ours = maps_dir(bpf_dir);
    let others: Vec<PathBuf> = entries(bpf_dir)
        .filter(|entry| entry.file_name().to_str().is_some_and(is_version))
        .map(|entry| entry.path())
        .filter(|path| *path != ours)
        .collect();
    if others.is_empty() {
        return;
    }
    tracing::info!("replacing programs and maps of another version");
    let links = entries(&links_dir(bpf_dir)).map(|entry| fs::remove_file(entry.path()));
    for result in links.chain(others.iter().map(fs::remove_dir_all)) {
        if let Err(error) = result {
            tracing::warn!("cannot remove a pin of another version: {error}");
        }
    }
}

fn prepare_dir(bpf_dir: &Path, dir: &Path) -> Result<(), LoadError> {
    // Where no BPF file system is mounted, sysfs takes no directories: the first one that exists tells.
    let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(dir);
    match nix::sys::statfs::statfs(existing) {
        Ok(fs) if fs.filesystem_type() == nix::sys::statfs::FsType(libc::BPF_FS_MAGIC as _) => {}
        Ok(_) => return Err(LoadError::NoBpffs(bpf_dir.to_owned())),
        Err(error) => {
            return Err(LoadError::Pins {
                path: existing.to_owned(),
                error: error.into(),
            });
        }
    }
    fs::create_dir_all(dir).map_err(|error| LoadError::Pins {
        path: dir.to_owned(),
        error,
    })
}

/// Unpins all maps if one of them has another shape. Returns whether there are pins to adopt.
fn drop_misshapen(maps: &Path) -> Result<bool, LoadError> {
    let right = |shape: &Shape| -> Option<bool> {
        let path = maps.join(shape.name);
        if !path.exists() {
            return None;
        }
        let Ok(info) = MapData::from_pin(&path).and_then(|map| map.info()) else {
            return Some(false);
        };
        Some(
            info.key_size() as usize == shape.key
                && info.value_size() as usize == shape.value
                && info.max_entries() == shape.max_entries,
        )
    };
    let found: Vec<Option<bool>> = SHAPES.iter().map(right).collect();
    if found.iter().all(|f| *f == Some(true)) {
        return Ok(true);
    }
    // A half set cannot be trusted either: programs still running keep their own maps.
    if found.iter().any(Option::is_some) {
        tracing::info!("pinned maps are of another shape, or not for us to read: starting afresh");
    }
    for shape in SHAPES
        .iter()
        .zip(&found)
        .filter(|(_, found)| found.is_some())
        .map(|(shape, _)| shape)
    {
        let path = maps.join(shape.name);
        fs::remove_file(&path).map_err(|error| LoadError::Pins { path, error })?;
    }
    Ok(false)
}

/// Needed before Linux 5.11 only (commit 3e0008336ae3 and followers), where memory for maps
/// counts against this limit; without CAP_SYS_RESOURCE it fails, and loading tells.
fn raise_memlock() {
    let unlimited = nix::sys::resource::RLIM_INFINITY;
    if let Err(error) =
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK, unlimited, unlimited)
    {
        tracing::debug!("RLIMIT_MEMLOCK stays as it is: {error}");
    }
}
