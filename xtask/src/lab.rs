//! `cargo xtask lab`: the hosts of the end-to-end tests, kept, to play in.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use weave_tests::lab::{Lab, Plan};

use crate::shell::{became_root, cargo, heading, run as run_command, target};
use crate::{ebpf, setup};

/// What to do with the kept lab.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Make N hosts (h1, h2, …) with an underlay between them
    Up {
        /// How many
        hosts: u8,
        /// In a line: only neighbours reach each other
        #[arg(long)]
        line: bool,
        /// Launch the daemon on each, with the host before it as its peer
        #[arg(long)]
        launch: bool,
        #[arg(long, hide = true)]
        built: bool,
    },
    /// Make a container on a host and attach it: `lab attach h1 c1 [ADDRESS…]`
    Attach {
        /// Such as h1
        host: String,
        /// Name of the new container
        container: String,
        /// As for `weave-ctl attach`
        addresses: Vec<String>,
    },
    /// Run a command on a host or in a container: `lab exec h1 weave-ctl status`, `lab exec h1/c1 ip addr`
    #[command(trailing_var_arg = true)]
    Exec {
        /// Such as h1, or h1/c1
        place: String,
        /// The command
        #[arg(required = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Remove the hosts with everything that runs on them
    Down,
}

/// Runs one of them.
pub fn run(task: Task) -> Result<()> {
    match task {
        Task::Up {
            hosts,
            line,
            launch,
            built,
        } => up(hosts, line, launch, built),
        task => {
            let args: Vec<String> = std::env::args().skip(1).collect();
            if became_root(&args)? {
                return Ok(());
            }
            match task {
                Task::Attach {
                    host,
                    container,
                    addresses,
                } => attach(&host, &container, &addresses),
                Task::Exec { place, command } => exec(&place, &command),
                Task::Down | Task::Up { .. } => down(),
            }
        }
    }
}

fn state_file() -> PathBuf {
    target().join("lab.json")
}

fn load() -> Result<Lab> {
    let path = state_file();
    let text = fs::read_to_string(&path).context("there is no lab; make one: cargo xtask lab up 2")?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
}

fn up(hosts: u8, line: bool, launch: bool, built: bool) -> Result<()> {
    ensure!((1..=250).contains(&hosts), "between 1 and 250 hosts");
    ensure!(!line || hosts >= 2, "a line has at least 2 hosts");
    ensure!(
        !state_file().exists(),
        "there is a lab already; remove it first: cargo xtask lab down"
    );
    if !built {
        setup::run(setup::Detail::Changes)?;
        ebpf::build()?;
        run_command(cargo().args(["build", "--quiet", "--package", "weave-ctl"]))?;
    }
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    args.push("--built".to_owned());
    if became_root(&args)? {
        return Ok(());
    }
    let plan = if line {
        Plan::line(hosts)
    } else {
        Plan::mesh(hosts)
    };
    let lab = plan.build_kept()?;
    if let Err(error) = fs::write(state_file(), serde_json::to_string_pretty(&lab)?) {
        lab.remove()?;
        return Err(error).context("cannot keep the lab's state");
    }
    heading(&format!("{hosts} hosts{}", if line { " in a line" } else { "" }));
    for host in lab.hosts() {
        println!(
            "  {}  {:<12} network namespace {}",
            host.name(),
            host.address(),
            host.netns()
        );
    }
    if launch {
        lab.launch_all(&[])?;
        println!("  weave is launched on each");
    } else {
        println!("  next: cargo xtask lab exec h1 weave-ctl launch --name ::1 --nickname h1");
    }
    println!("  cargo xtask lab attach h1 c1 | exec h1 weave-ctl status | exec h1/c1 ping ADDRESS | down");
    Ok(())
}

fn attach(host: &str, container: &str, addresses: &[String]) -> Result<()> {
    let lab = load()?;
    let host = lab.host_named(host)?;
    let container = host.container(container)?;
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let got = host.attach(&container, &addresses)?;
    println!(
        "{}",
        got.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    );
    Ok(())
}

/// Becomes the command, so that its terminal, signals and exit status are its own.
fn exec(place: &str, words: &[String]) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let lab = load()?;
    let (program, args) = words.split_first().context("no command given")?;
    let mut command: Command = match place.split_once('/') {
        Some((host, container)) => lab
            .host_named(host)?
            .container_named(container)
            .command(program)?,
        None => lab.host_named(place)?.command(program)?,
    };
    let error = command.args(args).exec();
    bail!("cannot run {program}: {error}")
}

fn down() -> Result<()> {
    load()?.remove()?;
    fs::remove_file(state_file())?;
    println!("The lab is gone.");
    Ok(())
}
