//! Does to a lab what the plan says, and remembers what must therefore be true.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::http;
use super::pings::{Excuses, Ping, Pinged, Scope};
use super::plan::Action;
use crate::lab::firewall::VXLAN_PORT;
use crate::lab::{Block, Container, Host, Lab, netns};
use crate::process::{self, LIMIT, wait_for};

/// How long one may try to get an address while the cluster is in disorder.
const PATIENCE: Duration = Duration::from_secs(10);

/// A container that is attached.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its host, from 0.
    pub host: usize,
    /// The host's first one, which pings.
    pub first: bool,
    /// The container.
    pub container: Container,
    /// Its address.
    pub address: Ipv4Addr,
}

/// A lab in trouble.
pub struct World<'a> {
    lab: &'a Lab,
    begun: Instant,
    /// Containers that are attached.
    pub members: Vec<Member>,
    /// Allocations over HTTP that were answered: host and ID, address.
    pub held: BTreeMap<(usize, String), Ipv4Addr>,
    /// What excuses lost pings.
    pub excuses: Excuses,
    /// Pings that have ended.
    pub pinged: Vec<Pinged>,
    /// What was done.
    pub journal: String,
    /// Attachments and allocations that did not come about meanwhile.
    pub refused: usize,
    pings: Vec<Ping>,
    blocks: BTreeMap<(usize, usize), Block>,
    partition: Option<(Block, Vec<bool>)>,
    /// Hosts that are cut off.
    cut: Vec<usize>,
    numbers: usize,
}

impl<'a> World<'a> {
    /// A lab whose daemons are launched; attaches a container on each host.
    ///
    /// # Errors
    /// If that fails.
    pub fn new(lab: &'a Lab) -> Result<Self> {
        let mut world = Self {
            lab,
            begun: Instant::now(),
            members: Vec::new(),
            held: BTreeMap::new(),
            excuses: Excuses::default(),
            pinged: Vec::new(),
            journal: String::new(),
            refused: 0,
            pings: Vec::new(),
            blocks: BTreeMap::new(),
            partition: None,
            cut: Vec::new(),
            numbers: 0,
        };
        for host in 0..lab.hosts().len() {
            world.attach(host, true, LIMIT)?;
        }
        Ok(world)
    }

