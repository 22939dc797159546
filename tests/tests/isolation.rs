//! Applications in subnets of their own do not reach each other, whatever their containers try.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use weave_tests::lab::{Container, Host, Lab, Plan, netns};
use weave_tests::process::wait_for;

fn inside(container: &Container, args: &[&str]) -> Result<()> {
    netns::ip(&[&["-n", container.netns()], args].concat()).map(drop)
}

fn dropped(host: &Host, counter: &str) -> Result<u64> {
    let format = format!("{{{{.FastDatapath.Counters.{counter}}}}}");
    Ok(host.weave(&["report", "-f", &format])?.ok()?.trim().parse()?)
}

#[test]
fn subnets_stay_apart_and_nobody_is_somebody_else() {
    Plan::mesh(2).test("isolate", |lab: &Lab| {
        let (one, two) = (lab.host(1)?, lab.host(2)?);
        one.launch(&[])?;
        two.launch(&[&one.address().to_string()])?;
        one.wait_connection_to(two, &["fastdp", "established"])?;
        let container = |host: &Host, name: &str, address: &str| -> Result<(Container, Ipv4Addr)> {
            let container = host.container(name)?;
            let addrs = host.attach(&container, &[address])?;
            Ok((container, addrs[0]))
        };
        let (red, _) = container(one, "red1", "10.2.1.1/24")?;
        let (_red2, red2) = container(two, "red2", "10.2.1.2/24")?;
        let (blue, blue1) = container(one, "blue1", "10.2.2.1/24")?;
        let (_blue2, blue2) = container(two, "blue2", "10.2.2.2/24")?;
        red.wait_ping(red2)?;
        blue.wait_ping(blue2)?;
        for target in [blue1, blue2] {
            red.no_ping(target)?;
        }

        // An address of theirs, taken.
        let spoofed = dropped(one, "drop_spoofed_ip")?;
        inside(&red, &["address", "add", "10.2.2.99/24", "dev", "ethwe"])?;
        for target in [blue1, blue2] {
            red.no_ping(target)?;
        }
        ensure!(
            dropped(one, "drop_spoofed_ip")? > spoofed,
            "not dropped by the check"
        );
        // One that it was given, on both ways of the datapath, also after a restart of the daemon.
        one.kill_daemon()?;
        one.launch(&["--resume"])?;
        one.wait_connection_to(two, &["fastdp", "established"])?;
        for target in [blue1, blue2] {
            red.no_ping(target)?;
        }
        inside(&red, &["address", "del", "10.2.2.99/24", "dev", "ethwe"])?;
        one.attach(&red, &["10.2.2.99/24"])?;
        red.wait_ping(blue2)?;
        one.detach(&red, &["10.2.2.99/24"])?;
        inside(&red, &["address", "add", "10.2.2.99/24", "dev", "ethwe"])?;
        red.no_ping(blue2)?;
        inside(&red, &["address", "del", "10.2.2.99/24", "dev", "ethwe"])?;

        // Another Ethernet address.
        red.wait_ping(red2)?;
        let mac = ["link", "set", "ethwe", "address", "02:00:00:00:00:99"];
        inside(&red, &mac)?;
        red.no_ping(red2)?;
        ensure!(dropped(one, "drop_spoofed_mac")? > 0, "not dropped by the check");

        // Who wants it may have it so.
        one.weave(&["stop"])?.ok()?;
        one.launch(&["--resume", "--no-spoof-check"])?;
        one.wait_connection_to(two, &["fastdp", "established"])?;
        red.wait_ping(red2)?;
        inside(&red, &["address", "add", "10.2.2.99/24", "dev", "ethwe"])?;
        wait_for(
            "a ping from an address taken",
            weave_tests::process::LIMIT,
            || {
                Ok(red
                    .exec(&["ping", "-c1", "-W1", &blue2.to_string()])?
                    .success()
                    .then_some(()))
            },
        )
    });
}
