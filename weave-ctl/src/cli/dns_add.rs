//! `weave dns-add` and `weave dns-remove` (cli.md 4.11).

use std::net::Ipv4Addr;

use super::client::DISABLED;
use super::names::Names;
use super::{Context, Failure, Outcome, need_root};
use crate::net::container::{self, Container};
use crate::net::{NetError, Netlink, ps};

/// Owner of names that belong to no container.
const EXTERN: &str = "weave:extern";

/// Give a container, or anything else with an address, a name in WeaveDNS
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    override_usage = "weave dns-add [ADDR ...] CONTAINER [-h FQDN]\n       weave dns-add ADDR ... -h FQDN",
    after_help = "Without addresses: at those that the container has on the network. Without -h: its own name.\n\n\
    Examples:\n  weave dns-add web -h shop.weave.local\n  weave dns-add 192.0.2.7 192.0.2.8 -h db.weave.local"
)]
pub(crate) struct DnsAddArgs {
    #[command(flatten)]
    shape: Shape,
}

/// Take a name out of WeaveDNS
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    override_usage = "weave dns-remove [ADDR ...] CONTAINER [-h FQDN]\n       weave dns-remove ADDR ... -h FQDN",
    after_help = "Without -h: all names of the container at these addresses.\n\n\
    Examples:\n  weave dns-remove web\n  weave dns-remove 192.0.2.7 -h db.weave.local"
)]
pub(crate) struct DnsRemoveArgs {
    #[command(flatten)]
    shape: Shape,
}

#[derive(Debug, clap::Args)]
struct Shape {
    /// IP addresses, then the container as for attach
    #[arg(required = true, value_name = "ADDR ... CONTAINER")]
    args: Vec<String>,
    /// The name, fully qualified
    #[arg(short = 'h', value_name = "FQDN")]
    name: Option<String>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// What is meant.
#[derive(Debug, PartialEq, Eq)]
struct Meant<'a> {
    addresses: Vec<Ipv4Addr>,
    container: Option<&'a str>,
    name: Option<&'a str>,
}

impl Shape {
    fn meant(&self) -> Result<Meant<'_>, Failure> {
        let count = self.args.iter().take_while(|a| is_address(a)).count();
        let (addresses, rest) = self.args.split_at(count);
        let container = match rest {
            [] if self.name.is_none() => {
                return Err(Failure::usage("a container, or a name with -h, is missing\n\n"));
            }
            [] => None,
            [container] => Some(container.as_str()),
            _ => return Err(Failure::usage("more than one container\n\n")),
        };
        let parse = |text: &String| {
            text.parse()
                .map_err(|_| Failure::new(1, format!("invalid IP Address: {text}")))
        };
        Ok(Meant {
            addresses: addresses.iter().map(parse).collect::<Result<_, _>>()?,
            container,
            name: self.name.as_deref(),
        })
    }
}

/// Four groups of one to three digits.
fn is_address(text: &str) -> bool {
    let group = |t: &str| (1..=3).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_digit());
    text.split('.').count() == 4 && text.split('.').all(group)
}

/// Whose names, at which addresses.
struct Target {
    names: Names,
    addresses: Vec<Ipv4Addr>,
    /// The container's own.
    fqdn: Option<String>,
}

/// `None` with DNS off: there is nothing to do then.
async fn target(meant: &Meant<'_>, context: &Context) -> Result<Option<Target>, Failure> {
    need_root()?;
    let dns = context.env.client().call("GET", "/domain", &[]).await;
    let container = match meant.container {
        None => None,
        Some(text) => Some(running(text).await?),
    };
    match dns {
        Err(off) if off.code == DISABLED => return Ok(None),
        other => other?,
    };
    let Some(container) = container else {
        return Ok(Some(Target {
            names: Names::of_no_container(context, EXTERN),
            addresses: meant.addresses.clone(),
            fqdn: None,
        }));
    };
    let mut addresses = meant.addresses.clone();
    if addresses.is_empty() {
        let nl = Netlink::current().await?;
        let interfaces = ps::attached(&nl, &context.env.bridge, &container.ns).await?;
        addresses.extend(
            interfaces
                .iter()
                .flat_map(|i| &i.cidrs)
                .map(|c| Ipv4Addr::from(c.addr)),
        );
    }
    Ok(Some(Target {
        names: Names::of(context, &container),
        addresses,
        fqdn: container.docker.as_ref().and_then(|d| d.fqdn()),
    }))
}

/// In the words that are used of the daemon (cli.md 1.2).
async fn running(text: &str) -> Result<Container, Failure> {
    container::resolve(text).await.map_err(|error| match error {
        NetError::Inspect { .. } => Failure::new(
            1,
            format!("{text} container is not present. Have you launched it?"),
        ),
        NetError::NotRunning(_) | NetError::Died(_) => {
            Failure::new(2, format!("{text} container is not running."))
        }
        other => other.into(),
    })
}

pub(super) async fn dns_add(args: DnsAddArgs, context: &Context) -> Outcome {
    let meant = args.shape.meant()?;
    let Some(target) = target(&meant, context).await? else {
        return Ok(());
    };
    if let Some(name) = meant.name.or(target.fqdn.as_deref()) {
        for address in target.addresses {
            target.names.add(address, name).await;
        }
    }
    Ok(())
}

pub(super) async fn dns_remove(args: DnsRemoveArgs, context: &Context) -> Outcome {
    let meant = args.shape.meant()?;
    if let Some(target) = target(&meant, context).await? {
        for address in target.addresses {
            target.names.remove(address, meant.name).await;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let shape = |args: &str, name: Option<&str>| Shape {
            args: args.split(' ').map(str::to_owned).collect(),
            name: name.map(str::to_owned),
            help: None,
        };
        let [one, two] = ["10.0.0.1", "10.0.0.2"].map(|a| a.parse().unwrap());
        for (args, name, addresses, container) in [
            ("c", None, vec![], Some("c")),
            ("c", Some("n"), vec![], Some("c")),
            ("10.0.0.1 10.0.0.2 c", None, vec![one, two], Some("c")),
            ("10.0.0.1", Some("n"), vec![one], None),
            ("10.0.0.1.2", None, vec![], Some("10.0.0.1.2")),
        ] {
            let meant = Meant {
                addresses,
                container,
                name,
            };
            assert_eq!(shape(args, name).meant().unwrap(), meant, "{args}");
        }
        for (args, name) in [("10.0.0.1", None), ("c d", None), ("c 10.0.0.1", Some("n"))] {
            assert!(
                shape(args, name).meant().unwrap_err().text.contains("Usage:"),
                "{args}"
            );
        }
        let bad = shape("10.0.0.300 c", None).meant().unwrap_err();
        assert_eq!(bad, Failure::new(1, "invalid IP Address: 10.0.0.300"));
    }
}
