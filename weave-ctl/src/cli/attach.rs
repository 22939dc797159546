//! `weave attach` and `weave detach` (cli.md 4.8, 4.9).

use super::address::{self, AddressArg};
use super::client::segment;
use super::names::Names;
use super::owner::Owner;
use super::{Context, Failure, Outcome, need_root, note, out};
use crate::docker::attachment::Kept;
use crate::docker::hosts::Hosts;
use crate::docker::resolver::{self, WeaveDns};
use crate::ipam::address::Cidr;
use crate::net::attach::{AttachRequest, INTERFACE};
use crate::net::container::{self, Container};
use crate::net::hosts_file::StaticHost;
use crate::net::{NetError, Netlink};

/// Give a running container addresses on the network, and print them
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Addresses come first: [ip:]CIDR for a given one, net:CIDR or net:default for any of a subnet.\n\n\
    A container of Docker that has a domain (docker run --hostname web.weave.local) gets its name in WeaveDNS,\n\
    and every one WeaveDNS as its first nameserver. It is attached again whenever it is restarted.\n\n\
    Examples:\n  weave attach web\n  weave attach net:10.2.0.0/16 10.3.0.1/24 web\n  weave attach netns:blue\n  \
    weave attach --rewrite-hosts --add-host db:10.0.0.7 web"
)]
pub(crate) struct AttachArgs {
    /// Addresses, then the container: name or ID, netns:NAME, netns:/PATH or pid:N
    #[arg(required = true, value_name = "ADDR ... CONTAINER")]
    args: Vec<String>,
    /// Do not route 224.0.0.0/4 through the interface
    #[arg(long)]
    no_multicast_route: bool,
    /// Give it no name in WeaveDNS, and leave its nameservers alone
    #[arg(long)]
    without_dns: bool,
    /// Put its addresses into its hosts file (of a container of Docker)
    #[arg(long)]
    rewrite_hosts: bool,
    /// With --rewrite-hosts: one more line for that file
    #[arg(long, value_name = "NAME:ADDR")]
    add_host: Vec<StaticHost>,
}

/// Take addresses from a container, the interface with the last one, and print them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  weave detach web\n  weave detach net:10.2.0.0/16 web")]
pub(crate) struct DetachArgs {
    /// Addresses as for attach, then the container
    #[arg(required = true, value_name = "ADDR ... CONTAINER")]
    args: Vec<String>,
}

fn split(args: &[String]) -> Result<(Vec<AddressArg>, &str), Failure> {
    match address::leading(args)? {
        (addresses, [container]) => Ok((addresses, container)),
        (_, []) => Err(Failure::usage("a container is missing\n\n")),
        (_, rest) => Err(address::left_over(rest, "more than one container")),
    }
}

pub(super) async fn attach(args: AttachArgs, context: &Context) -> Outcome {
    need_root()?;
    let (wanted, text) = split(&args.args)?;
    let container = container::resolve(text).await?;
    let nl = Netlink::current().await?;
    // Before an address is taken for nothing.
    if container.ns.id() == nl.ns().id() {
        return Err(NetError::HostNamespace.into());
    }
    let hosts = hosts(&container, &args)?;
    let allocated: Vec<bool> = wanted.iter().map(|w| matches!(w, AddressArg::Net(_))).collect();
    let addrs = owner(context, &container)
        .take(wanted, &nl, &context.env.bridge)
        .await?;
    if let Some(hosts) = hosts {
        hosts
            .rewrite(&addrs)
            .map_err(|e| Failure::new(1, e.to_string()))?;
    }
    let request = AttachRequest {
        mtu: mtu(context)?,
        ..AttachRequest::new(&container, &addrs, &context.env.bridge, !args.no_multicast_route)
    };
    crate::net::attach::attach(&nl, &request).await?;
    if !args.without_dns {
        let names = Names::of(context, &container);
        if let Some(name) = fqdn(&container) {
            for cidr in &addrs {
                names.add(cidr.addr.into(), &name).await;
            }
        }
        if let Some(dns) = weave_dns(context).await
            && let Some(text) = resolver::add(&nl, &context.env.bridge, &container, &addrs, &dns).await
        {
            note(&text);
        }
    }
    let kept = addrs.iter().zip(allocated).map(|(cidr, allocated)| Kept {
        cidr: *cidr,
        allocated,
    });
    remember(context, &container, &args, kept).await;
    out(&address::line(&addrs));
    Ok(())
}

