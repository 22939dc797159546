//! `weave status`, `weave report`, `weave version` (cli.md 4.1, 4.12, 4.13).

use crate::overlay::fastdp::object;

use super::client::{Reply, segment};
use super::{Context, Failure, Outcome, out};

/// Show the state of this peer
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  weave status\n  weave status connections")]
pub(crate) struct StatusArgs {
    /// targets, connections, peers, or ipam; a summary if left out
    page: Vec<String>,
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
pub(crate) struct VersionArgs {}

pub(super) async fn status(args: &StatusArgs, context: &Context) -> Outcome {
    let client = context.env.client();
    let path = args.page.iter().fold("/status".to_owned(), |path, page| {
        format!("{path}/{}", segment(page))
    });
    // The summary has an empty line before and after it, also when there is none.
    let frame = if args.page.is_empty() { "\n" } else { "" };
    let asked = client.ask("GET", &path, &[]).await;
    if let Ok(Reply { status: 404, .. }) = asked {
        let page = args.page.join(" ");
        out(&frame.repeat(2));
        return Err(Failure::usage(&format!(
            "Invalid 'weave status' sub-command: {page}\n"
        )));
    }
    match client.outcome(asked) {
        Ok(text) => {
            out(&format!("{frame}{text}{frame}"));
            Ok(())
        }
        Err(failure) => {
            out(&frame.repeat(2));
            Err(Failure { code: 1, ..failure })
        }
    }
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
