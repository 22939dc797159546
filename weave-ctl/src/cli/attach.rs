//! `weave attach` and `weave detach` (cli.md 4.8, 4.9).

use super::address::{self, AddressArg};
use super::names::Names;
use super::owner::Owner;
use super::{Context, Failure, Outcome, files, need_root, out};
use crate::net::attach::AttachRequest;
use crate::net::container::{self, Container};
use crate::net::hosts_file::StaticHost;
use crate::net::{NetError, Netlink};

/// Name of the interface inside containers.
const INTERFACE: &str = "ethwe";

/// Give a running container addresses on the network, and print them
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Addresses come first: [ip:]CIDR for a given one, net:CIDR or net:default for any of a subnet.\n\n\
    A container of Docker that has a domain (docker run --hostname web.weave.local) gets its name in WeaveDNS,\n\
    and every one WeaveDNS as its first nameserver.\n\n\
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
    let hosts = files::Hosts::choose(&container, args.rewrite_hosts, &args.add_host)?;
    let addrs = owner(context, &container)
        .take(wanted, &nl, &context.env.bridge)
        .await?;
    if let Some(hosts) = hosts {
        hosts.rewrite(&addrs)?;
    }
    let request = AttachRequest {
        ns: container.ns.clone(),
        id7: container.id7.clone(),
        ifname: INTERFACE.to_owned(),
        addrs: addrs.clone(),
        mtu: mtu(context)?,
        bridge: context.env.bridge.clone(),
        multicast_route: !args.no_multicast_route,
        hairpin: true,
    };
    crate::net::attach::attach(&nl, &request).await?;
    if !args.without_dns {
        let names = Names::of(context, &container);
        if let Some(name) = fqdn(&container) {
            for cidr in &addrs {
                names.add(cidr.addr.into(), &name).await;
            }
        }
        files::add_resolver(&nl, &container, &addrs, context).await;
    }
    out(&address::line(&addrs));
    Ok(())
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
        crate::net::attach::detach(&container.ns, INTERFACE, &addrs).await?;
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
        if left.is_none() {
            files::remove_resolver(&container);
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