    fn host(&self, host: usize) -> Result<&'a Host> {
        self.lab.host(host + 1)
    }

    /// Each host's first container pings those of two others. Those that ping already go on.
    ///
    /// # Errors
    /// If ping cannot be run.
    pub fn start_pings(&mut self) -> Result<()> {
        let count = self.lab.hosts().len();
        let firsts: BTreeMap<usize, Member> = self
            .members
            .iter()
            .filter(|member| member.first)
            .map(|member| (member.host, member.clone()))
            .collect();
        for (from, member) in &firsts {
            for step in [1, 1 + count / 2] {
                let to = (from + step) % count;
                let known = self.pings.iter().any(|ping| ping.pair == (*from, to));
                if to != *from
                    && !known
                    && let Some(target) = firsts.get(&to)
                {
                    let ping = Ping::start((*from, to), &member.container, target.address)?;
                    self.pings.push(ping);
                }
            }
        }
        Ok(())
    }

    /// Ends the pings that `which` picks by their pair.
    ///
    /// # Errors
    /// If one does not end.
    pub fn end_pings(&mut self, which: impl Fn((usize, usize)) -> bool) -> Result<()> {
        let (end, stay) = self.pings.drain(..).partition(|ping| which(ping.pair));
        self.pings = stay;
        let end: Vec<Ping> = end;
        for ping in end {
            self.pinged.push(ping.finish()?);
        }
        Ok(())
    }

    /// Does it.
    ///
    /// # Errors
    /// If something fails that must not, whatever the state of the cluster.
    pub fn act(&mut self, action: &Action) -> Result<()> {
        let _infallible = writeln!(
            self.journal,
            "{:6.1} s  {action}",
            self.begun.elapsed().as_secs_f64()
        );
        self.carry_out(action).with_context(|| format!("{action}"))
    }

    fn carry_out(&mut self, action: &Action) -> Result<()> {
        match action {
            Action::Kill(host) => {
                self.excuses.headless(*host);
                self.host(*host)?.kill_daemon()
            }
            Action::Stop { host, keep: true } => {
                self.excuses.headless(*host);
                self.host(*host)?
                    .weave(&["stop", "--keep-traffic"])?
                    .ok()
                    .map(drop)
            }
            Action::Stop { host, keep: false } => {
                self.excuses.breaks(Scope::Host(*host));
                self.host(*host)?.weave(&["stop"])?.ok().map(drop)
            }
            Action::Launch { host, resume } => {
                self.launch(*host, *resume)?;
                self.excuses.headed(*host);
                self.end_break(*host);
                Ok(())
            }
            Action::Reset(host) => {
                self.leave(*host)?;
                self.host(*host)?.weave(&["reset"])?.ok().map(drop)
            }
            Action::Lose(host) => {
                self.leave(*host)?;
                self.host(*host)?.kill_daemon()?;
                self.host(*host)?.weave(&["reset", "--force"])?.ok().map(drop)
            }
            Action::Remove { by, gone } => self.remove(*by, *gone),
            Action::Join(host) => {
                self.launch(*host, false)?;
                self.end_break(*host);
                self.try_attach(*host, true);
                self.start_pings()
            }
            Action::Cut(host) => {
                self.excuses.breaks(Scope::Host(*host));
                self.cut.push(*host);
                self.lab.link(self.host(*host)?, false)
            }
            Action::Mend(host) => {
                self.lab.link(self.host(*host)?, true)?;
                self.cut.retain(|cut| cut != host);
                self.end_break(*host);
                Ok(())
            }
            Action::Partition(side) => {
                self.excuses.breaks(Scope::Split(side.clone()));
                self.partition = Some((self.lab.partition(side)?, side.clone()));
                Ok(())
            }
            Action::Heal => {
                if let Some((block, side)) = self.partition.take() {
                    block.lift()?;
                    self.excuses.ends(&Scope::Split(side));
                }
                Ok(())
            }
            Action::Block { a, b, one_way } => {
                self.excuses.blocks(Scope::Pair(*a, *b));
                let (first, second) = (self.host(*a)?, self.host(*b)?);
                let block = match one_way {
                    true => self.lab.block_one_way(first, second, VXLAN_PORT)?,
                    false => self.lab.block_vxlan(first, second)?,
                };
                self.blocks.insert((*a, *b), block);
                Ok(())
            }
            Action::Lift { a, b } => {
                if let Some(block) = self.blocks.remove(&(*a, *b)) {
                    block.lift()?;
                }
                self.excuses.ends(&Scope::Pair(*a, *b));
                Ok(())
            }
            Action::Pause(host) => {
                self.excuses.headless(*host);
                self.signal(*host, libc::SIGSTOP)
            }
            Action::Continue(host) => {
                self.signal(*host, libc::SIGCONT)?;
                self.excuses.headed(*host);
                Ok(())
            }
            Action::Attach(host) => {
                self.try_attach(*host, false);
                Ok(())
            }
            Action::Detach(host) => self.detach(*host),
            Action::Allocate { host, count } => {
                self.allocate(*host, *count);
                Ok(())
            }
            Action::Free(host) => self.free(*host),
        }
    }

    fn end_break(&mut self, host: usize) {
        if !self.cut.contains(&host) {
            self.excuses.ends(&Scope::Host(host));
        }
    }

    fn launch(&self, host: usize, resume: bool) -> Result<()> {
        let count = self.lab.hosts().len();
        let mut args = vec![format!("--ipalloc-init=consensus={count}")];
        if resume {
            args.push("--resume".to_owned());
        } else {
            for step in [1, 2] {
                args.push(self.host((host + step) % count)?.address().to_string());
            }
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.host(host)?.launch(&args)
    }

    fn signal(&self, host: usize, number: i32) -> Result<()> {
        let host = self.host(host)?;
        let pids = host.daemon_pids();
        ensure!(!pids.is_empty(), "no daemon runs on {}", host.name());
        pids.iter().for_each(|pid| process::signal(*pid, number));
        Ok(())
    }

    /// The host's containers, allocations and pings end with it.
    fn leave(&mut self, host: usize) -> Result<()> {
        self.excuses.breaks(Scope::Host(host));
        self.end_pings(|(a, b)| a == host || b == host)?;
        self.held.retain(|(holder, _), _| *holder != host);
        let (gone, stay) = self.members.drain(..).partition(|member| member.host == host);
        self.members = stay;
        let gone: Vec<Member> = gone;
        for member in gone {
            netns::destroy(member.container.netns())?;
        }
        Ok(())
    }

    fn remove(&self, by: usize, gone: usize) -> Result<()> {
        let name = self.host(gone)?.peer_name();
        let by = self.host(by)?;
        // It is refused while the peer seems to be there, and that may take a moment.
        wait_for(&format!("rmpeer {name}"), LIMIT, || {
            by.weave(&["rmpeer", &name])?.ok().map(Some)
        })
        .map(drop)
    }

    fn attach(&mut self, host: usize, first: bool, limit: Duration) -> Result<()> {
        self.numbers += 1;
        let on = self.host(host)?;
        let container = on.container(&format!("c{}", self.numbers))?;
        let id = container.id();
        let attached = process::run(on.command("weave-ctl")?.args(["attach", &id]), limit)
            .and_then(process::Output::ok)
            .and_then(|line| http::address_of(&line));
        match attached {
            Ok(address) => {
                self.members.push(Member {
                    host,
                    first,
                    container,
                    address,
                });
                Ok(())
            }
            Err(error) => {
                let _half_done = on.weave(&["detach", &id])?;
                netns::destroy(container.netns())?;
                Err(error)
            }
        }
    }

    /// In disorder it may have to wait for somebody who cannot be reached.
    fn try_attach(&mut self, host: usize, first: bool) {
        if let Err(error) = self.attach(host, first, PATIENCE) {
            self.note(&error);
        }
    }

    fn note(&mut self, error: &anyhow::Error) {
        self.refused += 1;
        let text = format!("{error:#}");
        let line = text.lines().next().unwrap_or_default();
        let _infallible = writeln!(self.journal, "          not yet: {line}");
    }

    fn detach(&mut self, host: usize) -> Result<()> {
        let Some(at) = self.members.iter().rposition(|m| m.host == host && !m.first) else {
            return Ok(());
        };
        let member = self.members.remove(at);
        let addresses = self.host(host)?.detach(&member.container, &[])?;
        ensure!(
            addresses == [member.address],
            "detach of {} gave {addresses:?}",
            member.address
        );
        netns::destroy(member.container.netns())
    }

    fn allocate(&mut self, host: usize, count: usize) {
        for _ in 0..count {
            self.numbers += 1;
            let id = format!("chaos-{}", self.numbers);
            let Ok(on) = self.host(host) else { return };
            let answer = http::ask(on, "POST", &format!("/ip/{id}"), PATIENCE);
            match answer.and_then(|text| http::address_of(&text)) {
                Ok(address) => {
                    self.held.insert((host, id), address);
                }
                Err(error) => return self.note(&error),
            }
        }
    }

    fn free(&mut self, host: usize) -> Result<()> {
        let mine: Vec<(usize, String)> = self.held.keys().filter(|(on, _)| *on == host).cloned().collect();
        for key in mine {
            http::ask(self.host(host)?, "DELETE", &format!("/ip/{}", key.1), LIMIT)?;
            self.held.remove(&key);
        }
        Ok(())
    }

    /// Every host has its first container again, and all of them ping.
    ///
    /// # Errors
    /// If one cannot be attached now that everything is well.
    pub fn complete(&mut self) -> Result<()> {
        for host in 0..self.lab.hosts().len() {
            if !self
                .members
                .iter()
                .any(|member| member.host == host && member.first)
            {
                self.attach(host, true, LIMIT)?;
            }
        }
        self.start_pings()
    }

    /// All addresses over HTTP are given back.
    ///
    /// # Errors
    /// If a daemon refuses.
    pub fn free_all(&mut self) -> Result<()> {
        (0..self.lab.hosts().len()).try_for_each(|host| self.free(host))
    }
}
