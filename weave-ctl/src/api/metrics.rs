//! The Prometheus text of control.md 3.5, made from the report.
//!
//! Written by hand: the usual libraries produce OpenMetrics, where a counter's family has no
//! `_total`, so `# TYPE weave_connection_terminations_total` of the original could not be kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write as _};

use super::report::{Connection, Ipam, Report, State};

/// The metrics as text.
#[must_use]
pub fn render(report: &Report) -> String {
    let mut page = Page::default();
    process(&mut page);
    router(&mut page, report);
    if let Some(dns) = &report.dns {
        let ours = dns
            .entries
            .iter()
            .filter(|e| e.tombstone == 0 && e.origin == report.router.name);
        page.gauge("weave_dns_entries", "Number of DNS entries.", ours.count());
    }
    if let Some(fastdp) = &report.fast_datapath {
        let help = "Number of packets seen by the fast path.";
        page.verdicts("weave_fastdp_packets_total", help, &fastdp.counters);
    }
    if let Some(sleeve) = &report.sleeve {
        let help = "Number of packets seen by sleeve.";
        page.verdicts("weave_sleeve_packets_total", help, &sleeve.counters);
    }
    fallbacks(&mut page, report);
    if let Some(ipam_report) = &report.ipam {
        ipam(&mut page, ipam_report);
    }
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, help: &str, kind: &str) {
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            let text = text
                .replace('\\', r"\\")
                .replace('"', r#"\""#)
                .replace('\n', r"\n");
            let open = if i == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{open}{label}=\"{text}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }

    fn single(&mut self, name: &str, help: &str, kind: &str, value: impl Display) {
        self.family(name, help, kind);
        self.sample(name, &[], value);
    }

    fn verdicts(&mut self, name: &str, help: &str, counters: &BTreeMap<String, u64>) {
        self.family(name, help, "counter");
        for (verdict, count) in counters {
            self.sample(name, &[("verdict", verdict)], count);
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.single(name, help, "gauge", value);
    }
}

fn router(page: &mut Page, report: &Report) {
    let router = &report.router;
    page.single(
        "weave_connection_terminations_total",
        "Number of peer-to-peer connections terminated.",
        "counter",
        router.termination_count,
    );
    // Per state and overlay: how many are encrypted, how many are not.
    let mut counts: BTreeMap<(State, &str), [u64; 2]> = BTreeMap::new();
    for connection in &router.connections {
        let attr = |name: &str| connection.attrs.as_ref().and_then(|a| a.get(name));
        let overlay = attr("name").and_then(|v| v.as_str()).unwrap_or("unknown");
        let encrypted = attr("encrypted")
            .and_then(serde_json::Value::as_bool)
            .unwrap_or(false);
        counts.entry((connection.state, overlay)).or_default()[usize::from(encrypted)] += 1;
    }
    if counts.is_empty() {
        return;
    }
    page.family(
        "weave_connections",
        "Number of peer-to-peer connections.",
        "gauge",
    );
    for ((state, overlay), [clear, encrypted]) in counts {
        for (encryption, count) in [("", clear), ("yes", encrypted)] {
            let labels = [
                ("encryption", encryption),
                ("state", state.as_str()),
                ("type", overlay),
            ];
            page.sample("weave_connections", &labels, count);
        }
    }
}

/// Connections that are not on the fast path, each with its reason.
fn fallbacks(page: &mut Page, report: &Report) {
    let attr = |c: &Connection, name: &str| {
        let attrs = c.attrs.as_ref()?;
        Some(attrs.get(name)?.as_str()?.to_owned())
    };
    let mut fallbacks = report
        .router
        .connections
        .iter()
        .filter_map(|c| Some((c.address.as_str(), attr(c, "name")?, attr(c, "reason")?)))
        .peekable();
    if fallbacks.peek().is_none() {
        return;
    }
    page.family(
        "weave_connection_fallback",
        "Connections that are not on the fast path, and why.",
        "gauge",
    );
    for (address, overlay, reason) in fallbacks {
        let labels = [("address", address), ("reason", &reason), ("type", &overlay)];
        page.sample("weave_connection_fallback", &labels, 1);
    }
}

fn ipam(page: &mut Page, ipam: &Ipam) {
    let unreachable = || ipam.entries.iter().filter(|e| !e.is_known_peer);
    let peers: BTreeSet<&str> = unreachable().map(|e| e.peer.as_str()).collect();
    let addresses: u64 = unreachable().map(|e| e.size).sum();
    #[allow(clippy::cast_precision_loss)] // a percentage
    let percent = addresses as f64 * 100.0 / ipam.range_num_ips.max(1) as f64;
    page.gauge(
        "weave_ipam_pending_allocates",
        "Number of pending allocates.",
        ipam.pending_allocates.len(),
    );
    page.gauge(
        "weave_ipam_pending_claims",
        "Number of pending claims.",
        ipam.pending_claims.len(),
    );
    page.gauge(
        "weave_ipam_unreachable_count",
        "Number of unreachable peers.",
        peers.len(),
    );
    page.gauge(
        "weave_ipam_unreachable_percentage",
        "Percentage of IP addresses owned  by unreachable peers.",
        percent,
    );
    page.family("weave_ips", "Number of IP addresses.", "gauge");
    page.sample("weave_ips", &[("state", "local-used")], ipam.active_ips);
    page.gauge(
        "weave_max_ips",
        "Size of IP address space used by allocator.",
        ipam.range_num_ips,
    );
}

/// What the usual Prometheus libraries tell about their process. Whatever cannot be read is left out.
fn process(page: &mut Page) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field, the program's name in parentheses, may contain spaces.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .collect();
    // Numbered from 1 as in proc(5); the third is the first one here.
    let field = |n: usize| fields.get(n - 3).and_then(|f| f.parse::<u64>().ok());
    let number = |n: nix::unistd::SysconfVar| nix::unistd::sysconf(n).ok().flatten().unwrap_or(0);
    let ticks = number(nix::unistd::SysconfVar::CLK_TCK).max(1);
    #[allow(clippy::cast_precision_loss)] // seconds with two decimals
    let seconds = |n: u64| n as f64 / ticks as f64;
    if let (Some(user), Some(system)) = (field(14), field(15)) {
        page.single(
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            "counter",
            seconds(user + system),
        );
    }
    if let Ok((soft, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        page.gauge(
            "process_max_fds",
            "Maximum number of open file descriptors.",
            soft,
        );
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        page.gauge(
            "process_open_fds",
            "Number of open file descriptors.",
            open.count(),
        );
    }
    if let Some(pages) = field(24) {
        let page_size = u64::try_from(number(nix::unistd::SysconfVar::PAGE_SIZE)).unwrap_or(0);
        let help = "Resident memory size in bytes.";
        page.gauge(
            "process_resident_memory_bytes",
            help,
            pages.saturating_mul(page_size),
        );
    }
    if let (Some(since_boot), Some(boot)) = (field(22), boot_time()) {
        page.gauge(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            seconds(since_boot) + boot,
        );
    }
    if let Some(bytes) = field(23) {
        page.gauge(
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes.",
            bytes,
        );
    }
    if let Ok((soft, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_AS) {
        let limit = if soft == libc::RLIM_INFINITY {
            "-1".to_owned()
        } else {
            soft.to_string()
        };
        let help = "Maximum amount of virtual memory available in bytes.";
        page.gauge("process_virtual_memory_max_bytes", help, limit);
    }
}

/// Unix time of the system's start, in seconds.
fn boot_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines()
        .find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::super::golden;
    use super::super::report::FastDatapath;
    use super::*;

    /// Without the values of `process_*`, which are this process's, and with numbers in one form.
    fn comparable(text: &str) -> Vec<String> {
        let mut lines: Vec<String> = text
            .lines()
            .map(|line| match line.rsplit_once(' ') {
                Some((name, _)) if name.starts_with("process_") => name.to_owned(),
                Some((name, value)) if !name.starts_with('#') => {
                    format!("{name} {}", value.parse::<f64>().unwrap_or(f64::NAN))
                }
                _ => line.to_owned(),
            })
            .collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn names_labels_helps_and_values_are_the_originals() {
        for scenario in ["04-three-dns.h1", "06-connect-unreachable.h1", "08-h3-gone.h1"] {
            let ours = render(&golden::report(scenario));
            let theirs = golden::text(&format!("{scenario}_metrics.txt"));
            assert_eq!(comparable(&ours), comparable(&theirs), "{scenario}");
        }
    }

    #[test]
    fn encrypted_connections() {
        let text = render(&golden::report("12-encrypted-seed-observer.h1"));
        assert!(
            text.contains(
                "\nweave_connections{encryption=\"yes\",state=\"established\",type=\"sleeve\"} 2\n"
            )
        );
        assert!(
            text.contains("\nweave_connections{encryption=\"\",state=\"established\",type=\"sleeve\"} 0\n")
        );
    }

    #[test]
    fn without_ipam_its_metrics_are_absent() {
        let text = render(&Report::default());
        assert!(!text.contains("ipam") && !text.contains("weave_ips"), "{text}");
        assert!(text.contains("weave_connection_terminations_total 0\n"));
    }

    #[test]
    fn fast_path_counters() {
        let report = Report {
            fast_datapath: Some(FastDatapath {
                counters: [("drop_no_peer".to_owned(), 3), ("enc\"ap".to_owned(), 7)].into(),
                ..FastDatapath::default()
            }),
            ..Report::default()
        };
        let text = render(&report);
        assert!(
            text.contains("\nweave_fastdp_packets_total{verdict=\"drop_no_peer\"} 3\n"),
            "{text}"
        );
        assert!(
            text.contains("\nweave_fastdp_packets_total{verdict=\"enc\\\"ap\"} 7\n"),
            "{text}"
        );
    }
}
