//! `cargo xtask bench docker`: how long containers take to start with and without the proxy, and many starts at once.
//!
//! The peer is the same engine without the proxy. Both take turns.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use weave_tests::engine::Engine;
use weave_tests::lab::{Host, Plan};
use weave_tests::process::{self, LIMIT, Output};

use super::report::spread;
use crate::released::is_released_and_root;
use crate::shell::heading;

/// The words of an engine that is too busy.
const GIVEN_UP: &str = "context deadline exceeded";
/// How often one is started again.
const TRIES: usize = 5;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Starts of each kind, one after the other
    #[arg(long, default_value_t = 20)]
    pub runs: usize,
    /// Starts at once
    #[arg(long, default_value_t = 100)]
    pub parallel: usize,
    #[arg(long, hide = true)]
    pub built: bool,
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !is_released_and_root(arguments.built)? {
        return Ok(());
    }
    println!("{}", super::machine()?);
    let lab = super::paths::released(Plan::mesh(1)).build("bench-docker")?;
    let host = lab.host(1)?;
    let engine = Engine::start_with_bridge(host)?;
    let dns = ["--dns-listen-address=172.17.0.1:53", "--resolv-conf=/dev/null"];
    engine.launch(&[&dns[..], &["--ipalloc-init=consensus=1"]].concat())?;

    heading("docker run --rm busybox true");
    let kinds = [
        ("Docker alone", false, "bridge"),
        ("with the proxy", true, "bridge"),
        ("Docker alone, --net=none", false, "none"),
        ("with the proxy, --net=none", true, "none"),
    ];
    let mut times = vec![Vec::new(); kinds.len()];
    // The first of each fills caches.
    for round in 0..=arguments.runs {
        for ((_, proxy, network), times) in kinds.iter().zip(&mut times) {
            let start = Instant::now();
            let words = ["run", "--rm", "--network", network, "box", "busybox", "true"];
            docker(host, *proxy, &words)?.ok()?;
            if round > 0 {
                times.push(start.elapsed().as_secs_f64() * 1000.0);
            }
        }
    }
    for ((name, ..), times) in kinds.iter().zip(times) {
        let times = spread(times);
        println!(
            "{name:<28} {:6.0} ms [{:.0}, {:.0}]",
            times.median, times.min, times.max
        );
    }

    heading(&format!("{} starts at once", arguments.parallel));
    for (name, proxy) in [("Docker alone", false), ("with the proxy", true)] {
        let start = Instant::now();
        let (names, given_up) = at_once(host, proxy, arguments.parallel)?;
        let seconds = start.elapsed().as_secs_f64();
        if proxy {
            let text = engine.weave(&["ps"])?.ok()?;
            let addresses: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').nth(2)).collect();
            let attached = addresses
                .iter()
                .filter(|address| address.starts_with("10."))
                .count();
            ensure!(
                attached == names.len(),
                "{attached} addresses for {} containers",
                names.len()
            );
        }
        println!("{name:<28} {seconds:6.1} s, none lost; the engine gave up {given_up} times");
        let mut remove = vec!["rm", "--force"];
        remove.extend(names.iter().map(String::as_str));
        docker(host, false, &remove)?.ok()?;
    }
    lab.remove()
}

fn docker(host: &Host, proxy: bool, args: &[&str]) -> Result<Output> {
    let mut command = host.command("docker")?;
    if proxy {
        let socket = host.run_dir().join("weave.sock");
        command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
    }
    process::run(command.args(args), 5 * LIMIT)
}

/// Starts so many containers from as many clients: their names, and how often the engine gave up starting one. It does
/// so by itself, when it is too busy to hear of its own processes in time; then it is asked again.
fn at_once(host: &Host, proxy: bool, count: usize) -> Result<(Vec<String>, usize)> {
    let given_up = AtomicUsize::new(0);
    let start = &|number: usize| -> Result<String> {
        let name = format!("many-{proxy}-{number}");
        let words = ["run", "--detach", "--name", &name, "box", "sleep", "100000"];
        let mut started = docker(host, proxy, &words)?;
        for _ in 0..TRIES {
            if !started.stderr.contains(GIVEN_UP) {
                break;
            }
            given_up.fetch_add(1, Ordering::Relaxed);
            started = docker(host, proxy, &["start", &name])?;
        }
        started.ok().map(|_| name)
    };
    let names: Result<Vec<String>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..count)
            .map(|number| scope.spawn(move || start(number)))
            .collect();
        running
            .into_iter()
            .map(|start| start.join().map_err(|_| anyhow!("a start panicked"))?)
            .collect()
    });
    Ok((names?, given_up.into_inner()))
}
