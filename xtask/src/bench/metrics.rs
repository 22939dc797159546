//! `cargo xtask bench metrics`: how long a Prometheus waits for the metrics of a peer with many neighbours.
//!
//! Real daemons: each on a host of a lab, connected to the first one only, which is the one that is asked.

use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use weave_tests::lab::{Host, Plan, netns};
use weave_tests::load::{self, Answer, CONTROL, Request};
use weave_tests::process::wait_for;

use crate::released::is_released_and_root;
use crate::shell::heading;

/// For all that takes time by the number of peers or names.
const PATIENCE: Duration = Duration::from_secs(300);
/// Launches at a time.
const AT_ONCE: usize = 4;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Neighbours
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=200))]
    pub peers: u8,
    /// Names that the peer has registered
    #[arg(long, default_value_t = 10_000)]
    pub names: u32,
    /// Scrapes
    #[arg(long, default_value_t = 300)]
    pub scrapes: usize,
    #[arg(long, hide = true)]
    pub built: bool,
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    if !is_released_and_root(arguments.built)? {
        return Ok(());
    }
    println!("{}", super::machine()?);
    heading(&format!("{} neighbours", arguments.peers));
    let start = Instant::now();
    let lab = super::paths::released(Plan::mesh(arguments.peers + 1)).build("bench-metrics")?;
    let (asked, others) = lab.hosts().split_first().context("no hosts")?;
    asked.launch(&["--docker-api="])?;
    // Before there is anybody to tell each of them.
    register(asked, arguments.names)?;
    println!("{} names registered", arguments.names);
    launch(others, &asked.address().to_string())?;
    wait_for("the connections", PATIENCE, || {
        let page = asked.weave(&["status", "connections"])?.ok()?;
        let count = page.matches(" established ").count();
        ensure!(count == others.len(), "{count} of {}", others.len());
        Ok(Some(()))
    })?;
    println!("up after {:.0} s", start.elapsed().as_secs_f64());

    heading("Scrapes");
    let request = Request {
        method: "GET",
        path: "/metrics".to_owned(),
    };
    let kept = scrapes(asked, vec![vec![request.clone(); arguments.scrapes]])?;
    tell("one after the other on one connection", kept)?;
    let new = (0..arguments.scrapes).map(|_| scrapes(asked, vec![vec![request.clone()]]));
    let new: Vec<Vec<Answer>> = new.collect::<Result<_>>()?;
    tell("each on a connection of its own", new.concat())?;
    lab.remove()
}

fn launch(hosts: &[Host], first: &str) -> Result<()> {
    for some in hosts.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let running: Vec<_> = some
                .iter()
                .map(|host| scope.spawn(move || host.launch(&["--docker-api=", "--no-discovery", first])))
                .collect();
            running
                .into_iter()
                .try_for_each(|launch| launch.join().map_err(|_| anyhow!("a launch panicked"))?)
        })?;
    }
    Ok(())
}

fn register(host: &Host, names: u32) -> Result<()> {
    let put = |number: u32| Request {
        method: "PUT",
        path: format!("/name/{number:064x}/10.40.0.1?fqdn=n{number}.weave.local"),
    };
    let script: Vec<Request> = (0..names).map(put).collect();
    let answers = scrapes(host, vec![script])?;
    ensure!(
        answers.len() == names as usize,
        "{} of {names} names were taken",
        answers.len()
    );
    Ok(())
}

/// The good answers to all these requests.
fn scrapes(host: &Host, scripts: Vec<Vec<Request>>) -> Result<Vec<Answer>> {
    let done = netns::inside(host.netns(), || {
        load::run(CONTROL.parse()?, &scripts, PATIENCE, &AtomicUsize::new(0))
    })?;
    let answers = done.answers.into_iter().flatten();
    Ok(answers.filter(|a| (200..300).contains(&a.status)).collect())
}

fn tell(how: &str, answers: Vec<Answer>) -> Result<()> {
    let bytes = answers.last().context("no answers")?.body.len();
    let mut took: Vec<f64> = answers
        .into_iter()
        .map(|answer| answer.microseconds / 1e3)
        .collect();
    took.sort_by(f64::total_cmp);
    let at = |part: usize| {
        took.get(took.len().saturating_sub(1) * part / 100)
            .copied()
            .unwrap_or(f64::NAN)
    };
    let (p50, p99, most, count) = (at(50), at(99), at(100), took.len());
    println!("{how}: p50 {p50:.2} ms, p99 {p99:.2} ms, most {most:.2} ms ({count} scrapes of {bytes} bytes)");
    Ok(())
}
