//! Flags of the original that are not options of this version: scripts pass them all the same.
//!
//! What asks for something that we cannot do is refused; what makes no difference is only noted.

use clap::{Arg, Command};

use super::flags::boolean;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// `--x` or `--x=true|false`.
    Boolean,
    /// `--x value`.
    Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Goes on without it.
    Note(&'static str),
    /// Ends, unless it is switched off or empty.
    Refuse(&'static str),
}

use Takes::{Boolean, Value};
use Then::{Note, Refuse};

const NO_DISCOVERY: Then = Note("there is no discovery service any more");
const HERE: Then = Note("weave runs on the host itself");

const FLAGS: &[(&str, Takes, Then)] = &[
    ("advertise-address", Value, NO_DISCOVERY),
    (
        "awsvpc",
        Boolean,
        Refuse("AWSVPC mode is not available in this version"),
    ),
    ("bufsz", Value, Note("nothing is captured")),
    (
        "datapath",
        Value,
        Note("the fast path needs no Open vSwitch datapath"),
    ),
    ("db-prefix", Value, Note("use --data-dir")),
    (
        "expect-npc",
        Boolean,
        Refuse("network policies are not available in this version"),
    ),
    ("host-root", Value, HERE),
    (
        "no-bridged-fastdp",
        Boolean,
        Note("the fast path always comes with a bridge"),
    ),
    (
        "no-masq-local",
        Boolean,
        Note("nothing is masqueraded in this version; this comes with 'expose'"),
    ),
    (
        "no-restart",
        Boolean,
        Note("whoever starts the daemon restarts it"),
    ),
    ("peer-discovery-url", Value, NO_DISCOVERY),
    (
        "pkt-debug",
        Boolean,
        Note("'weave report' counts packets by verdict"),
    ),
    ("proc-path", Value, HERE),
    ("profile", Value, Note("use perf")),
    (
        "token",
        Value,
        Refuse("there is no discovery service any more; name the peers instead"),
    ),
];

/// What was found on the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// One line for each flag that makes no difference.
    pub notes: Vec<String>,
    /// Why to stop.
    pub refused: Option<String>,
}

/// Adds the flags to the command, out of sight.
pub fn with_other_flags(command: Command) -> Command {
    let others = FLAGS.iter().map(|(name, takes, _)| {
        let arg = Arg::new(*name).long(*name).hide(true);
        match takes {
            Value => arg
                .value_parser(clap::value_parser!(String))
                .allow_hyphen_values(true),
            Boolean => arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(boolean),
        }
    });
    command.args(others).args_override_self(true)
}

/// Looks for the flags in what was parsed.
pub fn find(matches: &clap::ArgMatches) -> Found {
    let mut found = Found::default();
    for (name, takes, then) in FLAGS {
        let asked = match takes {
            Value => matches.get_one::<String>(name).map(|value| !value.is_empty()),
            Boolean => matches.get_one::<bool>(name).copied(),
        };
        match (asked, then) {
            (Some(true), Refuse(why)) => found.refused = Some(format!("--{name}: {why}.")),
            (Some(true), Note(why)) => found
                .notes
                .push(format!("WARNING: --{name} has no effect: {why}.")),
            _ => {}
        }
    }
    found
}
