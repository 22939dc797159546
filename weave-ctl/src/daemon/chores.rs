//! What the loop does by the clock.

use std::time::Duration;

use super::core::Daemon;
use crate::ipam::allocator::Allocator;
use crate::mesh::Now;
use crate::mesh::core::Input;

/// IPAM's own clock (control.md 1.10).
const IPAM_TICK: Duration = Duration::from_secs(5);
/// Step of the clock on which MAC addresses age, and between two looks at who has traffic.
const CLOCK_STEP: Duration = Duration::from_secs(5);
/// Between two sweeps of old MAC addresses (wire.md 6.9).
const SWEEP: Duration = Duration::from_secs(60);
/// An adopted table is not swept before its addresses could be seen again.
const FIRST_SWEEP: Duration = Duration::from_secs(660);
/// All ways are looked up again even without news of a change.
const RESOLVE: Duration = Duration::from_secs(60);

/// When what is to be done now and then is due.
pub(super) struct Due {
    ipam: Now,
    clock: Now,
    sweep: Now,
    pub(super) resolve: Now,
}

impl Default for Due {
    /// As it is when the daemon starts.
    fn default() -> Self {
        Self {
            ipam: IPAM_TICK,
            clock: Now::ZERO,
            sweep: FIRST_SWEEP,
            resolve: RESOLVE,
        }
    }
}

impl Daemon {
    pub(super) fn next_deadline(&self) -> Now {
        let due = &self.due;
        [
            Some(due.ipam.min(due.clock).min(due.sweep).min(due.resolve)),
            self.mesh.next_deadline(),
            self.neighbours.next_deadline(),
            self.channels.ipam.as_ref().and_then(Allocator::next_deadline),
            self.forwarding.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(due.ipam)
    }

    pub(super) async fn on_time(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        if self.mesh.next_deadline().is_some_and(|at| at <= now) {
            self.mesh_input(Input::Tick);
        }
        if self.neighbours.next_deadline().is_some_and(|at| at <= now) {
            let actions = self.neighbours.tick(now);
            self.act(actions);
        }
        self.tables_stale |= self.forwarding.next_deadline().is_some_and(|at| at <= now);
        let ipam_due = self.channels.ipam.as_ref().and_then(Allocator::next_deadline);
        if ipam_due.is_some_and(|at| at <= now) {
            self.with_ipam(|ipam, out| ipam.on_deadline(out));
        }
        if self.due.ipam <= now {
            self.due.ipam = now + IPAM_TICK;
            self.with_ipam(|ipam, out| ipam.tick(out));
            self.with_names(|names, out| names.tick(out));
            self.tell_claim();
        }
        if self.due.clock <= now {
            self.due.clock = now + CLOCK_STEP;
            let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
            let clock = self.clock_base.wrapping_add(seconds);
            if let Some(datapath) = self.datapath() {
                datapath.set_clock(clock)?;
            }
            self.check_traffic()?;
        }
        if self.due.sweep <= now {
            self.due.sweep = now + SWEEP;
            if let Some(datapath) = self.datapath() {
                let forgotten = datapath.sweep_macs()?;
                tracing::debug!("forgot {forgotten} MAC addresses not seen for long");
            }
        }
        self.resolve_if_due().await
    }

    /// Looks all ways up if it is time, or if there was news.
    pub(super) async fn resolve_if_due(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        if self.due.resolve <= now {
            self.due.resolve = now + RESOLVE;
            self.resolve(None).await?;
        }
        Ok(())
    }
}
