//! The end of a turn: what has happened goes into the maps and to disk, and only then out to others.

use anyhow::Context;

use super::core::{Daemon, Ending, unix_now};
use super::saver::Held;
use crate::ipam::allocator::Allocator;
use crate::mesh::core::Input;
use crate::overlay::forwarding;

impl Daemon {
    /// Writes maps; then saves, answers and sends, in this order, unless an earlier save is under way: what
    /// follows that one waits, and will be saved together.
    pub(super) fn settle(&mut self) -> anyhow::Result<()> {
        if std::mem::take(&mut self.tables_stale) {
            self.write_tables()?;
        }
        self.feed_zone();
        if self.saver.is_busy() {
            return Ok(());
        }
        // In this order: the messages tell of nothing that the changes lack.
        let held = self.hold();
        match self.channels.ipam.as_mut().and_then(Allocator::take_changes) {
            Some(changes) => self.saver.save(changes, held)?,
            None => self.release(held),
        }
        Ok(())
    }

    /// What may leave when all that has happened so far is on disk.
    fn hold(&mut self) -> Held {
        let mut messages = Vec::new();
        let unix = unix_now();
        for conn in std::mem::take(&mut self.to_pump) {
            for _ in 0..self.connections.room(conn) {
                let Some(body) = self.mesh.poll_send(conn, unix, &mut self.channels) else {
                    break;
                };
                messages.push((conn, body));
            }
        }
        let answers = self.answers();
        Held { answers, messages }
    }

    pub(super) fn release(&mut self, held: Held) {
        held.answers.into_iter().for_each(|answer| answer());
        for (conn, body) in held.messages {
            self.connections.send(conn, body);
        }
    }

    /// The last turn.
    pub(super) async fn shut_down(mut self, ending: Ending) -> anyhow::Result<()> {
        self.mesh_input(Input::Shutdown);
        self.with_ipam(|ipam, _| ipam.stop());
        let answers = self.answers();
        let changes = self.channels.ipam.as_mut().and_then(Allocator::take_changes);
        let earlier = self.saver.finish().await?;
        if let Some(changes) = changes {
            self.store
                .save_ipam(&changes)
                .context("Error persisting ring data")?;
        }
        earlier
            .answers
            .into_iter()
            .chain(answers)
            .for_each(|answer| answer());
        if ending == Ending::HandOver {
            return Ok(());
        }
        if let Ok(datapath) = &mut self.overlays.fastdp {
            datapath.enable(false)?;
            datapath.apply(&forwarding::Tables::default())?;
        }
        Ok(())
    }
}
