//! `cargo xtask demo`: the main job, on one machine, with everything that can be looked at.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use weave_tests::lab::{Container, Host, Lab, Plan, netns};
use weave_tests::process::{self, LIMIT};

use crate::shell::{became_root, cargo, heading, run as run_command, target};
use crate::{demo_docker, ebpf, setup};

/// Builds, shows, and fails if anything of it did not work.
pub fn run(docker: bool, built: bool) -> Result<()> {
    if !built {
        setup::run(setup::Detail::Full)?;
        heading("Build");
        ebpf::build()?;
        run_command(cargo().args(["build", "--release", "--package", "weave-ctl"]))?;
    }
    let mut args = vec!["demo".to_owned(), "--built".to_owned()];
    args.extend(docker.then(|| "--docker".to_owned()));
    if became_root(&args)? {
        return Ok(());
    }

    heading("Two hosts");
    let lab = Plan::mesh(2)
        .binary(target().join("release/weave-ctl"))
        .build("demo")?;
    let (first, second) = (lab.host(1)?, lab.host(2)?);
    for host in lab.hosts() {
        println!("{}  {}", host.name(), host.address());
    }

    let result = match docker {
        true => demo_docker::show(&lab),
        false => show(&lab, first, second),
    };
    if result.is_err() {
        eprintln!("{}", lab.diagnose());
    }
    result?;

    lab.remove()?;
    println!("\nAll of it worked.");
    Ok(())
}

fn show(lab: &Lab, first: &Host, second: &Host) -> Result<()> {
    heading("Launch: the second gets the address of the first");
    first.launch(&[])?;
    second.launch(&[&first.address().to_string()])?;
    print!("{}", first.weave(&["version"])?.ok()?);

    heading("A container on each host, with an address from IPAM");
    let (one, one_address) = first.attached("c1")?;
    let (two, two_address) = second.attached("c2")?;
    println!("h1: c1 {one_address}\nh2: c2 {two_address}");
    ensure!(one_address != two_address, "both got the same address");

    heading("Ping, c1 to c2");
    one.wait_ping(two_address)?;
    for host in lab.hosts() {
        host.wait_connections(1, "established fastdp")?;
    }
    print!(
        "{}",
        one.exec(&["ping", "-n", "-c", "4", "-i", "0.2", &two_address.to_string()])?
            .ok()?
    );

    heading("iperf3, c1 to c2");
    iperf3(&one, &two, &two_address.to_string())?;

    for page in [
        &["status"][..],
        &["status", "connections"],
        &["status", "peers"],
        &["ps"],
    ] {
        heading(&format!("weave-ctl {}, on h1", page.join(" ")));
        say(first, page)?;
    }

    heading("BPF maps on h1, through bpftool");
    show_maps(first)?;

    heading("Clean up");
    lab.hosts().iter().try_for_each(|host| say(host, &["reset"]))
}

fn say(host: &Host, args: &[&str]) -> Result<()> {
    print!("{}", host.weave(args)?.ok()?);
    Ok(())
}

fn iperf3(from: &Container, to: &Container, address: &str) -> Result<()> {
    let server = to.spawn(&["iperf3", "-s", "-1"])?;
    process::wait_for("iperf3 to listen", LIMIT, || {
        Ok(netns::listens(server.pid(), 5201).then_some(()))
    })?;
    let report = from
        .exec(&["iperf3", "-c", address, "-t", "3", "-f", "g"])?
        .ok()?;
    let summary: Vec<&str> = report
        .lines()
        .filter(|l| l.ends_with("sender") || l.ends_with("receiver"))
        .collect();
    ensure!(summary.len() == 2, "iperf3 gave no summary:\n{report}");
    println!("{}", summary.join("\n"));
    Ok(())
}

/// The first entries of the maps that have any; at least one must show named fields.
fn show_maps(host: &Host) -> Result<()> {
    let mut pins = Vec::new();
    files(host.bpf_dir(), &mut pins)?;
    pins.sort();
    let mut named = 0;
    for pin in &pins {
        let dump = process::run(
            Command::new("bpftool").args(["map", "dump", "pinned"]).arg(pin),
            LIMIT,
        )?;
        // Pinned links and programs are no maps; with BTF the output is a list of objects.
        let entries = dump.stdout.matches("\"key\":").count();
        if !dump.success() || entries == 0 || !dump.stdout.trim_start().starts_with('[') {
            continue;
        }
        named += 1;
        if named <= 4 {
            println!(
                "{} ({entries} entries)",
                pin.file_name().unwrap_or_default().to_string_lossy()
            );
            dump.stdout.lines().take(24).for_each(|line| println!("  {line}"));
        }
    }
    ensure!(
        named > 0,
        "no pinned map under {} shows named fields: {pins:?}",
        host.bpf_dir().display()
    );
    Ok(())
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("no pins in {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}
