//! `weave connect`, `forget`, `prime`, `rmpeer` (cli.md 4.4, 4.7, 4.17).

use super::client::segment;
use super::{Context, Outcome, out};

/// Connect to more peers, and keep trying
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  weave connect host2\n  weave connect --replace 192.0.2.7 192.0.2.8:6783"
)]
pub(crate) struct ConnectArgs {
    /// Forget all present targets first
    #[arg(long)]
    replace: bool,
    /// Address or name, with :PORT if it is not the usual one
    #[arg(required_unless_present = "replace")]
    peer: Vec<String>,
}

/// Stop trying to connect to peers; present connections stay
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weave forget host2")]
pub(crate) struct ForgetArgs {
    /// As given to launch or connect
    #[arg(required = true)]
    peer: Vec<String>,
}

/// Wait until addresses can be allocated
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weave launch host2 && weave prime")]
pub(crate) struct PrimeArgs {}

/// Take over the addresses of peers that will not come back
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Run it on one peer only, and only for peers that are gone. A peer that is still connected to any\n\
    other is refused; 'weave status peers' shows it.\n\nExample:\n  weave rmpeer host3"
)]
pub(crate) struct RmpeerArgs {
    /// Also if the peer is still connected. Its containers keep their addresses only as far as nobody else
    /// uses them
    #[arg(long)]
    force: bool,
    /// Nickname or internal name
    #[arg(required = true)]
    peer: Vec<String>,
}

fn form(peers: &[String]) -> Vec<(&str, &str)> {
    peers.iter().map(|p| ("peer", p.as_str())).collect()
}

pub(super) async fn connect(args: ConnectArgs, context: &Context) -> Outcome {
    let mut form = form(&args.peer);
    if args.replace {
        form.push(("replace", "true"));
    }
    context
        .env
        .client()
        .call("POST", "/connect", &form)
        .await
        .map(drop)
}

pub(super) async fn forget(args: ForgetArgs, context: &Context) -> Outcome {
    context
        .env
        .client()
        .call("POST", "/forget", &form(&args.peer))
        .await
        .map(drop)
}

pub(super) async fn prime(context: &Context) -> Outcome {
    context.env.client().call("GET", "/ring", &[]).await.map(drop)
}

pub(super) async fn rmpeer(args: RmpeerArgs, context: &Context) -> Outcome {
    let client = context.env.client();
    let mut outcome = Ok(());
    for peer in &args.peer {
        let force = if args.force { "?force=true" } else { "" };
        match client
            .call("DELETE", &format!("/peer/{}{force}", segment(peer)), &[])
            .await
        {
            Ok(text) => out(&text),
            Err(failure) => {
                failure.print();
                outcome = Err(super::Failure::silent(1));
            }
        }
    }
    outcome
}
