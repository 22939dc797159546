//! `cargo xtask soak`: sleeve, plain and sealed, for a while on a bad network.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use weave_tests::lab::Plan;
use weave_tests::soak::Soak;

use crate::released::build_and_rerun;
use crate::shell::{became_root, heading, target};

/// Both at the same time, each on two hosts of its own.
pub fn run(minutes: f64, built: bool) -> Result<()> {
    ensure!(
        (0.25..=10_000.0).contains(&minutes),
        "between a quarter of a minute and a week"
    );
    if !built {
        return build_and_rerun();
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    if became_root(&args)? {
        return Ok(());
    }
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
