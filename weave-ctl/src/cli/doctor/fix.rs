//! `--fix`: one repair at a time, and what came of it in one line.

use std::path::Path;

use rtnetlink::{LinkBridgePort, LinkUnspec};

use crate::cli::Context;
use crate::cli::client::Reply;
use crate::doctor::Fix;
use crate::net::{NetError, Netlink, bridge};

/// Does it; what was done, or why it could not be.
pub(super) async fn apply(fix: &Fix, context: &Context) -> String {
    let (what, done) = match fix {
        Fix::Adopt { peer } => (
            format!("take over the address ring of {peer}"),
            post(context, "/ipam/adopt", peer).await,
        ),
        Fix::Forget { target } => (
            format!("forget the target {target}"),
            post(context, "/forget", target).await,
        ),
        Fix::Reconnect { target } => (
            format!("try the target {target} again"),
            post(context, "/connect", target).await,
        ),
        Fix::Replug { port } => (
            format!("put {port} into the bridge again"),
            replug(port, &context.env.bridge).await.map_err(|e| e.to_string()),
        ),
        Fix::Remove { path } => (format!("remove {path}"), remove(path)),
    };
    match done {
        Ok(told) if told.is_empty() => format!("done: {what}"),
        Ok(told) => format!("done: {what}: {told}"),
        Err(why) => format!("failed: {what}: {why}"),
    }
}

async fn post(context: &Context, path: &str, peer: &str) -> Result<String, String> {
    match context.env.client().ask("POST", path, &[("peer", peer)]).await {
        Ok(Reply {
            status: 200..=299,
            body,
        }) => Ok(body.trim().replace('\n', "; ")),
        Ok(Reply {
            status: 404 | 405, ..
        }) => Err("this daemon does not offer that".to_owned()),
        Ok(Reply { body, .. }) => Err(body.trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The daemon attaches its program to a port that it sees come.
async fn replug(port: &str, bridge: &str) -> Result<String, NetError> {
    let nl = Netlink::current().await?;
    let (link, bridge) = (nl.link(port).await?, nl.link(bridge).await?);
    if link.master.is_some() {
        let message = LinkUnspec::new_with_index(link.index).nocontroller().build();
        nl.change_link(&format!("take {port} out of its bridge"), message)
            .await?;
    }
    bridge::enslave(&nl, &link, &bridge).await?;
    nl.set_up(&link).await?;
    if link.port.is_some_and(|state| state.hairpin) {
        let message = LinkBridgePort::new(link.index).hairpin(true).build();
        nl.change_link(&format!("set hairpin mode of {port}"), message)
            .await?;
    }
    Ok(String::new())
}

fn remove(path: &str) -> Result<String, String> {
    match std::fs::remove_file(Path::new(path)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(String::new()),
    }
}
