//! `cargo xtask bench dns`: questions a second and latencies of WeaveDNS and of dnsmasq, by turns.
//!
//! On a host of a lab, without Docker: WeaveDNS listens on 127.0.0.1, dnsmasq with the same names on 127.0.0.2, and on
//! 127.0.0.3 another dnsmasq is upstream of both. dnsperf runs on the last core.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::json;
use weave_tests::lab::{Host, Plan, netns};
use weave_tests::load::{self, CONTROL, Request};
use weave_tests::process::{self, Background, wait_for};
use weave_tests::soak::sample;

use super::report::{Spread, spread};
use crate::released::is_released_and_root;
use crate::setup;
use crate::shell::{heading, target};

/// Where they listen.
const OURS: &str = "127.0.0.1";
const DNSMASQ: &str = "127.0.0.2";
const UPSTREAM: &str = "127.0.0.3";
/// For one run of dnsperf over its own time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Questions a second at which latencies are measured: what the original does at most.
const STEADY: u32 = 30_000;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Names in the zone
    #[arg(long, default_value_t = 10_000)]
    pub names: u32,
    /// Rounds over both servers
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Seconds of each run
    #[arg(long, default_value_t = 3)]
    pub seconds: u64,
    #[arg(long, hide = true)]
    pub built: bool,
}

/// A kind of question: what it is called, and the names.
struct Kind {
    what: &'static str,
    name: fn(u32) -> String,
    count: u32,
    /// Of the upstream server's answers, in seconds.
    upstream_ttl: u32,
}

/// One run.
#[derive(Debug, Clone, Copy, Serialize)]
struct Sample {
    /// A second, as fast as it goes.
    rate: f64,
    /// Of those, in percent.
    lost: f64,
    /// At [`STEADY`], microseconds.
    p50: f64,
    p99: f64,
}

impl Sample {
    const FIGURES: [fn(&Self) -> f64; 4] = [|s| s.rate, |s| s.lost, |s| s.p50, |s| s.p99];
}

/// Measures, prints the table, writes target/bench-dns.json.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::present(&setup::BENCH)?;
    if !is_released_and_root(arguments.built)? {
        return Ok(());
    }
    let machine = super::machine()?;
    println!("{machine}");
    let lab = super::paths::released(Plan::mesh(2)).build("bench-dns")?;
    let (host, other) = (lab.host(1)?, lab.host(2)?);
    let folder = host.data_dir();
    fs::create_dir_all(&folder)?;
    let resolv = folder.join("upstream.conf");
    fs::write(&resolv, format!("nameserver {UPSTREAM}\n"))?;
    let launch = ["--docker-api=", "--resolv-conf", &path(&resolv)?];
    host.launch(&launch)?;
    let join = host.address().to_string();
    other.launch(&[&launch[..], &[&join]].concat())?;
    host.wait_connections(1, "established")?;

    heading("Names");
    let pid = *host.daemon_pids().first().context("no daemon")?;
    let before = sample(pid)?.memory;
    let rate = register(host, arguments.names)?;
    let after = sample(pid)?.memory;
    println!(
        "{rate:.0} names a second; {before:.1} MB before, {after:.1} MB with {} names",
        arguments.names
    );
    let seen = (0..5).map(|i| change(host, other, arguments.names + i));
    let seen = spread(seen.collect::<Result<Vec<_>>>()?);
    println!("another peer answers for a new name after {} ms", text(seen, 1));
    let dnsmasq = start_dnsmasq(host, arguments.names, &folder)?;
    let theirs = sample(dnsmasq.pid().cast_signed())?.memory;
    println!("dnsmasq: {theirs:.1} MB with the same names");

    let mut rows = Vec::new();
    for kind in kinds(arguments.names) {
        heading(kind.what);
        let _upstream = upstream(host, kind.upstream_ttl)?;
        let questions = folder.join("questions");
        let lines: String = (0..kind.count)
            .map(|i| format!("{} A\n", (kind.name)(i)))
            .collect();
        fs::write(&questions, lines)?;
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..arguments.rounds.max(1) {
            for (server, samples) in [OURS, DNSMASQ].iter().zip(&mut samples) {
                samples.push(measure(host, server, &path(&questions)?, arguments.seconds)?);
            }
        }
        for (who, samples) in ["weave", "dnsmasq"].iter().zip(&samples) {
            println!("{who:8} {}", cells(samples));
        }
        rows.push((kind.what, samples));
    }

    heading("Result");
    println!("{}\n\n- {machine}", table(&rows));
    let all = json!({
        "machine": machine,
        "names_per_second": rate,
        "memory": { "before": before, "with_names": after, "dnsmasq": theirs },
        "change_ms": seen,
        "rows": rows,
    });
    let out = target().join("bench-dns.json");
    fs::write(&out, serde_json::to_string_pretty(&all)?)?;
    println!("\n{}", out.display());
    Ok(())
}

