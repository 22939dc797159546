//! Clocks that go wrong.

use super::{Finding, View, list};

/// Worth a word, in seconds.
const LATE: u64 = 60;
/// Original peers with WeaveDNS close connections beyond this (control.md 2.2), in seconds.
const TOO_LATE: u64 = 900;

pub(super) fn check(view: &View<'_>) -> Vec<Finding> {
    let mut found = refused(view);
    let Some(ipam) = &view.report.ipam else {
        return found;
    };
    let mut all: Vec<i64> = ipam.clock_skew.iter().map(|skew| skew.seconds).collect();
    let others = all.len();
    all.push(0);
    all.sort_unstable();
    // Of an even number the one nearer to us, so that of two hosts it is the other one that differs.
    let middle = |at: usize| all.get(at).copied().unwrap_or_default();
    let (low, high) = (middle((all.len() - 1) / 2), middle(all.len() / 2));
    let right = if low.unsigned_abs() <= high.unsigned_abs() {
        low
    } else {
        high
    };
    let ours = (right.unsigned_abs(), "this host's clock".to_owned(), -right);
    let theirs = ipam.clock_skew.iter().map(|skew| {
        let off = skew.seconds.saturating_sub(right);
        let name = match skew.nickname.as_str() {
            "" => view.names.of(&skew.peer),
            nick => nick.to_owned(),
        };
        (off.unsigned_abs(), format!("the clock of {name}"), off)
    });
    let off: Vec<(u64, String, i64)> = theirs.chain([ours]).filter(|(by, ..)| *by > LATE).collect();
    let Some(worst) = off.iter().map(|(by, ..)| *by).max() else {
        return found;
    };
    let told: Vec<String> = off
        .iter()
        .map(|(by, whose, signed)| {
            let way = if *signed > 0 { "ahead" } else { "behind" };
            format!("{whose} is {by} s {way}")
        })
        .collect();
    let against = match others {
        0 | 1 => " of this host's".to_owned(),
        _ => format!(" of most of the {} that were compared", others + 1),
    };
    let what = format!("{}{against}", list(&told));
    let finding = match worst > TOO_LATE {
        true => Finding::problem("clock-skew", what),
        false => Finding::warning("clock-skew", what),
    };
    found.push(
        finding
            .why("original peers with WeaveDNS close connections to hosts whose clock is off by more than 900 s")
            .run("timedatectl set-ntp true (or chronyc makestep), on the hosts named"),
    );
    found
}

/// Originals that have closed a connection over it.
fn refused(view: &View<'_>) -> Vec<Finding> {
    let attempts = view.report.router.connections.iter();
    let skewed = attempts.filter_map(|c| {
        let error = &c.attempt.as_ref()?.error;
        let finding = Finding::problem("clock-skew", format!("{}: {error}", c.address))
            .why("original peers with WeaveDNS close connections to hosts whose clock is off by more than 900 s")
            .run("timedatectl set-ntp true (or chronyc makestep), on this host and on that");
        is_skew(error).then_some(finding)
    });
    skewed.collect()
}

/// The text of an original.
pub(super) fn is_skew(error: &str) -> bool {
    error.contains("clock skew")
}
