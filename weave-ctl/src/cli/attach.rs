//! `weave attach` and `weave detach` (cli.md 4.8, 4.9).

use super::address::{self, AddressArg};
use super::client::{Client, DISABLED, segment};
use super::{Context, Failure, Outcome, need_root, note, out};
use crate::ipam::address::Cidr;
use crate::net::attach::AttachRequest;
use crate::net::{NetError, Netlink, container, overlap};

/// Name of the interface inside containers.
const INTERFACE: &str = "ethwe";

/// Give a running container addresses on the network, and print them
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Addresses come first: [ip:]CIDR for a given one, net:CIDR or net:default for any of a subnet.\n\n\
    Examples:\n  weave attach web\n  weave attach net:10.2.0.0/16 10.3.0.1/24 web\n  weave attach netns:blue"
)]
pub(crate) struct AttachArgs {
    /// Addresses, then the container: name or ID, netns:NAME, netns:/PATH or pid:N
    #[arg(required = true, value_name = "ADDR ... CONTAINER")]
    args: Vec<String>,
    /// Do not route 224.0.0.0/4 through the interface
    #[arg(long)]
    no_multicast_route: bool,
    /// Accepted for old scripts: this version has no DNS
    #[arg(long, hide = true)]
    without_dns: bool,
    /// Not available in this version
    #[arg(long, hide = true)]
    rewrite_hosts: bool,
    /// Not available in this version
    #[arg(long, hide = true)]
    add_host: Vec<String>,
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
        (_, _) => Err(Failure::usage("more than one container\n\n")),
    }
}

pub(super) async fn attach(args: AttachArgs, context: &Context) -> Outcome {
    need_root()?;
    if args.rewrite_hosts || !args.add_host.is_empty() {
        let text =
            "'--rewrite-hosts' and '--add-host' are not available in this version; attach without them.";
        return Err(Failure::new(1, text));
    }
    let (wanted, text) = split(&args.args)?;
    let container = container::resolve(text).await?;
    let nl = Netlink::current().await?;
    if container.ns.id() == nl.ns().id() {
        // Before an address is taken for nothing.
        return Err(NetError::HostNamespace.into());
    }
    let owner = Owner::new(context.env.client(), &container.id);
    let mut addrs = Vec::new();
    for address in wanted {
        match address {
            AddressArg::Net(subnet) => addrs.push(owner.allocate(subnet).await?),
            AddressArg::Plain(cidr) => {
                if let Err(e) = overlap::check_address(&nl, cidr, &[&context.env.bridge]).await {
                    note(&e.to_string());
                }
                owner.claim(cidr).await?;
                addrs.push(cidr);
            }
        }
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
    out(&address::line(&addrs));
    Ok(())
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
    let owner = Owner::new(context.env.client(), &container.id);
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
        for cidr in allocated {
            owner.free(cidr).await;
        }
    }
    out(&address::line(&addrs));
    Ok(())
}

/// A container in the eyes of the allocator.
struct Owner {
    client: Client,
    path: String,
    form: &'static [(&'static str, &'static str)],
}

impl Owner {
    fn new(client: Client, id: &str) -> Self {
        // Docker is asked whether the owner lives: only for what Docker knows.
        let in_docker = !id.starts_with("netns");
        Self {
            client,
            path: format!("/ip/{}", segment(id)),
            form: if in_docker {
                &[("check-alive", "true")]
            } else {
                &[]
            },
        }
    }

    fn within(&self, subnet: Option<Cidr>) -> String {
        subnet.map_or_else(|| self.path.clone(), |subnet| format!("{}/{subnet}", self.path))
    }

    async fn allocate(&self, subnet: Option<Cidr>) -> Result<Cidr, Failure> {
        let body = self
            .client
            .call("POST", &self.within(subnet), self.form)
            .await
            .map_err(|failure| {
                if failure.code == DISABLED {
                    no_ipam()
                } else {
                    failure
                }
            })?;
        body.parse()
            .map_err(|_| Failure::new(1, format!("no address was allocated: {body}")))
    }