fn kinds(names: u32) -> [Kind; 4] {
    fn kind(what: &'static str, name: fn(u32) -> String, count: u32, upstream_ttl: u32) -> Kind {
        Kind {
            what,
            name,
            count,
            upstream_ttl,
        }
    }
    [
        kind("local name", local, names, 0),
        kind("missing name", |i| format!("missing{i}.weave.local"), names, 0),
        kind("forwarded name, kept", |i| format!("kept{i}.example"), 1000, 300),
        kind(
            "forwarded name, asked for each time",
            |i| format!("new{i}.example"),
            1000,
            0,
        ),
    ]
}

fn local(number: u32) -> String {
    format!("n{number}.weave.local")
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 40, 0, 1)) + number)
}

fn path(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path that is no text")?.to_owned())
}

fn dnsmasq(host: &Host, listen: &str, more: &[&str]) -> Result<Background> {
    let listen = format!("--listen-address={listen}");
    let usual = [
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--bind-interfaces",
        "--no-resolv",
        "--no-hosts",
        &listen,
    ];
    let started = host.spawn(&[&usual[..], more].concat())?;
    wait_for("dnsmasq to listen", PATIENCE, || {
        let sockets = host.exec(&["ss", "-Hlnup"])?.ok()?;
        Ok(sockets.contains(&format!("pid={},", started.pid())).then_some(()))
    })?;
    Ok(started)
}

/// Knows every name below `example`.
fn upstream(host: &Host, ttl: u32) -> Result<Background> {
    let ttl = format!("--local-ttl={ttl}");
    dnsmasq(host, UPSTREAM, &["--address=/example/192.0.2.1", &ttl])
}

/// With the same names and the same upstream server, and a cache for as many answers as are asked for.
fn start_dnsmasq(host: &Host, names: u32, folder: &Path) -> Result<Background> {
    let hosts = folder.join("hosts");
    let lines: String = (0..names)
        .map(|i| format!("{} {}\n", address(i), local(i)))
        .collect();
    fs::write(&hosts, lines)?;
    let hosts = format!("--addn-hosts={}", path(&hosts)?);
    let server = format!("--server={UPSTREAM}");
    dnsmasq(
        host,
        DNSMASQ,
        &[
            &hosts,
            &server,
            "--local=/weave.local/",
            "--local-ttl=1",
            "--cache-size=10000",
            "--dns-forward-max=1000",
        ],
    )
}

fn put(number: u32) -> Request {
    Request {
        method: "PUT",
        path: format!("/name/{number:064x}/{}?fqdn={}", address(number), local(number)),
    }
}

/// Names a second, registered on one connection.
fn register(host: &Host, names: u32) -> Result<f64> {
    let script: Vec<Request> = (0..names).map(put).collect();
    let done = netns::inside(host.netns(), || {
        load::run(CONTROL.parse()?, &[script], 10 * PATIENCE, &AtomicUsize::new(0))
    })?;
    let answers = done.answers.into_iter().flatten();
    let good = answers
        .filter(|answer| (200..300).contains(&answer.status))
        .count();
    ensure!(good == names as usize, "{good} of {names} names were taken");
    Ok(f64::from(names) / done.seconds)
}

