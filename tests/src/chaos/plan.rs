//! What is done to the cluster and when, from a seed alone: so a run that failed can be repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::random::Random;

/// One thing that is done. Hosts are counted from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// SIGKILL to the daemon.
    Kill(usize),
    /// `stop`, or `stop --keep-traffic`.
    Stop {
        /// Where.
        host: usize,
        /// `--keep-traffic`.
        keep: bool,
    },
    /// `launch` after one of these.
    Launch {
        /// Where.
        host: usize,
        /// `--resume` instead of addresses of peers.
        resume: bool,
    },
    /// `reset`: the host leaves for good, with its containers.
    Reset(usize),
    /// SIGKILL, then `reset`: the host is lost, and nobody is told.
    Lose(usize),
    /// `rmpeer` of a lost host.
    Remove {
        /// Where the command is given.
        by: usize,
        /// The lost host.
        gone: usize,
    },
    /// `launch` on a host that has left, and a container on it.
    Join(usize),
    /// The host's link goes down.
    Cut(usize),
    /// And up again.
    Mend(usize),
    /// The hosts for which `true` stands see only each other.
    Partition(Vec<bool>),
    /// They all see each other again.
    Heal,
    /// The fast path is blocked between two hosts.
    Block {
        /// From here.
        a: usize,
        /// To there.
        b: usize,
        /// Not the other way.
        one_way: bool,
    },
    /// It is free again.
    Lift {
        /// The same.
        a: usize,
        /// The same.
        b: usize,
    },
    /// SIGSTOP to the daemon.
    Pause(usize),
    /// SIGCONT.
    Continue(usize),
    /// One more container.
    Attach(usize),
    /// One less, unless there is none but the first.
    Detach(usize),
    /// So many addresses over HTTP.
    Allocate {
        /// Where.
        host: usize,
        /// How many.
        count: usize,
    },
    /// All of them are given back.
    Free(usize),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let h = |host: &usize| format!("h{}", host + 1);
        match self {
            Self::Kill(host) => write!(f, "kill -9 on {}", h(host)),
            Self::Stop { host, keep: false } => write!(f, "stop on {}", h(host)),
            Self::Stop { host, keep: true } => write!(f, "stop --keep-traffic on {}", h(host)),
            Self::Launch { host, resume: false } => write!(f, "launch on {}", h(host)),
            Self::Launch { host, resume: true } => write!(f, "launch --resume on {}", h(host)),
            Self::Reset(host) => write!(f, "reset on {}", h(host)),
            Self::Lose(host) => write!(f, "{} is lost", h(host)),
            Self::Remove { by, gone } => write!(f, "rmpeer {} on {}", h(gone), h(by)),
            Self::Join(host) => write!(f, "{} joins anew", h(host)),
            Self::Cut(host) => write!(f, "link of {} down", h(host)),
            Self::Mend(host) => write!(f, "link of {} up", h(host)),
            Self::Partition(one) => {
                let side: Vec<String> = (0..one.len())
                    .filter(|i| one.get(*i) == Some(&true))
                    .map(|i| h(&i))
                    .collect();
                write!(f, "partition: {} | the others", side.join(" "))
            }
            Self::Heal => f.write_str("partition healed"),
            Self::Block { a, b, one_way } => {
                write!(
                    f,
                    "fast path blocked {} {} {}",
                    h(a),
                    if *one_way { "->" } else { "<->" },
                    h(b)
                )
            }
            Self::Lift { a, b } => write!(f, "fast path free between {} and {}", h(a), h(b)),
            Self::Pause(host) => write!(f, "daemon of {} stopped (SIGSTOP)", h(host)),
            Self::Continue(host) => write!(f, "daemon of {} goes on", h(host)),
            Self::Attach(host) => write!(f, "attach on {}", h(host)),
            Self::Detach(host) => write!(f, "detach on {}", h(host)),
            Self::Allocate { host, count } => write!(f, "{count} allocations on {}", h(host)),
            Self::Free(host) => write!(f, "frees on {}", h(host)),
        }
    }
}

/// The actions of each step.
pub type Steps = Vec<Vec<Action>>;

struct Planner {
    random: Random,
    hosts: usize,
    step: usize,
    last: usize,
    /// What ends what was begun.
    ends: BTreeMap<usize, Vec<Action>>,
    /// Hosts to which something is being done, and until when.
    busy: BTreeMap<usize, usize>,
    blocked: BTreeSet<(usize, usize)>,
    /// Until when hosts are out of each other's sight.
    apart: usize,
    /// Until when membership changes.
    changing: usize,
}

/// Steps for `hosts` hosts; everything that is begun has ended after the last one.
///
/// Some things exclude each other, as they would in the hands of a careful operator: who leaves for good,
/// or is removed, must be seen to do so by all the others before it joins anew.
pub fn plan(seed: u64, hosts: usize, steps: usize) -> Steps {
    let mut planner = Planner {
        random: Random::new(seed),
        hosts,
        step: 0,
        last: steps.saturating_sub(1),
        ends: BTreeMap::new(),
        busy: BTreeMap::new(),
        blocked: BTreeSet::new(),
        apart: 0,
        changing: 0,
    };
    (0..steps).map(|step| planner.step(step)).collect()
}

impl Planner {
    fn step(&mut self, step: usize) -> Vec<Action> {
        self.step = step;
        let mut actions = self.ends.remove(&step).unwrap_or_default();
        for action in &actions {
            if let Action::Lift { a, b } = action {
                self.blocked.remove(&(*a, *b));
            }
        }
        let news = if self.random.chance(30) { 2 } else { 1 };
        for _ in 0..news {
            // What the dice say may not be possible now.
            actions.extend((0..4).find_map(|_| self.begin()));
        }
        actions
    }

