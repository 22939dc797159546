//! The `weave` command (cli.md). Called `weave` or `weave-ctl`; one file for each group of commands.

mod address;
mod attach;
pub mod client;
mod dns_add;
mod dns_lookup;
mod doctor;
mod dying;
mod env;
mod expose;
mod failure;
pub mod launch;
pub mod lock;
mod names;
mod owner;
mod pages;
mod plugin_v2;
mod proxy_env;
mod ps;
mod query;
mod reset;
mod run;
mod screen;
mod standby;
mod stop;
mod targets;
#[cfg(test)]
mod tests;
mod usage;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

pub use env::{Env, Paths};
pub use failure::{Failure, Outcome};
pub(crate) use plugin_v2::is_up as managed_plugin_is_up;
pub(crate) use standby::{end as end_standby, is_there as has_standby, start as start_standby};

/// Commands that went away with Weave Net 2.0.
const REMOVED: [&str; 8] = [
    "start",
    "restart",
    "launch-plugin",
    "stop-plugin",
    "launch-proxy",
    "stop-proxy",
    "launch-router",
    "stop-router",
];

/// Commands of parts that are still to come, and what to do instead.
const LATER: [(&str, &str); 6] = [
    ("setup", "Nothing needs to be set up: run 'weave launch'."),
    ("setup-cni", "Containers are attached with 'weave attach'."),
    ("docker-bridge-ip", "Ask with 'ip address show docker0'."),
    ("bridge-type", "'weave status' tells what carries the traffic."),
    ("attach-bridge", "Connect bridges with 'ip link'."),
    ("bridge-ip", "Ask with 'ip address show weave'."),
];

#[derive(Debug, clap::Parser)]
#[command(
    name = "weave",
    about = "A container network without a central store",
    version,
    disable_version_flag = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
enum Command {
    Attach(attach::AttachArgs),
    Completion(pages::CompletionArgs),
    Config(proxy_env::ConfigArgs),
    Connect(targets::ConnectArgs),
    Detach(attach::DetachArgs),
    DnsAdd(dns_add::DnsAddArgs),
    DnsArgs(dns_lookup::DnsArgsArgs),
    DnsLookup(dns_lookup::DnsLookupArgs),
    DnsRemove(dns_add::DnsRemoveArgs),
    Doctor(doctor::DoctorArgs),
    Env(proxy_env::EnvArgs),
    Expose(expose::ExposeArgs),
    Forget(targets::ForgetArgs),
    Hide(expose::HideArgs),
    Launch(Box<launch::LaunchArgs>),
    Man(pages::ManArgs),
    Prime(targets::PrimeArgs),
    Ps(ps::PsArgs),
    Report(query::ReportArgs),
    Reset(reset::ResetArgs),
    Rmpeer(targets::RmpeerArgs),
    Run(run::RunArgs),
    Status(query::StatusArgs),
    Stop(stop::StopArgs),
    Version(query::VersionArgs),
}

/// What every command needs.
pub(crate) struct Context {
    pub env: Env,
    /// `--local` was given: less is printed.
    pub local: bool,
}

/// Runs the command with the arguments of the process, the program's name first.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<String> = args
        .into_iter()
        .skip(1)
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    match run(&args, Env::of_process()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code)
        }
    }
}

fn run(args: &[String], env: Env) -> Outcome {
    let (local, args) = match args {
        [first, rest @ ..] if first == "--local" => (true, rest),
        args => (false, args),
    };
    let context = Context { env, local };
    let name = args.first().map(String::as_str);
    match name {
        None => return Err(Failure::usage("")),
        Some("help" | "--help" | "-h") => return Err(Failure::new(0, usage::TEXT)),
        Some("--version") => return query::version(&context),
        Some(standby::COMMAND) => return standby::run(args),
        Some(plugin_v2::COMMAND) => return plugin_v2::launch(),
        Some(name) if REMOVED.contains(&name) => return Err(removed(name)),
        Some(name) => {
            if let Some((_, hint)) = LATER.iter().find(|(later, _)| *later == name) {
                let text = format!("The 'weave {name}' command is not available in this version.\n{hint}");
                return Err(Failure::new(1, text));
            }
        }
    }
    dispatch(parse(args)?, &context, args)
}

fn removed(name: &str) -> Failure {
    let text = format!(
        "The 'weave {name}' command has been removed as of Weave Net version 2.0\n\
         Please see release notes for further information"
    );
    Failure::new(1, text)
}

