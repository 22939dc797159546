//! Is the daemon there, is it ours, and what may keep it from starting?

use super::facts::{Answer, Data};
use super::{Finding, Fix, HostFacts, list};
use crate::api::report::Report;

pub(super) fn check(report: Option<&Report>, facts: &HostFacts) -> Vec<Finding> {
    let mut found = match report {
        Some(report) => answered(report, facts),
        None => unanswered(facts),
    };
    if let Data::Bad(why) = &facts.data {
        found.push(
            Finding::problem("data-damaged", why.clone())
                .why("without its data this peer does not know its name, its part of the range and who uses it")
                .run("weave reset --force && weave launch ... (or put back a backup of the file)"),
        );
    }
    found
}

fn answered(report: &Report, facts: &HostFacts) -> Vec<Finding> {
    let mut found = Vec::new();
    let version = &report.version;
    match &report.process {
        None => found.push(
            Finding::warning(
                "other-daemon",
                format!(
                    "the daemon at {} is Weave Net {version}, not of this program",
                    facts.address
                ),
            )
            .why("it tells less of itself, so that less can be checked"),
        ),
        Some(process)
            if facts
                .lock_holder
                .is_some_and(|pid| pid.unsigned_abs() != process.pid) =>
        {
            let holder = facts.lock_holder.unwrap_or_default();
            found.push(
                Finding::problem(
                    "two-daemons",
                    format!(
                        "process {} answers at {}, but process {holder} holds the lock of this host's daemon",
                        process.pid, facts.address
                    ),
                )
                .why("commands reach the wrong daemon")
                .run("set WEAVE_HTTP_ADDR, WEAVE_RUN_DIR and WEAVE_DATA_DIR as for the daemon that is meant"),
            );
        }
        Some(process) if facts.lock_holder.is_none() => found.push(
            Finding::note(
                "other-run-dir",
                format!(
                    "the daemon (process {}) was launched with another WEAVE_RUN_DIR",
                    process.pid
                ),
            )
            .why("'weave stop' does not find it"),
        ),
        Some(_) => {}
    }
    if report.process.is_some() && *version != facts.version {
        found.push(
            Finding::warning(
                "version-differs",
                format!("the daemon has version {version}, this command {}", facts.version),
            )
            .why("the daemon still runs the program from before an update")
            .run("weave stop --keep-traffic && weave launch --resume ... (with the options of the last launch)"),
        );
    }
    if !report.ready {
        found.push(
            Finding::warning("not-ready", "the daemon is still starting")
                .why("commands may fail until it is ready")
                .run("weave status, in a few seconds")
                .passing(),
        );
    }
    found
}

fn unanswered(facts: &HostFacts) -> Vec<Finding> {
    let address = &facts.address;
    let mut found = Vec::new();
    match (&facts.answer, facts.lock_holder) {
        (Answer::Report, _) => {}
        (Answer::Nobody(_), None) => found.push(not_running(facts)),
        (Answer::Nobody(why), Some(pid)) => found.push(
            Finding::problem(
                "daemon-not-answering",
                format!("the daemon runs (process {pid}), but does not answer: {why}"),
            )
            .why("commands cannot reach it; traffic goes on")
            .run("set WEAVE_HTTP_ADDR as at its launch, if that was another")
            .run("else: weave stop && weave launch --resume ..."),
        ),
        (Answer::Silence, _) => found.push(
            Finding::problem(
                "daemon-not-answering",
                format!("{address} takes connections, but gives no answer"),
            )
            .why("a daemon that hangs follows no change of the cluster; the kernel's traffic goes on")
            .run("weave stop && weave launch --resume ... (keep the log before, and report it)"),
        ),
        (Answer::Other(why), _) => found.push(
            Finding::problem(
                "not-weave",
                format!("what answers at {address} is no weave daemon: {why}"),
            )
            .why("commands go to somebody else, and a daemon cannot listen there")
            .run("weave launch --http-addr 127.0.0.1:OTHER ..., and WEAVE_HTTP_ADDR for all commands"),
        ),
    }
    for stranger in &facts.strangers {
        let who = stranger.who.as_deref().unwrap_or("another process");
        found.push(
            Finding::problem("port-taken", format!("{} is held by {who}", stranger.port))
                .why("a daemon cannot be launched while it is")
                .run("end that process, or launch with another --port, --http-addr or --status-addr"),
        );
    }
    if !facts.stale_pins.is_empty() {
        let mut finding = Finding::note(
            "leftovers",
            format!("left by a daemon that has ended: {}", list(&facts.stale_pins)),
        )
        .why("programs of interfaces that are gone; the next launch removes them too");
        for path in &facts.stale_pins {
            finding = finding.fix(Fix::Remove { path: path.clone() });
        }
        found.push(finding);
    }
    found
}

fn not_running(facts: &HostFacts) -> Finding {
    let mut what = "no weave daemon runs on this host".to_owned();
    let first = matches!(facts.data, Data::Absent) && facts.bridge.is_none();
    if first {
        what.push_str(", and none has been here");
    } else if let Some(bridge) = &facts.bridge {
        what.push_str(&format!(
            "; the bridge {} has {} ports",
            facts.bridge_name,
            bridge.ports.len()
        ));
    }
    if let Some(complaint) = &facts.complaint {
        what.push_str(&format!("; its log says at last: {complaint}"));
    }
    let launch = if first {
        "weave launch PEER ..."
    } else {
        "weave launch --resume ... (with the options of the last launch)"
    };
    Finding::problem("daemon-not-running", what)
        .why("nothing is allocated, and no change of the cluster is followed")
        .run(launch)
}