/// `None` if it was not asked for.
fn hosts(container: &Container, args: &AttachArgs) -> Result<Option<Hosts>, Failure> {
    if !args.rewrite_hosts {
        if !args.add_host.is_empty() {
            note("WARNING: --add-host has no effect without --rewrite-hosts");
        }
        return Ok(None);
    }
    let hosts = Hosts::of(container, &args.add_host).ok_or_else(|| {
        let text = format!(
            "{} has no hosts file of its own that Docker knows of: attach it without --rewrite-hosts",
            container.display
        );
        Failure::new(1, text)
    });
    hosts.map(Some)
}

/// Nothing if DNS is off, or the daemon away.
async fn weave_dns(context: &Context) -> Option<WeaveDns> {
    let client = context.env.client();
    let ask = async |path| client.call("GET", path, &[]).await.ok();
    Some(WeaveDns {
        address: ask("/dns-address").await?.trim().parse().ok()?,
        domain: ask("/domain").await?,
    })
}

/// The daemon attaches it again when it starts again. Without a daemon, or Docker, nobody does.
async fn remember(
    context: &Context,
    container: &Container,
    args: &AttachArgs,
    kept: impl Iterator<Item = Kept>,
) {
    if container.docker.is_none() {
        return;
    }
    let addrs: Vec<String> = kept.map(|kept| kept.text()).collect();
    let hosts: Vec<String> = args
        .add_host
        .iter()
        .map(|host| format!("{}:{}", host.name, host.address))
        .collect();
    let yes = |is_so: bool| if is_so { "true" } else { "false" };
    let form = [
        ("addr", addrs.join(" ")),
        ("multicast-route", yes(!args.no_multicast_route).to_owned()),
        ("dns", yes(!args.without_dns).to_owned()),
        ("rewrite-hosts", yes(args.rewrite_hosts).to_owned()),
        ("add-host", hosts.join(" ")),
    ];
    let form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let _ = context
        .env
        .client()
        .ask("PUT", &attachment(container), &form)
        .await;
}

async fn forget(context: &Context, container: &Container, addrs: &[Cidr]) {
    if container.docker.is_some() {
        let addrs: Vec<String> = addrs
            .iter()
            .map(|cidr| std::net::Ipv4Addr::from(cidr.addr).to_string())
            .collect();
        let path = format!("{}?addr={}", attachment(container), addrs.join("+"));
        let _ = context.env.client().ask("DELETE", &path, &[]).await;
    }
}

fn attachment(container: &Container) -> String {
    format!("/attachment/{}", segment(&container.id))
}

fn owner(context: &Context, container: &Container) -> Owner {
    Owner::new(context.env.client(), &container.id, container.docker.is_some())
}

/// Its own name, if it has a domain part.
fn fqdn(container: &Container) -> Option<String> {
    container.docker.as_ref()?.fqdn()
}

/// 0 is the bridge's.
fn mtu(context: &Context) -> Result<u32, Failure> {
    match context.env.mtu.as_deref() {
        None | Some("auto") => Ok(0),
        Some(text) => text
            .parse()
            .map_err(|_| Failure::new(1, format!("invalid value \"{text}\" of WEAVE_MTU"))),
    }
}

pub(super) async fn detach(args: DetachArgs, context: &Context) -> Outcome {
    need_root()?;
    let (wanted, text) = split(&args.args)?;
    let container = container::resolve(text).await?;
    let owner = owner(context, &container);
    let (mut addrs, mut allocated) = (Vec::new(), Vec::new());
    for address in wanted {
        match address {
            AddressArg::Net(subnet) => allocated.extend(owner.lookup(subnet).await?),
            AddressArg::Plain(cidr) => addrs.push(cidr),
        }
    }
    addrs.extend(&allocated);
    if !addrs.is_empty() {
        let nl = Netlink::current().await?;
        crate::net::attach::detach(&nl, &container.ns, INTERFACE, &addrs).await?;
        let names = Names::of(context, &container);
        if let Some(name) = fqdn(&container) {
            for cidr in &addrs {
                names.remove(cidr.addr.into(), Some(&name)).await;
            }
        }
        for cidr in allocated {
            owner.free(cidr).await;
        }
        let left = Netlink::open(&container.ns).await?.find_link(INTERFACE).await?;
        forget(context, &container, &addrs).await;
        if left.is_none()
            && let Some(text) = resolver::remove(&container)
        {
            note(&text);
        }
    }
    out(&address::line(&addrs));
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_container() {
        for args in [&["10.0.0.1/8"][..], &["a", "b"], &["a", "10.0.0.1/8"]] {
            let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
            assert!(split(&args).unwrap_err().text.contains("Usage:"));
        }
    }
}
