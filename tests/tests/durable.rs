//! What the daemon has answered survives its death.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weave_tests::lab::{Host, Lab, Plan, netns};
use weave_tests::load::{self, CONTROL, Load, Request};
use weave_tests::process::{self, LIMIT};

const CLIENTS: usize = 16;
/// Allocations of each client; more than are answered before the daemon is killed.
const EACH: usize = 5000;

fn id(round: usize, client: usize, number: usize) -> String {
    format!("r{round}c{client}n{number}")
}

/// Every other address is given back at once.
fn script(round: usize, client: usize) -> Vec<Request> {
    let requests = (0..EACH).flat_map(|number| {
        let id = id(round, client, number);
        let free = (number % 2 == 1).then(|| Request::free(&id));
        [Some(Request::allocate(&id)), free].into_iter().flatten()
    });
    requests.collect()
}

/// Loads the daemon, kills it in the middle, and gives what was answered.
fn load_and_kill(host: &Host, round: usize) -> Result<Load> {
    let scripts: Vec<Vec<Request>> = (0..CLIENTS).map(|client| script(round, client)).collect();
    let answered = AtomicUsize::new(0);
    let address = CONTROL.parse()?;
    std::thread::scope(|scope| {
        let client =
            scope.spawn(|| netns::inside(host.netns(), || load::run(address, &scripts, LIMIT, &answered)));
        let killed = process::wait_for("1000 answers", LIMIT, || {
            Ok((answered.load(Ordering::Relaxed) >= 1000).then_some(()))
        })
        .and_then(|()| host.kill_daemon());
        let load = client
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))?;
        killed.and(load)
    })
}

/// Owner to addresses, as the daemon has it.
fn owned(host: &Host) -> Result<BTreeMap<String, Vec<String>>> {
    let address = CONTROL.parse()?;
    let body = netns::inside(host.netns(), || load::get(address, "/ip", LIMIT))?;
    let body: Value = serde_json::from_str(&body)?;
    let owners = body["owned"].as_array().cloned().unwrap_or_default();
    let owner = |owner: &Value| {
        let addresses = owner["addrs"].as_array()?.iter();
        let addresses = addresses.map(|a| a.as_str().map(str::to_owned));
        Some((
            owner["containerid"].as_str()?.to_owned(),
            addresses.collect::<Option<_>>()?,
        ))
    };
    owners.iter().map(|o| owner(o).context("odd owner")).collect()
}

#[test]
fn what_was_answered_survives_sigkill() {
    Plan::mesh(1).test("durable", |lab: &Lab| {
        let host = lab.host(1)?;
        host.launch(&[])?;
        // What owners must have now, by all the answers so far.
        let mut expected: BTreeMap<String, String> = BTreeMap::new();
        for round in 0..3 {
            let load = load_and_kill(host, round)?;
            let mut unanswered = BTreeSet::new();
            for (client, answers) in load.answers.iter().enumerate() {
                let requests = script(round, client);
                for (request, answer) in requests.iter().zip(answers) {
                    ensure!(answer.status < 300, "{request:?}: {answer:?}");
                    let id = request.path.trim_start_matches("/ip/").to_owned();
                    match request.method {
                        "POST" => expected.insert(id, answer.body.clone()),
                        _ => expected.remove(&id),
                    };
                }
                // The one that was under way may have been carried out or not.
                let open = requests.get(answers.len());
                unanswered.extend(open.map(|r| r.path.trim_start_matches("/ip/").to_owned()));
            }
            ensure!(
                !unanswered.is_empty(),
                "all was answered before the daemon was killed"
            );
            host.launch(&[])?;
            let owned = owned(host)?;
            for (id, address) in &expected {
                let has = owned.get(id);
                let kept = has.is_some_and(|a| a.iter().eq([address]));
                ensure!(
                    kept || unanswered.contains(id),
                    "{id} was given {address}, has {has:?}"
                );
            }
            let mut seen = BTreeSet::new();
            for (id, addresses) in &owned {
                let known = expected.contains_key(id) || unanswered.contains(id);
                ensure!(known, "{id} has {addresses:?}, which it gave back");
                for address in addresses {
                    ensure!(seen.insert(address), "{address} is owned twice");
                }
            }
            println!(
                "round {round}: {} owners kept, {} requests open",
                owned.len(),
                unanswered.len()
            );
            expected = owned
                .into_iter()
                .filter_map(|(id, a)| Some((id, a.into_iter().next()?)))
                .collect();
        }
        Ok(())
    });
}
