//! `attach`, `detach`, `ps`: the forms of addresses, isolation, what is printed.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, ensure};
use weave_tests::lab::{Container, Lab, Plan, netns};
use weave_tests::process::wait_for;

fn address(text: &str) -> Result<Ipv4Addr> {
    Ok(text.parse()?)
}

/// The addresses of `ethwe`, with prefix length, in order.
fn on_interface(container: &Container) -> Result<Vec<String>> {
    let text = netns::ip(&[
        "-n",
        container.netns(),
        "-4",
        "-o",
        "address",
        "show",
        "dev",
        "ethwe",
    ])?;
    let cidr = |line: &str| line.split_whitespace().nth(3).map(str::to_owned);
    Ok(text.lines().filter_map(cidr).collect())
}

#[test]
fn all_forms_of_addresses_in_one_call() {
    Plan::mesh(1).test("forms", |lab: &Lab| {
        let host = lab.host(1)?;
        host.launch(&[
            "--ipalloc-range",
            "10.40.0.0/16",
            "--ipalloc-default-subnet",
            "10.40.1.0/24",
        ])?;
        let container = host.container("c")?;
        let forms = [
            "10.60.1.1/24",
            "ip:10.60.2.1/24",
            "net:10.40.2.0/24",
            "net:default",
        ];
        let got = host.attach(&container, &forms)?;
        let expected = ["10.60.1.1", "10.60.2.1", "10.40.2.1", "10.40.1.1"];
        ensure!(
            got == expected.map(|text| text.parse().unwrap_or(Ipv4Addr::UNSPECIFIED)),
            "{got:?}"
        );
        let cidrs = ["10.60.1.1/24", "10.60.2.1/24", "10.40.2.1/24", "10.40.1.1/24"];
        ensure!(
            on_interface(&container)? == cidrs,
            "{:?}",
            on_interface(&container)?
        );

        let ps = host.weave(&["ps", &container.id()])?.ok()?;
        let words: Vec<&str> = ps.split_whitespace().collect();
        let mut listed: Vec<&str> = words.get(2..).unwrap_or_default().to_vec();
        listed.sort_unstable();
        let mut sorted = cidrs;
        sorted.sort_unstable();
        ensure!(ps.lines().count() == 1 && listed == sorted, "ps printed {ps:?}");
        let mac = words.get(1).copied().unwrap_or_default();
        ensure!(
            mac.len() == 17 && mac.split(':').count() == 6,
            "no MAC address in {ps:?}"
        );

        // Repeating changes nothing.
        ensure!(
            host.attach(&container, &forms)? == got,
            "other addresses the second time"
        );
        ensure!(
            on_interface(&container)? == cidrs,
            "{:?}",
            on_interface(&container)?
        );

        // One is taken away, then all that is left.
        ensure!(host.detach(&container, &["net:10.40.2.0/24"])? == [address("10.40.2.1")?]);
        ensure!(on_interface(&container)? == ["10.60.1.1/24", "10.60.2.1/24", "10.40.1.1/24"]);
        host.detach(&container, &["10.60.1.1/24", "10.60.2.1/24", "net:default"])?;
        ensure!(
            !container.exec(&["ip", "link", "show", "ethwe"])?.success(),
            "the interface is still there"
        );

        // What was given back is given out again.
        let other = host.container("d")?;
        ensure!(host.attach(&other, &["net:10.40.2.0/24"])? == [address("10.40.2.1")?]);
        Ok(())
    });
}

#[test]
fn subnets_are_separate() {
    Plan::mesh(2).test("subnets", |lab: &Lab| {
        lab.launch_all(&[])?;
        let (first, second) = (lab.host(1)?, lab.host(2)?);
        let (red, blue) = (["net:10.32.1.0/24"], ["net:10.32.2.0/24"]);
        let attach =
            |host: &weave_tests::lab::Host, name: &str, subnet: &[&str]| -> Result<(Container, Ipv4Addr)> {
                let container = host.container(name)?;
                let got = host.attach(&container, subnet)?;
                Ok((container, got.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED)))
            };
        let (red1, _) = attach(first, "red", &red)?;
        let (_, red2) = attach(second, "red", &red)?;
        let (blue1, blue1_address) = attach(first, "blue", &blue)?;
        let (_, blue2) = attach(second, "blue", &blue)?;
        red1.wait_ping(red2)?;
        blue1.wait_ping(blue2)?;
        red1.no_ping(blue2)?;
        red1.no_ping(blue1_address)
    });
}

#[test]
fn what_cannot_be_attached() {
    Plan::mesh(1).test("refused", |lab: &Lab| {
        let host = lab.host(1)?;
        host.launch(&[])?;
        let container = host.container("c")?;
        for (subnet, part) in [
            ("net:10.32.3.2/30", "10.32.3.2/30"),
            ("net:10.32.3.2/31", "10.32.3.2/31"),
            ("net:10.99.0.0/24", "out of bounds"),
        ] {
            let message = host.weave(&["attach", subnet, &container.id()])?.fails_with(1)?;
            ensure!(message.contains(part), "{message}");
        }
        let message = host.weave(&["attach", "netns:no-such-one"])?.fails_with(1)?;
        ensure!(message.contains("no-such-one"), "{message}");
        let message = host.weave(&["attach", "no-such-container"])?.fails_with(1)?;
        ensure!(!message.trim().is_empty(), "no message");
        // An address that another container has.
        let taken = host.attach(&container, &[])?;
        let taken = format!("{}/12", taken.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED));
        let other = host.container("d")?;
        let message = host.weave(&["attach", &taken, &other.id()])?.fails_with(1)?;
        ensure!(message.contains("already"), "{message}");
        // Nothing half-made is left of all that.
        ensure!(
            !other.exec(&["ip", "link", "show", "ethwe"])?.success(),
            "a failed attach left an interface"
        );
        let ps = host.weave(&["ps", &other.id()])?.ok()?;
        ensure!(ps.trim().is_empty(), "{ps}");
        Ok(())
    });
}

#[test]
fn detach_of_what_is_not_attached() {
    Plan::mesh(1).test("detach", |lab: &Lab| {
        let host = lab.host(1)?;
        host.launch(&[])?;
        let (container, own) = host.attached("c")?;
        // An address that it does not have is skipped silently.
        host.detach(&container, &["10.99.9.9/24"])?;
        ensure!(on_interface(&container)?.len() == 1, "it lost its address");
        ensure!(host.detach(&container, &[])? == [own]);
        Ok(())
    });
}

#[test]
fn a_full_range_makes_attach_wait_until_an_address_is_free() {
    Plan::mesh(1).test("full", |lab: &Lab| {
        let host = lab.host(1)?;
        host.launch(&["--ipalloc-range", "10.50.0.0/29"])?;
        let mut attached = Vec::new();
        for number in 1..=6 {
            attached.push(host.attached(&format!("c{number}"))?);
        }
        let seventh = host.container("c7")?;
        let waiting = host.spawn(&["weave-ctl", "attach", &seventh.id()])?;
        wait_for(
            "a pending allocation in the report",
            Duration::from_secs(60),
            || {
                let report = host
                    .weave(&["report", "-f", "{{.IPAM.PendingAllocates}}"])?
                    .ok()?;
                Ok(report.contains(seventh.netns()).then_some(()))
            },
        )?;
        let Some((third, freed)) = attached.get(2) else {
            anyhow::bail!("six containers")
        };
        host.detach(third, &[])?;
        let output = waiting.finish(Duration::from_secs(60))?;
        ensure!(
            output.success() && output.stdout.trim() == freed.to_string(),
            "{output}"
        );
        Ok(())
    });
}
