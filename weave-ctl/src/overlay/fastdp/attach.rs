//! Programs at interfaces: through TCX links where the kernel has them (since Linux 6.6, commit
//! e420bed02507), else as clsact filters. Both outlive the controller and are replaced atomically.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, TcError};

use super::loader::links_dir;

/// How tc programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// TCX links, pinned.
    Tcx,
    /// Filters at the clsact qdisc.
    Clsact,
}

impl Mode {
    /// What to try first: TCX, unless `WEAVE_ATTACH=clsact` asks for the older way, which helps to
    /// find out whether a problem has to do with TCX.
    #[must_use]
    pub fn from_env() -> Self {
        match std::env::var("WEAVE_ATTACH") {
            Ok(mode) if mode == "clsact" => Self::Clsact,
            _ => Self::Tcx,
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// Which program goes where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// A container's host-side veth.
    Port,
    /// An underlay interface.
    Underlay,
    /// A VXLAN device, what it receives.
    VxlanIn,
    /// A VXLAN device, what the bridge sends through it.
    VxlanOut,
    /// The TAP of sleeve, what userspace writes.
    SleeveIn,
    /// The TAP of sleeve, what userspace reads.
    SleeveOut,
}

impl Hook {
    /// The program's name in the object.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Port => "weave_port",
            Self::Underlay => "weave_underlay",
            Self::VxlanIn => "weave_vxlan_in",
            Self::VxlanOut => "weave_vxlan_out",
            Self::SleeveIn => "weave_sleeve_in",
            Self::SleeveOut => "weave_sleeve_out",
        }
    }

    fn direction(self) -> TcAttachType {
        match self {
            Self::VxlanOut | Self::SleeveOut => TcAttachType::Egress,
            _ => TcAttachType::Ingress,
        }
    }

    fn pin_prefix(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Underlay => "underlay",
            Self::VxlanIn => "vxlan-in",
            Self::VxlanOut => "vxlan-out",
            Self::SleeveIn => "sleeve-in",
            Self::SleeveOut => "sleeve-out",
        }
    }
}

/// A program could not be attached.
#[derive(Debug, thiserror::Error)]
#[error("cannot attach {program} to {interface}: {error:#}")]
pub struct AttachError {
    program: &'static str,
    interface: String,
    error: anyhow::Error,
}

/// Priority of our clsact filters. Fixed, so that a later controller finds and replaces them.
const PRIORITY: u16 = 0x7765;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// The pin of a link.
#[must_use]
pub fn link_pin(bpf_dir: &Path, hook: Hook, ifindex: u32) -> PathBuf {
    links_dir(bpf_dir).join(format!("{}-{ifindex}", hook.pin_prefix()))
}

/// Attaches a program to an interface, or replaces what an earlier controller attached there.
///
/// `mode` is what to try first; the mode that worked is returned.
pub fn attach(
    program: &mut SchedClassifier,
    bpf_dir: &Path,
    hook: Hook,
    interface: &str,
    ifindex: u32,
    mode: Mode,
) -> Result<Mode, AttachError> {
    let failed = |error: anyhow::Error| AttachError {
        program: hook.program(),
        interface: interface.to_owned(),
        error,
    };
    if mode == Mode::Tcx {
        match attach_tcx(program, &link_pin(bpf_dir, hook, ifindex), hook, interface) {
            Ok(()) => return Ok(Mode::Tcx),
            Err(error) if is_unsupported(&error) => {
                tracing::info!("this kernel has no TCX (needs Linux 6.6): attaching to clsact");
            }
            Err(error) => return Err(failed(error)),
        }
    }
    attach_clsact(program, hook, interface).map_err(failed)?;
    Ok(Mode::Clsact)
}

/// Before 6.6 the attach type is unknown to BPF_LINK_CREATE: EINVAL.
fn is_unsupported(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.raw_os_error() == Some(libc::EINVAL))
    })
}

