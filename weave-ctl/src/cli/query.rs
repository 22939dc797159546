//! `weave status`, `weave report`, `weave version` (cli.md 4.1, 4.12, 4.13).

use crate::api::status::Page;
use crate::overlay::fastdp::object;

use std::time::Duration;

use super::client::{Client, Reply, segment};
use super::screen::{self, Screen};
use super::{Context, Failure, Outcome, out};

/// Show the state of this peer
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  weave status\n  weave status connections\n  \
    weave status connections --watch\n  weave status ipam --output json")]
pub(crate) struct StatusArgs {
    /// targets, connections, peers, dns, or ipam; a summary if left out
    page: Vec<String>,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Format,
    /// Show it again every two seconds, or every SECONDS, until Ctrl-C
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2", value_parser = interval)]
    watch: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// From a tenth of a second to a day.
fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| (0.1..=86_400.0).contains(s));
    let interval = seconds.map(Duration::from_secs_f64);
    interval.ok_or_else(|| "a number of seconds, 0.1 or more".to_owned())
}

/// Print everything that this peer knows about itself, as JSON or through a template
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  weave report\n  \
    weave report -f '{{.Router.Name}}'\n  \
    weave report -f '{{range .Router.Connections}}{{.Address}} {{.State}}{{println}}{{end}}'")]
pub(crate) struct ReportArgs {
    /// Go template over the JSON
    #[arg(short, value_name = "FORMAT", allow_hyphen_values = true)]
    format: Option<String>,
}

/// Print the versions of this command and of the running daemon
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  weave version")]
pub(crate) struct VersionArgs {}

pub(super) async fn status(args: &StatusArgs, context: &Context) -> Outcome {
    let (client, screen) = (context.env.client(), Screen::of_process());
    if let Some(every) = args.watch {
        return screen::watch(screen, every, async || page(args, &client, screen).await).await;
    }
    match page(args, &client, screen).await {
        Ok(text) => {
            out(&text);
            Ok(())
        }
        Err(failure) => {
            out(&args.frame().repeat(2));
            Err(failure)
        }
    }
}

impl StatusArgs {
    /// The summary has an empty line before and after it, also when there is none.
    fn frame(&self) -> &'static str {
        match self.output {
            Format::Text if self.page.is_empty() => "\n",
            _ => "",
        }
    }
}

/// The page as it is to be printed.
async fn page(args: &StatusArgs, client: &Client, screen: Screen) -> Result<String, Failure> {
    let mut path = args.page.iter().fold("/status".to_owned(), |path, page| {
        format!("{path}/{}", segment(page))
    });
    if screen.terminal {
        path.push_str("?aligned=true");
    }
    let accept = (args.output == Format::Json).then_some("application/json");
    let asked = client.ask_accepting("GET", &path, &[], accept).await;
    if let Ok(Reply { status: 404, .. }) = asked {
        let page = args.page.join(" ");
        let unknown = format!("Invalid 'weave status' sub-command: {page}\n{}", near(&page));
        return Err(Failure::usage(&unknown));
    }
    let text = client
        .outcome(asked)
        .map_err(|failure| Failure { code: 1, ..failure })?;
    Ok(match args.output {
        Format::Json => text,
        Format::Text => {
            let frame = args.frame();
            format!("{frame}{}{frame}", screen.painted(text))
        }
    })
}

/// The pages beside the summary.
pub(super) fn pages() -> impl Iterator<Item = &'static str> {
    let paths = Page::ALL.iter();
    paths.filter_map(|(path, _)| path.strip_prefix("/status/"))
}

/// A line that names the page that was probably meant.
fn near(page: &str) -> String {
    let pages = clap::Command::new("status").subcommands(pages().map(clap::Command::new));
    super::suggestion(pages.try_get_matches_from(["status", page]).err().as_ref())
}

pub(super) async fn report(args: &ReportArgs, context: &Context) -> Outcome {
    let client = context.env.client();
    let asked = match &args.format {
        None => {
            client
                .ask_accepting("GET", "/report", &[], Some("application/json"))
                .await
        }
        Some(format) => {
            client
                .ask("GET", &format!("/report?format={}", segment(format)), &[])
                .await
        }
    };
    out(&client.outcome(asked)?);
    Ok(())
}

pub(super) fn version(context: &Context) -> Outcome {
    let ours = env!("CARGO_PKG_VERSION");
    if !context.local {
        out(&format!("weave script {ours}\n"));
    }
    let asked = super::block_on(async {
        let path = format!("/report?format={}", segment("{{ .Version }}"));
        context.env.client().call("GET", &path, &[]).await
    });
    out(&format!("weave {}\n", asked.as_deref().unwrap_or(ours)));
    if let Err(missing) = object::find() {
        super::note(&format!("WARNING: this installation cannot launch: {missing}"));
    }
    Ok(())
}
