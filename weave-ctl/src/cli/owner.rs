//! Addresses as the allocator gives them to an owner (cli.md 3.1).

use super::address::AddressArg;
use super::client::{Client, DISABLED, segment};
use super::{Failure, Outcome, note};
use crate::ipam::address::Cidr;
use crate::net::{Netlink, overlap};

/// For requests about what Docker knows.
pub(super) fn check_alive(in_docker: bool) -> &'static [(&'static str, &'static str)] {
    if in_docker {
        &[("check-alive", "true")]
    } else {
        &[]
    }
}

/// A container, or `weave:expose`, in the eyes of the allocator.
pub(super) struct Owner {
    client: Client,
    path: String,
    form: &'static [(&'static str, &'static str)],
}

impl Owner {
    /// `in_docker`: the allocator is to ask Docker whether the owner lives.
    pub fn new(client: Client, id: &str, in_docker: bool) -> Self {
        Self {
            client,
            path: format!("/ip/{}", segment(id)),
            form: check_alive(in_docker),
        }
    }

    /// The addresses that were asked for, in order; each becomes the owner's.
    pub async fn take(
        &self,
        wanted: Vec<AddressArg>,
        nl: &Netlink,
        bridge: &str,
    ) -> Result<Vec<Cidr>, Failure> {
        let mut addrs = Vec::new();
        for address in wanted {
            match address {
                AddressArg::Net(subnet) => addrs.push(self.allocate(subnet).await?),
                AddressArg::Plain(cidr) => {
                    if let Err(e) = overlap::check_address(nl, cidr, &[bridge]).await {
                        note(&e.to_string());
                    }
                    self.claim(cidr).await?;
                    addrs.push(cidr);
                }
            }
        }
        Ok(addrs)
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

    /// What it owns in the subnet, or in the default one.
    pub async fn lookup(&self, subnet: Option<Cidr>) -> Result<Vec<Cidr>, Failure> {
        let body = match self.client.call("GET", &self.within(subnet), &[]).await {
            Err(failure) if failure.code == DISABLED => return Err(no_ipam()),
            asked => asked?,
        };
        let cidrs: Result<Vec<Cidr>, _> = body.split_whitespace().map(str::parse).collect();
        cidrs.map_err(|e| Failure::new(1, e.to_string()))
    }

    /// The owner has lost the address already; that it may be gone here too is no failure.
    pub async fn free(&self, cidr: Cidr) {
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
        Owner::new(server.client(), id, true)
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
}
