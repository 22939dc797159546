//! A cluster in disorder: daemons are killed, hosts leave and join, links are cut, the underlay is
//! divided, all under constant pings and allocations; afterwards everything must be right again.

pub mod check;
pub mod http;
pub mod pings;
pub mod plan;
pub mod world;

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::{Lab, Plan};
use crate::soak::Usage;
use check::Use;
use pings::{Excuses, Pinged};
use world::World;

/// Between two steps of the plan, at least.
const STEP: Duration = Duration::from_millis(1500);
/// Of 100 pings that nothing excuses, so many may be lost: the machine is busy, too.
const LOSS: usize = 2;
/// And so many of a pair in any case: it takes longer to leave a path when everybody is busy.
const FREE: usize = 25;

/// One run.
#[derive(Debug, Clone)]
pub struct Chaos {
    /// What happens.
    pub seed: u64,
    /// How many hosts.
    pub hosts: u8,
    /// For how long.
    pub time: Duration,
    /// Does it fail if pings are lost that nothing excuses? On a busy machine they tell of the machine.
    pub strict: bool,
    /// How a run is repeated; shown when it fails.
    pub replay: String,
}

/// What came out of a run after which everything was right.
#[derive(Debug)]
pub struct Summary {
    seed: u64,
    hosts: u8,
    actions: usize,
    refused: usize,
    /// Launch of all to agreement, and end of all trouble to agreement.
    converged: (Duration, Duration),
    pairs: usize,
    sent: u32,
    lost: usize,
    unexcused: usize,
    before: Vec<Use>,
    after: Vec<Use>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed, hosts, actions, ..
        } = self;
        let (launch, end) = self.converged;
        let most = |uses: &[Use], pick: fn(&Usage) -> f64| {
            uses.iter().map(|one| pick(&one.usage)).fold(0.0, f64::max)
        };
        writeln!(f, "chaos, seed {seed}: {actions} actions on {hosts} hosts")?;
        writeln!(
            f,
            "  converged in {:.1} s after launch, in {:.1} s after the last fault; {} pairs of containers reach each other",
            launch.as_secs_f64(),
            end.as_secs_f64(),
            self.pairs
        )?;
        writeln!(
            f,
            "  {} pings: {} lost, {} of them without a fault in their way; {} attachments or allocations had to wait",
            self.sent, self.lost, self.unexcused, self.refused
        )?;
        write!(
            f,
            "  largest daemon: memory {:.1} MB, then {:.1} MB; descriptors {}, then {}; threads {}, then {}; database {} kB, then {} kB",
            most(&self.before, |u| u.memory),
            most(&self.after, |u| u.memory),
            most(&self.before, |u| u.descriptors as f64),
            most(&self.after, |u| u.descriptors as f64),
            most(&self.before, |u| u.threads as f64),
            most(&self.after, |u| u.threads as f64),
            self.before.iter().map(|one| one.database).max().unwrap_or(0) >> 10,
            self.after.iter().map(|one| one.database).max().unwrap_or(0) >> 10,
        )
    }
}

impl Chaos {
    /// The lab for this.
    pub fn plan(&self) -> Plan {
        Plan::mesh(self.hosts)
    }

    /// Runs on a fresh lab of [`Chaos::plan`].
    ///
    /// # Errors
    /// Whatever is not right afterwards, with the seed and what was done.
    pub fn run(&self, lab: &Lab) -> Result<Summary> {
        let start = Instant::now();
        lab.launch_all(&[])?;
        // Without this the addresses are divided only when somebody wants one.
        lab.host(1)?.weave(&["prime"])?.ok()?;
        check::converged(lab).context("before any trouble")?;
        let launched = start.elapsed();
        let mut world = World::new(lab)?;
        let result = self.trouble(lab, &mut world, launched);
        result.with_context(|| format!("seed {}; again: {}\n{}", self.seed, self.replay, world.journal))
    }

    fn trouble(&self, lab: &Lab, world: &mut World<'_>, launched: Duration) -> Result<Summary> {
        check::reachability(lab, &world.members)?;
        let before = check::uses(lab, &world.members)?;
        world.start_pings()?;
        let steps = (self.time.as_millis() / STEP.as_millis()).max(2) as usize;
        let mut actions = 0;
        for step in plan::plan(self.seed, self.hosts.into(), steps) {
            let start = Instant::now();
            for action in &step {
                world.act(action)?;
            }
            actions += step.len();
            std::thread::sleep(STEP.saturating_sub(start.elapsed()));
        }
        let settled = check::converged(lab)?;
        world.complete()?;
        check::addresses(lab, world)?;
        let pairs = check::reachability(lab, &world.members)?;
        world.end_pings(|_| true)?;
        world.free_all()?;
        let after = check::uses(lab, &world.members)?;
        check::leaks(lab, &before, &after)?;
        check::logs(lab)?;
        let unexcused = self.judge(&world.pinged, &world.excuses)?;
        Ok(Summary {
            seed: self.seed,
            hosts: self.hosts,
            actions,
            refused: world.refused,
            converged: (launched, settled),
            pairs,
            sent: world.pinged.iter().map(|ping| ping.sent).sum(),
            lost: world.pinged.iter().map(|ping| ping.lost.len()).sum(),
            unexcused,
            before,
            after,
        })
    }

    /// How many pings were lost without an excuse: no more than a few, if that counts.
    fn judge(&self, pinged: &[Pinged], excuses: &Excuses) -> Result<usize> {
        let mut total = 0;
        for ping in pinged {
            let bad: Vec<&f64> = ping
                .lost
                .iter()
                .filter(|at| !excuses.excuse(ping.pair, **at))
                .collect();
            ensure!(
                !self.strict || bad.len() <= FREE.max(ping.sent as usize * LOSS / 100),
                "h{} to h{}: {} of {} pings lost without a fault in their way, {:.1} s to {:.1} s before the end",
                ping.pair.0 + 1,
                ping.pair.1 + 1,
                bad.len(),
                ping.sent,
                pings::now() - bad.first().copied().copied().unwrap_or_default(),
                pings::now() - bad.last().copied().copied().unwrap_or_default(),
            );
            total += bad.len();
        }
        Ok(total)
    }
}