fn attach_tcx(program: &mut SchedClassifier, pin: &Path, hook: Hook, interface: &str) -> anyhow::Result<()> {
    match PinnedLink::from_pin(pin) {
        Ok(pinned) => {
            let link = SchedClassifierLink::try_from(FdLink::from(pinned))?;
            match program.attach_to_link(link) {
                Ok(id) => {
                    // The pin stays; our own descriptor may go.
                    drop(program.take_link(id)?);
                    return Ok(());
                }
                // The interface went and its number came back: the link is dead.
                Err(error) => {
                    tracing::debug!("replacing the dead link {}: {error}", pin.display());
                    fs::remove_file(pin)?;
                }
            }
        }
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    // First at a container's port and at our own device, where nobody else should decide before
    // us; last on the underlay, behind firewalls and balancers of others.
    let order = if hook == Hook::Underlay {
        LinkOrder::last()
    } else {
        LinkOrder::first()
    };
    let id = program.attach_with_options(interface, hook.direction(), TcAttachOptions::TcxOrder(order))?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(pin)?;
    Ok(())
}

fn attach_clsact(program: &mut SchedClassifier, hook: Hook, interface: &str) -> anyhow::Result<()> {
    match tc::qdisc_add_clsact(interface) {
        Ok(()) => {}
        Err(TcError::AlreadyAttached) => {}
        Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let options = || {
        TcAttachOptions::Netlink(NlOptions {
            priority: PRIORITY,
            handle: HANDLE,
            ..NlOptions::default()
        })
    };
    let id = match program.attach_with_options(interface, hook.direction(), options()) {
        Ok(id) => id,
        Err(ProgramError::TcError(TcError::NetlinkError(error)))
            if error.raw_os_error() == Some(libc::EEXIST) =>
        {
            let old = SchedClassifierLink::attached(interface, hook.direction(), PRIORITY, HANDLE, None)?;
            program.attach_to_link(old)?
        }
        Err(error) => return Err(error.into()),
    };
    // Dropping it would detach the filter.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Detaches the program of `hook`; nothing attached is fine.
pub fn detach(bpf_dir: &Path, hook: Hook, interface: &str, ifindex: u32) {
    let pin = link_pin(bpf_dir, hook, ifindex);
    if pin.exists() {
        if let Err(error) = fs::remove_file(&pin) {
            tracing::warn!("cannot remove {}: {error}", pin.display());
        }
        return;
    }
    if let Ok(link) = SchedClassifierLink::attached(interface, hook.direction(), PRIORITY, HANDLE, None) {
        // Dropped, it deletes the filter, if there is one.
        drop(link);
    }
}

/// Is our program attached there through TCX? `None` if the kernel does not tell.
#[must_use]
pub fn is_attached(hook: Hook, interface: &str) -> Option<bool> {
    // The kernel keeps this many characters of a program's name.
    const KEPT: usize = 15;
    let (_, programs) = SchedClassifier::query_tcx(interface, hook.direction()).ok()?;
    let wanted = hook.program().as_bytes();
    let wanted = wanted.get(..KEPT).unwrap_or(wanted);
    Some(programs.iter().any(|program| program.name() == wanted))
}

/// Removes our filter from a container's port or an underlay interface; none is fine. The qdisc stays:
/// others may use it.
pub fn remove_filter(interface: &str) {
    // Dropped, the link deletes the filter. Both hooks are on ingress.
    drop(SchedClassifierLink::attached(
        interface,
        Hook::Underlay.direction(),
        PRIORITY,
        HANDLE,
        None,
    ));
}

/// Removes pins of links whose interface is gone (`alive` tells by number).
pub fn sweep(bpf_dir: &Path, alive: impl Fn(u32) -> bool) {
    let Ok(entries) = fs::read_dir(links_dir(bpf_dir)) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let ifindex = name
            .to_str()
            .and_then(|n| n.rsplit_once('-'))
            .and_then(|(_, n)| n.parse().ok());
        if ifindex.is_some_and(|n| !alive(n)) {
            tracing::debug!(
                "removing the link {}: its interface is gone",
                entry.path().display()
            );
            let _ = fs::remove_file(entry.path());
        }
    }
}
