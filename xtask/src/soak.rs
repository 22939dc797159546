//! `cargo xtask soak`: sleeve on a bad network, clusters in disorder, simulated and real, each for a while.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow, ensure};
use weave_tests::chaos::Chaos;
use weave_tests::lab::Plan;
use weave_tests::sim;
use weave_tests::soak::Soak;

use crate::released::is_released_and_root;
use crate::shell::{heading, target};

#[derive(clap::Args)]
pub struct Args {
    /// For how long, each part
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// This part only
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Hosts of the chaos
    #[arg(long, default_value_t = 10)]
    hosts: u8,
    /// Repeats the chaos of this seed
    #[arg(long)]
    chaos_seed: Option<u64>,
    #[arg(long, hide = true)]
    built: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Sleeve, plain and sealed, on a bad network
    Sleeve,
    /// Daemons are killed, links cut, hosts come and go
    Chaos,
    /// Simulated clusters, seed after seed
    Sim,
}

/// The parts one after the other, also after one has failed.
pub fn run(args: &Args) -> Result<()> {
    let minutes = args.minutes;
    ensure!(
        (0.25..=10_000.0).contains(&minutes),
        "between a quarter of a minute and a week"
    );
    ensure!((3..=30).contains(&args.hosts), "between 3 and 30 hosts");
    if !is_released_and_root(args.built)? {
        return Ok(());
    }
    let wanted = |part| args.only.is_none_or(|only| only == part);
    let sleeve = if wanted(Part::Sleeve) {
        sleeve(minutes)
    } else {
        Ok(())
    };
    if let Err(error) = &sleeve {
        println!("FAILED: {error:#}");
    }
    if wanted(Part::Chaos) {
        chaos(args)?;
    }
    if wanted(Part::Sim) {
        heading(&format!("Simulated clusters for {minutes} minutes"));
        let time = Duration::from_secs_f64(minutes * 60.0);
        println!("{}", sim::soak(time, seed_of_the_day())?);
    }
    sleeve
}

fn seed_of_the_day() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() % 1_000_000)
}

fn chaos(args: &Args) -> Result<()> {
    let Args { minutes, hosts, .. } = args;
    let seed = args.chaos_seed.unwrap_or_else(seed_of_the_day);
    heading(&format!(
        "Chaos for {minutes} minutes on {hosts} hosts, seed {seed}"
    ));
    let chaos = Chaos {
        seed,
        hosts: *hosts,
        time: Duration::from_secs_f64(minutes * 60.0),
        strict: true,
        replay: format!(
            "cargo xtask soak --only chaos --minutes {minutes} --hosts {hosts} --chaos-seed {seed}"
        ),
    };
    let lab = chaos
        .plan()
        .binary(target().join("release/weave-ctl"))
        .build("chaos")?;
    match chaos.run(&lab) {
        Ok(summary) => println!("{summary}"),
        Err(error) => {
            eprintln!("{}", lab.diagnose());
            return Err(error);
        }
    }
    Ok(())
}

/// Plain and sealed at the same time, each on two hosts of its own.
fn sleeve(minutes: f64) -> Result<()> {
    let time = Duration::from_secs_f64(minutes * 60.0);
    heading(&format!(
        "Sleeve for {minutes} minutes: 2 % lost, 10 % reordered, 2 % doubled"
    ));
    let stays = [false, true].map(|sealed| Soak::new(sealed, time));
    let results = std::thread::scope(|scope| {
        let threads = stays.map(|soak| {
            scope.spawn(move || {
                let plan = soak.plan(Plan::mesh(2).binary(target().join("release/weave-ctl")));
                let lab = plan.build(if soak.sealed { "soak-sealed" } else { "soak" })?;
                let result = soak.run(&lab);
                if result.is_err() {
                    eprintln!("{}", lab.diagnose());
                }
                result
            })
        });
        threads.map(|thread| thread.join().map_err(|_| anyhow!("the soak panicked"))?)
    });
    let mut outcome = Ok(());
    for result in results {
        match result {
            Ok(summary) => println!("{summary}"),
            Err(error) => {
                println!("FAILED: {error:#}");
                outcome = Err(anyhow!("sleeve did not stand the bad network"));
            }
        }
    }
    outcome
}