    fn host(&mut self) -> usize {
        self.random.below(self.hosts as u64) as usize
    }

    fn is_free(&self, host: usize) -> bool {
        self.busy.get(&host).is_none_or(|until| *until < self.step)
    }

    fn all_free(&self) -> bool {
        (0..self.hosts).all(|host| self.is_free(host))
    }

    /// Ends what was begun now, within `most` steps; the step in which it does.
    fn later(&mut self, most: u64, end: Action) -> usize {
        let at = (self.step + 1 + self.random.below(most) as usize).min(self.last);
        self.ends.entry(at).or_default().push(end);
        at
    }

    fn begin(&mut self) -> Option<Action> {
        let host = self.host();
        // Nothing begins in the last step.
        if self.step >= self.last {
            return None;
        }
        let kind = self.random.below(100);
        let trouble = (0..self.hosts).filter(|host| !self.is_free(*host)).count();
        let quiet = self.is_free(host) && self.changing < self.step && trouble * 2 < self.hosts;
        match kind {
            0..15 if quiet => {
                let resume = self.random.chance(50);
                let end = Action::Launch { host, resume };
                let until = self.later(5, end);
                self.busy.insert(host, until);
                Some(Action::Kill(host))
            }
            15..25 if quiet => {
                let resume = self.random.chance(50);
                let keep = self.random.chance(50);
                let end = Action::Launch { host, resume };
                let until = self.later(5, end);
                self.busy.insert(host, until);
                Some(Action::Stop { host, keep })
            }
            25..33 if quiet => {
                let until = self.later(4, Action::Continue(host));
                self.busy.insert(host, until);
                Some(Action::Pause(host))
            }
            33..41 if quiet && self.apart < self.step => {
                let until = self.later(8, Action::Mend(host));
                self.busy.insert(host, until);
                self.apart = until;
                Some(Action::Cut(host))
            }
            41..48 if quiet && self.apart < self.step => {
                let mut one: Vec<bool> = (0..self.hosts).map(|_| self.random.chance(50)).collect();
                // Both sides have somebody.
                if let [first, .., last] = one.as_mut_slice() {
                    (*first, *last) = (true, false);
                }
                self.apart = self.later(10, Action::Heal);
                Some(Action::Partition(one))
            }
            48..60 => {
                let other = self.host();
                let pair = (host.min(other), host.max(other));
                if host == other || !self.blocked.insert(pair) {
                    return None;
                }
                let (a, b) = pair;
                self.later(8, Action::Lift { a, b });
                let one_way = self.random.chance(40);
                Some(Action::Block { a, b, one_way })
            }
            60..68
                if self.changing < self.step
                    && self.apart < self.step
                    && self.all_free()
                    && self.step + 8 < self.last =>
            {
                let leaves = self.random.chance(50);
                let by = (host + 1) % self.hosts;
                let back = self.step + 6;
                if !leaves {
                    let remove = Action::Remove { by, gone: host };
                    self.ends.entry(self.step + 3).or_default().push(remove);
                }
                self.ends.entry(back).or_default().push(Action::Join(host));
                self.busy.insert(host, back);
                // All the others stay as they are meanwhile.
                (self.changing, self.apart) = (back + 2, back + 2);
                Some(if leaves {
                    Action::Reset(host)
                } else {
                    Action::Lose(host)
                })
            }
            68..78 if self.is_free(host) => Some(Action::Attach(host)),
            78..85 if self.is_free(host) => Some(Action::Detach(host)),
            85..94 if self.is_free(host) => {
                let count = 1 + self.random.below(8) as usize;
                Some(Action::Allocate { host, count })
            }
            94.. if self.is_free(host) => Some(Action::Free(host)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_seeds_differ() {
        assert_eq!(plan(7, 6, 100), plan(7, 6, 100));
        assert_ne!(plan(7, 6, 100), plan(8, 6, 100));
    }

    #[test]
    fn everything_happens_and_everything_ends() {
        let mut seen = BTreeSet::new();
        for seed in 0..40 {
            let (mut down, mut paused, mut cut, mut blocked) = (0, 0, 0, 0);
            let (mut parted, mut gone) = (0, 0);
            for action in plan(seed, 6, 120).into_iter().flatten() {
                let word = format!("{action:?}");
                seen.insert(word.split(['(', ' ']).next().unwrap_or_default().to_owned());
                match action {
                    Action::Kill(_) | Action::Stop { .. } => down += 1,
                    Action::Launch { .. } => down -= 1,
                    Action::Pause(_) => paused += 1,
                    Action::Continue(_) => paused -= 1,
                    Action::Cut(_) => cut += 1,
                    Action::Mend(_) => cut -= 1,
                    Action::Block { .. } => blocked += 1,
                    Action::Lift { .. } => blocked -= 1,
                    Action::Partition(_) => parted += 1,
                    Action::Heal => parted -= 1,
                    Action::Reset(_) | Action::Lose(_) => {
                        assert_eq!((down, paused, cut, parted, gone), (0, 0, 0, 0, 0), "seed {seed}");
                        gone += 1;
                    }
                    Action::Join(_) => gone -= 1,
                    _ => {}
                }
                assert!(parted + cut <= 1 && gone <= 1, "seed {seed}");
                assert!(
                    down + paused <= 3,
                    "seed {seed}: {down} down and {paused} paused of 6"
                );
            }
            let left = (down, paused, cut, parted, blocked, gone);
            assert_eq!(left, (0, 0, 0, 0, 0, 0), "seed {seed}");
        }
        assert_eq!(seen.len(), 19, "{seen:?}");
    }
}
