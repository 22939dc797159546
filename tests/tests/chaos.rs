//! A cluster in disorder, in a short form; `cargo xtask soak --only chaos` is the long one.

use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use weave_tests::chaos::Chaos;

fn short(name: &str, seed: u64) {
    let chaos = Chaos {
        seed,
        hosts: 5,
        time: Duration::from_secs(27),
        replay: format!("WEAVE_CHAOS_SEED={seed} cargo test -p weave-tests --test chaos of_the_day"),
    };
    // Not eprintln: the test harness would swallow it.
    let _nobody_listens = writeln!(std::io::stderr(), "chaos with seed {seed}");
    chaos.plan().test(name, |lab| {
        let summary = chaos.run(lab)?;
        let _nobody_listens = writeln!(std::io::stderr(), "{summary}");
        Ok(())
    });
}

#[test]
fn of_a_seed_that_has_nearly_everything() {
    // 35 actions of 18 kinds.
    short("chaos", 14081);
}

#[test]
fn of_the_day() {
    let chosen = std::env::var("WEAVE_CHAOS_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    short("chaos_day", chosen.unwrap_or(since.as_secs() % 1_000_000));
}
