//! `weave expose` and `weave hide` (cli.md 4.10).

use super::address;
use super::names::Names;
use super::owner::Owner;
use super::{Context, Outcome, need_root, out};
use crate::ipam::address::Cidr;
use crate::net::expose::OWNER;
use crate::net::{Netlink, bridge};

/// Give this host addresses on the network, so that it reaches its containers, and print them
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    override_usage = "weave expose [ADDR ...] [-h FQDN] [--without-masquerade]",
    after_help = "What containers send elsewhere, and what comes to them from elsewhere, then goes through this host\n\
    under its address. For other hosts this one must forward: sysctl net.ipv4.ip_forward=1.\n\n\
    Examples:\n  weave expose\n  weave expose net:10.2.0.0/16 -h host1.weave.local\n  \
    weave expose 10.3.0.1/24 --without-masquerade"
)]
pub(crate) struct ExposeArgs {
    /// As for attach
    #[arg(value_name = "ADDR")]
    addresses: Vec<String>,
    /// A name for the addresses in WeaveDNS
    #[arg(short = 'h', value_name = "FQDN")]
    name: Option<String>,
    /// Leave the addresses of what goes through the host as they are
    #[arg(long)]
    without_masquerade: bool,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// Take this host's addresses on the network away again, and print them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  weave hide\n  weave hide net:10.2.0.0/16")]
pub(crate) struct HideArgs {
    /// As for expose
    #[arg(value_name = "ADDR")]
    addresses: Vec<String>,
}

/// All arguments must be addresses.
fn addresses(args: &[String]) -> Result<Vec<address::AddressArg>, super::Failure> {
    match address::leading(args)? {
        (addresses, []) => Ok(addresses),
        (_, rest @ [left, ..]) => Err(address::left_over(rest, &format!("'{left}' is no address"))),
    }
}

fn owner(context: &Context) -> Owner {
    Owner::new(context.env.client(), OWNER, false)
}

pub(super) async fn expose(args: ExposeArgs, context: &Context) -> Outcome {
    let wanted = addresses(&args.addresses)?;
    need_root()?;
    let nl = Netlink::current().await?;
    let addrs = owner(context).take(wanted, &nl, &context.env.bridge).await?;
    let skip: &[(&str, &str)] = match args.without_masquerade {
        true => &[("skipNAT", "true")],
        false => &[],
    };
    let (client, names) = (context.env.client(), Names::of_no_container(context, OWNER));
    for cidr in &addrs {
        client.call("POST", &format!("/expose/{cidr}"), skip).await?;
        if let Some(name) = &args.name {
            names.add(cidr.addr.into(), name).await;
        }
    }
    out(&address::line(&addrs));
    Ok(())
}

pub(super) async fn hide(args: HideArgs, context: &Context) -> Outcome {
    let wanted = addresses(&args.addresses)?;
    need_root()?;
    let owner = owner(context);
    let mut addrs: Vec<Cidr> = Vec::new();
    for address in wanted {
        match address {
            address::AddressArg::Net(subnet) => addrs.extend(owner.lookup(subnet).await?),
            address::AddressArg::Plain(cidr) => addrs.push(cidr),
        }
    }
    let nl = Netlink::current().await?;
    let (_, exposed) = bridge::exposed(&nl, &context.env.bridge).await?;
    let (client, names) = (context.env.client(), Names::of_no_container(context, OWNER));
    for cidr in &addrs {
        // As it is on the bridge, whatever prefix length the argument has.
        for found in exposed.iter().filter(|found| found.addr == cidr.addr) {
            client.call("DELETE", &format!("/expose/{found}"), &[]).await?;
        }
        names.remove(cidr.addr.into(), None).await;
        owner.free(*cidr).await;
    }
    out(&address::line(&addrs));
    Ok(())
}
