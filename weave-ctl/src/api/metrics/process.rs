//! What the usual Prometheus libraries tell about their process.

use super::page::Page;

/// The `process_*` metrics. Whatever cannot be read is left out.
pub fn process(page: &mut Page) {
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
