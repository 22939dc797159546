//! What a run of the simulator is made with, and the command that repeats it.

use std::fmt;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Everything: joining, leaving, partitions, clocks, faults, each followed by agreement.
    Big,
    /// Joining, then nothing: what gossip costs at rest.
    Idle,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Of all dice.
    pub seed: u64,
    /// How many peers.
    pub peers: usize,
    /// Connections of a peer at most; 0 for no limit.
    pub conn_limit: usize,
    /// So many of a hundred peers neither say nor understand what only new peers do.
    pub originals: u32,
    /// What happens.
    pub scenario: Scenario,
    /// Tells what happens.
    pub verbose: bool,
}

impl Options {
    /// `peers` peers with the product's limit, one in five of them an original.
    #[must_use]
    pub fn new(seed: u64, peers: usize) -> Self {
        Self {
            seed,
            peers,
            conn_limit: 200,
            originals: 20,
            scenario: Scenario::Big,
            verbose: false,
        }
    }

    /// A small cluster: its size, limit and share of originals follow from the seed.
    #[must_use]
    pub fn small(seed: u64) -> Self {
        Self {
            conn_limit: if seed % 4 == 3 { 8 } else { 0 },
            originals: [0, 20, 50, 100].get(seed as usize % 4).copied().unwrap_or(0),
            ..Self::new(seed, 10 + (seed as usize * 7) % 11)
        }
    }
}

impl fmt::Display for Options {
    /// The command.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scenario = match self.scenario {
            Scenario::Big => "big",
            Scenario::Idle => "idle",
        };
        write!(
            f,
            "cargo xtask sim --seed {} --peers {} --conn-limit {} --originals {} --scenario {scenario}",
            self.seed, self.peers, self.conn_limit, self.originals
        )
    }
}
