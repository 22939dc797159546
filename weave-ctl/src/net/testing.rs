//! Fresh network namespaces for tests, and an independent look at them through `ip -j`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::io::Write;
use std::process::{Child, Command};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use super::{Netlink, Netns};

/// A namespace that lives as long as the handle; `None`, with the reason printed, without root.
pub fn new_netns() -> Option<Netns> {
    if !nix::unistd::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "skipped: network namespaces need root");
        return None;
    }
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Netns::current().unwrap()
    });
    Some(made.join().unwrap())
}

/// The same with a netlink connection.
pub async fn new_host() -> Option<Netlink> {
    Some(Netlink::open(&new_netns()?).await.unwrap())
}

/// Runs `ip ARGS` in the namespace; it must succeed.
pub async fn ip(ns: &Netns, args: &str) -> String {
    let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
    ns.run(move || {
        let out = Command::new("ip").args(&args).output().unwrap();
        assert!(
            out.status.success(),
            "ip {args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    })
    .await
    .unwrap()
}

/// What `ip -j -d link show DEV` says.
pub async fn ip_link(ns: &Netns, dev: &str) -> Value {
    let text = ip(ns, &format!("-j -d link show {dev}")).await;
    serde_json::from_str::<Value>(&text).unwrap()[0].take()
}

/// Contents of a file below `/proc/sys/`, as seen in the namespace.
pub async fn sysctl(ns: &Netns, path: &str) -> String {
    let path = format!("/proc/sys/{path}");
    ns.run(move || std::fs::read_to_string(path).unwrap().trim().to_owned())
        .await
        .unwrap()
}

/// Runs a future on a thread that has a `/run` of its own, so that `ip netns add` there leaves no
/// trace on the machine. Without root it only prints why not.
pub fn with_own_run<F: Future<Output = ()>>(make: impl FnOnce() -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "skipped: mounts need root");
        return;
    }
    let work = move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let nothing = None::<&str>;
        mount(
            nothing,
            "/",
            nothing,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            nothing,
        )
        .unwrap();
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(make());
    };
    std::thread::spawn(work).join().unwrap();
}

/// A process that does nothing inside a namespace; killed on drop.
pub struct Sleeper(Child);

impl Sleeper {
    /// Starts it.
    pub async fn in_ns(ns: &Netns) -> Self {
        Self(
            ns.run(|| Command::new("sleep").arg("600").spawn().unwrap())
                .await
                .unwrap(),
        )
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
