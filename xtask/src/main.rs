//! The project's own commands; `cargo xtask help` lists them.

mod bench;
mod demo;
mod demo_docker;
mod ebpf;
mod image;
mod install;
mod lab;
mod released;
mod setup;
mod shell;
mod sim;
mod soak;
mod test;
mod toolchain;
mod wait;

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Builds, shows, tests and measures weave"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing on this machine: Debian packages, a compiler for BPF, bpf-linker
    Setup {
        /// Also what only `bench dns` needs: dnsperf and dnsmasq
        #[arg(long)]
        bench: bool,
    },
    /// Build the BPF programs into target/bpf/weave.bpf.o
    BuildEbpf,
    /// The main job on one machine: two hosts, a container on each, traffic between them
    Demo {
        /// Docker's three ways onto the network instead, on two real engines
        #[arg(long)]
        docker: bool,
        #[arg(long, hide = true)]
        built: bool,
    },
    /// Hosts to play in, kept until `lab down`
    Lab {
        #[command(subcommand)]
        task: lab::Task,
    },
    /// Everything that must hold: format, lints, unit, BPF and end-to-end tests
    Test,
    /// Build for release and install
    Install {
        /// Installs into PREFIX/bin, PREFIX/lib and PREFIX/share
        #[arg(long, default_value = "/usr/local")]
        prefix: PathBuf,
    },
    /// Build the container image, into target/weave-image.tar, for `docker load`
    Image,
    /// Build Docker's managed plugin, into target/plugin, for `docker plugin create`
    Plugin,
    /// Sleeve on a bad network, a cluster in disorder: fails if anything leaks, breaks, or gets lost
    Soak(soak::Args),
    /// Many peers in one process on a bad virtual network: fails if they do not agree in the end
    Sim(sim::Args),
    /// Measure against the native path, the kernel's VXLAN and wireguard-go; table and target/bench.json
    Bench {
        /// Rounds over all paths
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Fewer rounds and shorter runs: a first impression only
        #[arg(long)]
        quick: bool,
        #[arg(long, hide = true)]
        built: bool,
        #[command(subcommand)]
        instead: Option<BenchInstead>,
    },
    #[command(hide = true)]
    PingpongServer { bind: SocketAddrV4 },
    #[command(hide = true)]
    PingpongClient { server: SocketAddrV4, milliseconds: u64 },
    #[command(hide = true)]
    UdpReceiver { bind: SocketAddrV4 },
    #[command(hide = true)]
    UdpSender {
        receiver: SocketAddrV4,
        milliseconds: u64,
    },
    #[command(hide = true)]
    HttpLoad {
        task: String,
        addresses: usize,
        connections: usize,
    },
}

#[derive(Subcommand)]
enum BenchInstead {
    /// The control plane: allocations, joining, gossip, memory; table and target/bench-control.json
    Control(bench::control::Arguments),
    /// A scrape of the metrics of a peer that has many neighbours and knows many names
    Metrics(bench::metrics::Arguments),
    /// Starts of containers with and without the proxy, and many at once
    Docker(bench::docker::Arguments),
    /// WeaveDNS against dnsmasq: questions a second, latencies; table and target/bench-dns.json
    Dns(bench::dns::Arguments),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Setup { bench } => setup::run(setup::Detail::Full)
            .and_then(|()| if bench { setup::need(&setup::BENCH) } else { Ok(()) }),
        Task::BuildEbpf => ebpf::build().map(drop),
        Task::Demo { docker, built } => demo::run(docker, built),
        Task::Lab { task } => lab::run(task),
        Task::Test => return test::run(),
        Task::Install { prefix } => install::run(&prefix),
        Task::Image => image::image(),
        Task::Plugin => image::plugin(),
        Task::Soak(args) => soak::run(&args),
        Task::Bench {
            instead: Some(BenchInstead::Control(arguments)),
            ..
        } => bench::control::run(arguments),
        Task::Bench {
            instead: Some(BenchInstead::Metrics(arguments)),
            ..
        } => bench::metrics::run(&arguments),
        Task::Bench {
            instead: Some(BenchInstead::Dns(arguments)),
            ..
        } => bench::dns::run(&arguments),
        Task::Bench {
            instead: Some(BenchInstead::Docker(arguments)),
            ..
        } => bench::docker::run(&arguments),
        Task::Bench {
            rounds, quick, built, ..
        } => bench::run(rounds, quick, built),
        Task::Sim(args) => sim::run(&args),
        Task::PingpongServer { bind } => bench::pingpong::serve(bind),
        Task::PingpongClient { server, milliseconds } => bench::pingpong::measure(server, milliseconds),
        Task::UdpReceiver { bind } => bench::udp::receive(bind),
        Task::UdpSender {
            receiver,
            milliseconds,
        } => bench::udp::search(receiver, milliseconds),
        Task::HttpLoad {
            task,
            addresses,
            connections,
        } => bench::control::load(&task, addresses, connections),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
