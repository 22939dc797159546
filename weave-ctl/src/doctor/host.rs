//! The host: kernel, bridge, routes, disk, limits.

use super::{Finding, Fix, HostFacts, list};
use crate::api::report::Report;
use crate::daemon::TAP;

/// The oldest kernel on which the fast path was run.
const OLDEST: (u32, u32) = (5, 10);
/// Room on the disk that makes one think, and that is none, in bytes.
const LOW_DISK: u64 = 64 << 20;
const NO_DISK: u64 = 4 << 20;

pub(super) fn check(report: Option<&Report>, facts: &HostFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    if !facts.root {
        found.push(
            Finding::note(
                "not-root",
                "not run as root: ports, programs and the data file were not looked at",
            )
            .run("sudo weave-ctl doctor"),
        );
    }
    kernel(report, facts, &mut found);
    bridge(report, facts, &mut found);
    if let Some(overlap) = &facts.overlap {
        found.push(
            Finding::warning("route-overlap", overlap.clone())
                .why("some container addresses and something outside the overlay are the same")
                .run("remove the route, or choose another --ipalloc-range on all hosts"),
        );
    }
    if let Some(disk) = facts.disk.as_ref().filter(|disk| disk.free < LOW_DISK) {
        let what = format!(
            "{} MB of {} MB are free on the disk with {}",
            disk.free >> 20,
            disk.total >> 20,
            disk.path
        );
        let finding = match disk.free < NO_DISK {
            true => Finding::problem("disk-full", what),
            false => Finding::warning("disk-full", what),
        };
        found.push(
            finding
                .why("no address is given out that cannot be written down")
                .run("make room there, or launch with another --data-dir (after moving the data)"),
        );
    }
    if let Some(process) = report.and_then(|report| report.process.as_ref())
        && process.open_files.saturating_mul(10) >= process.open_files_limit.saturating_mul(8)
        && process.open_files_limit > 0
    {
        found.push(
            Finding::warning(
                "file-limit",
                format!(
                    "the daemon has {} of at most {} files open",
                    process.open_files, process.open_files_limit
                ),
            )
            .why("at the limit no new connection is taken, and commands fail")
            .run("ulimit -n 65536 (or LimitNOFILE= in its unit), then stop and launch"),
        );
    }
    found
}

/// What a launch would stumble over. A daemon that runs tells by itself what it lacks.
fn kernel(report: Option<&Report>, facts: &HostFacts, found: &mut Vec<Finding>) {
    if report.is_some() {
        return;
    }
    if let Some((major, minor)) = facts.kernel.filter(|kernel| *kernel < OLDEST) {
        found.push(
            Finding::warning("old-kernel", format!("this is Linux {major}.{minor}"))
                .why("the fast path needs 5.10 or later; without it frames go through userspace")
                .run("update the kernel"),
        );
    }
    if let Some(dir) = &facts.no_bpffs {
        found.push(
            Finding::warning("no-bpffs", format!("{dir} is not in a BPF file system"))
                .why("without it there is no fast path, and frames go through userspace")
                .run("mount -t bpf bpf /sys/fs/bpf"),
        );
    }
    if facts.no_tun {
        found.push(
            Finding::warning("no-tun", "there is no /dev/net/tun")
                .why("without it there is no sleeve: peers that the fast path does not reach are cut off")
                .run("modprobe tun"),
        );
    }
    if let Some(why) = &facts.no_object {
        found.push(
            Finding::warning("no-bpf-object", why.clone())
                .why("without it there is no fast path, and frames go through userspace")
                .run("cargo xtask install"),
        );
    }
}

fn bridge(report: Option<&Report>, facts: &HostFacts, found: &mut Vec<Finding>) {
    let name = &facts.bridge_name;
    let relaunch = "weave stop && weave launch --resume ... (with the options of the last launch)";
    if let Some(report) = report.filter(|report| report.process.is_some()) {
        let Some(bridge) = &facts.bridge else {
            found.push(
                Finding::problem(
                    "bridge-missing",
                    format!("the daemon runs, but there is no bridge {name}"),
                )
                .why("containers of this host are cut off from everything")
                .run(relaunch)
                .run("or set WEAVE_BRIDGE, if it was launched with another --weave-bridge"),
            );
            return;
        };
        if !bridge.up {
            found.push(
                Finding::problem("bridge-down", format!("the bridge {name} is down"))
                    .why("containers of this host are cut off from everything")
                    .run(format!("ip link set {name} up")),
            );
        }
        let vxlan = format!("vxlan-{}", report.router.port.wrapping_add(1));
        let fast = report
            .fast_datapath
            .as_ref()
            .is_some_and(|fast| fast.program.loaded);
        let sleeve = report
            .sleeve
            .as_ref()
            .is_some_and(|sleeve| sleeve.trouble.is_none());
        let wanted = [(fast, vxlan.as_str()), (sleeve, TAP)];
        for (_, port) in wanted
            .iter()
            .filter(|(wanted, port)| *wanted && !bridge.ports.iter().any(|p| p == port))
        {
            found.push(
                Finding::problem("port-missing", format!("{port} is no port of the bridge {name}"))
                    .why("frames for other hosts do not leave this one")
                    .run(format!("ip link set {port} master {name}"))
                    .run(format!("if there is no {port}: {relaunch}")),
            );
        }
    }
    if !facts.unplugged.is_empty() {
        let mut finding = Finding::problem(
            "container-unplugged",
            format!("{} should be ports of the bridge {name}", list(&facts.unplugged)),
        )
        .why("these containers are cut off from everything");
        for port in &facts.unplugged {
            finding = finding
                .run(format!("ip link set {port} master {name}"))
                .fix(Fix::Replug { port: port.clone() });
        }
        found.push(finding);
    }
    let Some(bridge) = facts
        .bridge
        .as_ref()
        .filter(|bridge| report.is_some() && !bridge.bare.is_empty())
    else {
        return;
    };
    let mut finding = Finding::warning(
        "program-detached",
        format!("weave's program is no longer attached to {}", list(&bridge.bare)),
    )
    .why("frames there do not take the fast path; through a VXLAN device they are not received at all");
    for port in &bridge.bare {
        finding = match is_container(port) {
            true => finding
                .run(format!(
                    "ip link set {port} nomaster && ip link set {port} master {name}"
                ))
                .fix(Fix::Replug { port: port.clone() }),
            false => finding.run(relaunch),
        };
    }
    found.push(finding);
}

/// Host ends of containers' interfaces: the daemon attaches to them when they are plugged in.
pub(super) fn is_container(port: &str) -> bool {
    port.starts_with(crate::net::bridge::HOST_END)
}