fn parse(args: &[String]) -> Result<Command, Failure> {
    let name = args.first().map_or("", String::as_str);
    let args = if name == "launch" {
        launch::normalised(args)
    } else {
        args.to_vec()
    };
    let mut command = Command::command().mut_subcommand("launch", launch::with_other_flags);
    if command.find_subcommand(name).is_none() {
        let hint = suggestion(command.try_get_matches_from_mut(["weave", name]).err().as_ref());
        return Err(Failure::usage(&format!("Unknown weave command '{name}'\n{hint}")));
    }
    let parsed = command
        .try_get_matches_from_mut(std::iter::once("weave".to_owned()).chain(args))
        .and_then(|matches| {
            let mut command = Command::from_arg_matches(&matches)?;
            if let (Command::Launch(launch), Some(matches)) =
                (&mut command, matches.subcommand_matches("launch"))
            {
                launch.other = launch::find(matches);
            }
            Ok(command)
        });
    parsed.map_err(|e| match e.kind() {
        clap::error::ErrorKind::DisplayHelp => {
            let _ = e.print();
            Failure::silent(0)
        }
        _ if name == "launch" => launch::flag_error(&e),
        _ => {
            // Up to the parser's own usage text; ours follows.
            let rendered = e.render().to_string();
            let reason: Vec<&str> = rendered
                .lines()
                .take_while(|l| !l.is_empty())
                .map(str::trim)
                .collect();
            let reason = reason.join(" ");
            let (reason, hint) = (reason.trim_start_matches("error: "), suggestion(Some(&e)));
            Failure::usage(&format!("{reason}\n{hint}\n"))
        }
    })
}

/// A line that names what was probably meant, if anything comes near.
fn suggestion(error: Option<&clap::Error>) -> String {
    use clap::error::{ContextKind, ContextValue};
    let kinds = [
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedArg,
        ContextKind::SuggestedValue,
    ];
    let near = kinds.into_iter().find_map(|kind| match error?.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.last().cloned(),
        _ => None,
    });
    near.map_or(String::new(), |near| format!("Did you mean '{near}'?\n"))
}

fn dispatch(command: Command, context: &Context, args: &[String]) -> Outcome {
    match command {
        Command::Launch(options) => launch::launch(*options, context, args),
        Command::Version(_) => query::version(context),
        Command::Completion(args) => pages::completion(&args),
        Command::Man(args) => pages::man(&args),
        Command::Stop(args) => block_on(stop::stop(&args, context)),
        Command::Reset(options) => block_on(reset::reset(&options, context)),
        Command::Status(options) => block_on(query::status(&options, context)),
        Command::Report(options) => block_on(query::report(&options, context)),
        Command::Env(args) => block_on(proxy_env::env(args, context)),
        Command::Config(_) => block_on(proxy_env::config(context)),
        Command::Connect(options) => block_on(targets::connect(options, context)),
        Command::Forget(options) => block_on(targets::forget(options, context)),
        Command::Prime(_) => block_on(targets::prime(context)),
        Command::Rmpeer(options) => block_on(targets::rmpeer(options, context)),
        Command::Attach(options) => block_on(attach::attach(options, context)),
        Command::Detach(options) => block_on(attach::detach(options, context)),
        Command::DnsAdd(options) => block_on(dns_add::dns_add(options, context)),
        Command::DnsRemove(options) => block_on(dns_add::dns_remove(options, context)),
        Command::DnsLookup(options) => block_on(dns_lookup::dns_lookup(options, context)),
        Command::DnsArgs(_) => block_on(dns_lookup::dns_args(context)),
        Command::Expose(options) => block_on(expose::expose(options, context)),
        Command::Hide(options) => block_on(expose::hide(options, context)),
        Command::Run(options) => run::run(&options, context),
        Command::Ps(options) => block_on(ps::ps(options, context)),
        Command::Doctor(options) => block_on(doctor::doctor(&options, context)),
    }
}

/// Drives a command that talks to somebody.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(1, format!("cannot start the runtime: {e}")))?
        .block_on(future)
}

/// Prints on standard output. A reader that went away is nobody's fault.
pub(crate) fn out(text: &str) {
    let _ = try_out(text);
}

/// Likewise, for those who would otherwise go on for ever.
fn try_out(text: &str) -> std::io::Result<()> {
    #[cfg(test)]
    tests::PRINTED.with_borrow_mut(|printed| printed.push_str(text));
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
}

/// Prints a line on standard error.
pub(crate) fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Commands that touch the host need root.
pub(crate) fn need_root() -> Outcome {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new(1, "weave must be run as 'root' when run locally"))
}
