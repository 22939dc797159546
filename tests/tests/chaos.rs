//! A cluster in disorder, in a short form; `cargo xtask soak --only chaos` is the long one.

use std::io::Write as _;
use std::time::Duration;

use weave_tests::chaos::Chaos;

/// 35 actions of 18 kinds.
const NEARLY_EVERYTHING: u64 = 14081;

/// `WEAVE_CHAOS_SEED` chooses another seed.
#[test]
fn everything_is_right_again_after_chaos() {
    let chosen = std::env::var("WEAVE_CHAOS_SEED").ok();
    let seed = chosen
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(NEARLY_EVERYTHING);
    let chaos = Chaos {
        seed,
        hosts: 5,
        time: Duration::from_secs(27),
        strict: false,
        replay: format!("WEAVE_CHAOS_SEED={seed} cargo test -p weave-tests --test chaos"),
    };
    chaos.plan().test("chaos", |lab| {
        let summary = chaos.run(lab)?;
        // Not eprintln: the test harness would swallow it.
        let _nobody_listens = writeln!(std::io::stderr(), "{summary}");
        Ok(())
    });
}
