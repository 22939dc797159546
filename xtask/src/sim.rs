//! `cargo xtask sim`: the pure cores of many peers on a virtual network.

use anyhow::{Context, Result, ensure};
use weave_tests::sim::{Options, Scenario, run as simulate};

use crate::released::build_and_rerun;
use crate::shell::heading;

#[derive(clap::Args)]
pub struct Args {
    /// Seed of all dice
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Several of them, as FIRST..LAST
    #[arg(long, conflicts_with = "seed", value_parser = range)]
    seeds: Option<(u64, u64)>,
    /// How many peers
    #[arg(long, default_value_t = 60)]
    peers: usize,
    /// Connections of a peer at most; 0 for no limit
    #[arg(long, default_value_t = 200)]
    conn_limit: usize,
    /// So many of a hundred peers gossip as the original does
    #[arg(long, default_value_t = 20)]
    originals: u32,
    #[arg(long, value_enum, default_value_t = Kind::Big)]
    scenario: Kind,
    /// Once more with originals only: how many bytes that costs
    #[arg(long)]
    compare: bool,
    /// Tell what happens
    #[arg(long)]
    verbose: bool,
    #[arg(long, hide = true)]
    built: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    /// Joining, leaving, partitions, wrong clocks, faults
    Big,
    /// Joining, then rest
    Idle,
}

fn range(text: &str) -> Result<(u64, u64)> {
    let (first, last) = text.split_once("..").context("not FIRST..LAST")?;
    Ok((first.parse()?, last.parse()?))
}

/// Every seed in turn; the first that fails ends it.
pub fn run(args: &Args) -> Result<()> {
    ensure!((2..=4000).contains(&args.peers), "between 2 and 4000 peers");
    if !args.built {
        return build_and_rerun();
    }
    let (first, last) = args.seeds.unwrap_or((args.seed, args.seed));
    for seed in first..=last {
        let options = Options {
            seed,
            peers: args.peers,
            conn_limit: args.conn_limit,
            originals: args.originals,
            scenario: match args.scenario {
                Kind::Big => Scenario::Big,
                Kind::Idle => Scenario::Idle,
            },
            verbose: args.verbose,
        };
        heading(&options.to_string());
        let figures = simulate(&options);
        println!("{figures}");
        if args.compare {
            let originals = simulate(&Options {
                originals: 100,
                ..options
            });
            println!("\nWith originals only:\n{originals}");
            println!(
                "\nBytes per peer: {} with originals only, {} as above: {:.1} times as many",
                originals.bytes_per_peer(),
                figures.bytes_per_peer(),
                originals.bytes_per_peer() as f64 / figures.bytes_per_peer() as f64
            );
        }
    }
    Ok(())
}