    /// Without IPAM, or without a daemon, an address given by hand is simply used.
    async fn claim(&self, cidr: Cidr) -> Outcome {
        match self.client.ask("PUT", &self.within(Some(cidr)), self.form).await {
            Ok(reply) if reply.status == 404 => Ok(()),
            Ok(reply) if reply.status == 200 => Err(Failure::new(1, reply.body)),
            Err(_) => Ok(()),
            asked => self.client.outcome(asked).map(drop),
        }
    }

    async fn lookup(&self, subnet: Option<Cidr>) -> Result<Vec<Cidr>, Failure> {
        let body = match self.client.call("GET", &self.within(subnet), &[]).await {
            Err(failure) if failure.code == DISABLED => return Err(no_ipam()),
            asked => asked?,
        };
        let cidrs: Result<Vec<Cidr>, _> = body.split_whitespace().map(str::parse).collect();
        cidrs.map_err(|e| Failure::new(1, e.to_string()))
    }

    /// The container has lost the address already; that it may be gone here too is no failure.
    async fn free(&self, cidr: Cidr) {
        let path = format!("{}/{}", self.path, std::net::Ipv4Addr::from(cidr.addr));
        let _ = self.client.ask("DELETE", &path, &[]).await;
    }
}

fn no_ipam() -> Failure {
    Failure::new(1, "IP address allocation must be enabled to use 'net:'")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::control;
    use super::*;
    use crate::api::double::Double;
    use crate::api::golden;

    fn owner(server: &super::super::tests::Control, id: &str) -> Owner {
        Owner::new(server.client(), id)
    }

    #[tokio::test]
    async fn the_allocator_is_asked_as_specified() {
        let double = Double::new(golden::report("04-three-dns.h1"));
        double.own("x1", "10.32.0.2/12");
        let server = control(&double).await;
        let x1 = owner(&server, "x1");
        assert_eq!(x1.allocate(None).await.unwrap().to_string(), "10.32.0.2/12");
        let subnet = "10.99.0.0/24".parse().unwrap();
        let failure = x1.allocate(Some(subnet)).await.unwrap_err();
        assert_eq!(
            failure,
            Failure::new(1, "range 10.99.0.0/24 out of bounds: 10.32.0.0/12\n")
        );
        assert_eq!(x1.lookup(None).await.unwrap().len(), 1);
        x1.claim("10.33.1.1/12".parse().unwrap()).await.unwrap();
        x1.free("10.33.1.1/12".parse().unwrap()).await;
        let taken = owner(&server, "x3")
            .claim("10.33.7.7/12".parse().unwrap())
            .await
            .unwrap_err();
        assert_eq!(
            taken.text,
            "Unable to claim: address 10.33.7.7/12 is already owned by x2\n"
        );
        let cancelled = owner(&server, "cancelled").allocate(None).await.unwrap_err();
        assert_eq!(cancelled, Failure::new(1, "no address was allocated: cancelled"));
        assert_eq!(
            double.calls(),
            [
                "allocate x1 None true",
                "allocate x1 Some(Cidr { addr: 174260224, prefix_len: 24 }) true",
                "claim x1 10.33.1.1/12 true false",
                "free x1 10.33.1.1",
                "claim x3 10.33.7.7/12 true false",
                "allocate cancelled None true",
            ]
        );
    }

    #[tokio::test]
    async fn without_ipam_only_given_addresses_work() {
        let server = control(&Double::without_ipam()).await;
        let owner = owner(&server, "c");
        owner.claim("10.33.1.1/12".parse().unwrap()).await.unwrap();
        let text = "IP address allocation must be enabled to use 'net:'";
        assert_eq!(owner.allocate(None).await.unwrap_err(), Failure::new(1, text));
        assert_eq!(owner.lookup(None).await.unwrap_err(), Failure::new(1, text));
    }

    #[test]
    fn exactly_one_container() {
        for args in [&["10.0.0.1/8"][..], &["a", "b"], &["a", "10.0.0.1/8"]] {
            let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
            assert!(split(&args).unwrap_err().text.contains("Usage:"));
        }
    }
}
