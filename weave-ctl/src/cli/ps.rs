//! `weave ps` (cli.md 4.14).

use super::{Context, Outcome, need_root, out};
use crate::ipam::address::Cidr;
use crate::net::expose::OWNER as EXPOSE;
use crate::net::{Mac, Netlink, bridge, container, mac_text, ps as attached};

/// List attached containers with their Ethernet and IP addresses
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  weave ps\n  weave ps web")]
pub(crate) struct PsArgs {
    /// As for attach, or weave:expose for the bridge; all if left out
    container: Vec<String>,
}

pub(super) async fn ps(args: PsArgs, context: &Context) -> Outcome {
    need_root()?;
    let nl = Netlink::current().await?;
    let name = &context.env.bridge;
    let (mac, exposed) = bridge::exposed(&nl, name).await?;
    let mut lines = String::new();
    for text in &args.container {
        if text == EXPOSE {
            lines += &line(EXPOSE, mac, &exposed);
            continue;
        }
        let found = match container::resolve(text).await {
            Ok(container) => Some((
                attached::attached(&nl, name, &container.ns).await?,
                container.display,
            )),
            Err(_) => None,
        };
        match found {
            Some((interfaces, shown)) if !interfaces.is_empty() => {
                lines.extend(interfaces.iter().map(|i| line(&shown, i.mac, &i.cidrs)));
            }
            _ => lines.push('\n'),
        }
    }
    if args.container.is_empty() {
        lines += &line(EXPOSE, mac, &exposed);
        let all = attached::list_attached(&nl, name).await?;
        lines.extend(all.iter().map(|c| line(&c.display, c.mac, &c.cidrs)));
    }
    out(&lines);
    Ok(())
}

fn line(id: &str, mac: Mac, cidrs: &[Cidr]) -> String {
    let cidrs: String = cidrs.iter().map(|c| format!(" {c}")).collect();
    format!("{id} {}{cidrs}\n", mac_text(mac))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let mac = [0x7a, 0, 0, 0, 0, 1];
        let cidrs = ["10.2.1.1/24", "10.2.2.1/24"].map(|c| c.parse().unwrap());
        assert_eq!(
            line("0123456789ab", mac, &cidrs),
            "0123456789ab 7a:00:00:00:00:01 10.2.1.1/24 10.2.2.1/24\n"
        );
        assert_eq!(line(EXPOSE, mac, &[]), "weave:expose 7a:00:00:00:00:01\n");
    }
}
