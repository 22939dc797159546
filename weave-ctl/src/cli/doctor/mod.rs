//! `weave doctor`: what is wrong here and in the cluster, what to run, and what can be mended at once.

mod fix;
mod listeners;
mod look;

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::time::Duration;

use super::{Context, Failure, Outcome, out};
use crate::doctor::facts::Answer;
use crate::doctor::text::{self, Colour};
use crate::doctor::{self, Finding, Fix};

/// How long a cluster in motion has until it is looked at again.
const SETTLE: Duration = Duration::from_secs(3);
/// How often, and how many times, we look whether repairs have taken effect.
const PAUSE: Duration = Duration::from_millis(500);
const ROUNDS: usize = 10;
/// Exit status when there is no telling.
const UNKNOWN: u8 = 2;

/// Find out what is wrong on this host and in its cluster, and what to do about it
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status:\n  \
    0  nothing to repair (there may be notes)\n  \
    1  problems or warnings were found\n  \
    2  there is no telling: what answers is not a weave daemon, or it hangs\n\n\
    Examples:\n  weave doctor\n  weave doctor --fix\n  \
    weave doctor --json | jq -r '.findings[].id'\n\n\
    --fix does only what can hurt nobody, and says each step. It takes no addresses over from others:\n\
    that is what 'weave rmpeer' is for.")]
pub(crate) struct DoctorArgs {
    /// Mend what can be mended without harm, then look again
    #[arg(long)]
    fix: bool,
    /// Print JSON for scripts
    #[arg(long)]
    json: bool,
}

pub(super) async fn doctor(args: &DoctorArgs, context: &Context) -> Outcome {
    if args.fix {
        super::need_root().map_err(|failure| Failure {
            code: UNKNOWN,
            ..failure
        })?;
    }
    let (mut seen, mut findings) = settled(context).await;
    let mut steps = Vec::new();
    if args.fix {
        let fixes: Vec<Fix> = findings.iter().flat_map(|f| f.safe_fix.clone()).collect();
        for fix in &fixes {
            let step = fix::apply(fix, context).await;
            if !args.json {
                out(&format!("{step}\n"));
            }
            steps.push(step);
        }
        if !fixes.is_empty() {
            (seen, findings) = mended(context).await;
        }
    }
    let text = match args.json {
        true => text::for_scripts(&findings, args.fix.then_some(&steps))
            .map_err(|e| Failure::new(UNKNOWN, e.to_string()))?,
        false => text::for_people(&findings, Colour(std::io::stdout().is_terminal())),
    };
    if !steps.is_empty() && !args.json {
        out("\n");
    }
    out(&text);
    match seen.facts.answer {
        Answer::Silence | Answer::Other(_) => Err(Failure::silent(UNKNOWN)),
        _ if text::sound(&findings) => Ok(()),
        _ => Err(Failure::silent(1)),
    }
}

async fn once(context: &Context) -> (look::Seen, Vec<Finding>) {
    let seen = look::look(context).await;
    let findings = doctor::findings(seen.report.as_ref(), &seen.facts);
    (seen, findings)
}

/// What may pass by itself is told only if it is seen twice.
async fn settled(context: &Context) -> (look::Seen, Vec<Finding>) {
    let (seen, findings) = once(context).await;
    let passing: BTreeSet<&str> = findings.iter().filter(|f| f.passing).map(|f| f.id).collect();
    if passing.is_empty() {
        return (seen, findings);
    }
    tokio::time::sleep(SETTLE).await;
    let (seen, mut again) = once(context).await;
    again.retain(|finding| !finding.passing || passing.contains(finding.id));
    (seen, again)
}

/// After repairs, which may take a moment to show.
async fn mended(context: &Context) -> (look::Seen, Vec<Finding>) {
    for _ in 0..ROUNDS {
        tokio::time::sleep(PAUSE).await;
        let (_, findings) = once(context).await;
        if findings.iter().all(|finding| finding.safe_fix.is_empty()) {
            break;
        }
    }
    settled(context).await
}