/// Milliseconds from a request for a new name on one host until another host answers for it.
fn change(host: &Host, other: &Host, number: u32) -> Result<f64> {
    let start = Instant::now();
    let request = put(number);
    netns::inside(host.netns(), || {
        load::ask(CONTROL.parse()?, request.method, &request.path, PATIENCE)
    })?;
    let mut question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    for label in local(number).split('.') {
        question.push(u8::try_from(label.len())?);
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    netns::inside(other.netns(), || {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect((OURS, 53))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut answer = [0; 512];
        while start.elapsed() < PATIENCE {
            socket.send(&question)?;
            socket.recv(&mut answer)?;
            // No error, and an answer.
            if answer[3] & 15 == 0 && answer[7] == 1 {
                return Ok(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        bail!("{} is not known on another host", local(number))
    })
}

/// As fast as it goes, and then the latencies of a steady load.
fn measure(host: &Host, server: &str, questions: &str, seconds: u64) -> Result<Sample> {
    let core = std::thread::available_parallelism().map_or(0, |cores| cores.get() - 1);
    let run = |more: &[&str]| {
        let mut command = host.command("taskset")?;
        command.args([
            "-c",
            &core.to_string(),
            "dnsperf",
            "-s",
            server,
            "-d",
            questions,
            "-T",
            "1",
            "-c",
            "4",
        ]);
        command.args(["-l", &seconds.to_string()]).args(more);
        process::run(&mut command, PATIENCE + Duration::from_secs(seconds))?.ok()
    };
    let fast = run(&[])?;
    let steady = run(&["-v", "-Q", &STEADY.to_string()])?;
    let mut latencies: Vec<f64> = steady.lines().filter_map(latency).collect();
    latencies.sort_by(f64::total_cmp);
    ensure!(
        !latencies.is_empty(),
        "dnsperf says nothing about single questions"
    );
    let percentile = |part: usize| {
        latencies
            .get(latencies.len() * part / 100)
            .copied()
            .unwrap_or_default()
    };
    Ok(Sample {
        rate: number(&fast, "Queries per second:")?,
        lost: number(fast.split_once("Queries lost:").map_or("", |(_, rest)| rest), "(")?,
        p50: percentile(50),
        p99: percentile(99),
    })
}

/// Microseconds, of a line like `> NOERROR name A 0.000123`.
fn latency(line: &str) -> Option<f64> {
    let seconds = line.strip_prefix("> ")?.split(' ').next_back()?;
    Some(seconds.parse::<f64>().ok()? * 1e6)
}

/// The number after a label.
fn number(text: &str, label: &str) -> Result<f64> {
    let (_, rest) = text
        .split_once(label)
        .with_context(|| format!("no \"{label}\" in {text}"))?;
    let rest = rest.trim_start();
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    Ok(rest.get(..end).unwrap_or_default().parse()?)
}

fn text(spread: Spread, digits: usize) -> String {
    let Spread { median, min, max } = spread;
    format!("{median:.digits$} [{min:.digits$}, {max:.digits$}]")
}

/// Medians and ranges.
fn cells(samples: &[Sample]) -> String {
    let [rate, lost, p50, p99] = Sample::FIGURES.map(|of| spread(samples.iter().map(of)));
    let (rate, lost, p50, p99) = (text(rate, 0), text(lost, 2), text(p50, 0), text(p99, 0));
    format!("{rate} | {lost} | {p50} | {p99}")
}

fn table(rows: &[(&str, [Vec<Sample>; 2])]) -> String {
    let mut out =
        "| question | server | a second | lost, % | p50, us | p99, us |\n|---|---|---|---|---|---|\n"
            .to_owned();
    for (what, samples) in rows {
        for (who, samples) in ["weave", "dnsmasq"].iter().zip(samples) {
            let _ = writeln!(out, "| {what} | {who} | {} |", cells(samples));
        }
    }
    out.trim_end().to_owned()
}
