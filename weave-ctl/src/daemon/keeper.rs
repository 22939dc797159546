//! Attaches containers of Docker when they start (control.md 4.3, "Attachment"): those that wait for it in `/w/w`,
//! and those that were attached with `weave attach` before they were restarted.
//!
//! A task for each container that has started; the work on the host is bounded. Waiting for an address is not: a
//! container that waits for a ring keeps no other from having its own addresses.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

use super::attachments::Attachments;
use super::event::{Event, Events};
use super::handle::Handle;
use crate::api::backend::Backend;
use crate::docker::attachment::{Attachment, Kept};
use crate::docker::events::ContainerEvent;
use crate::docker::hosts::Hosts;
use crate::docker::keeper::waiters::Taken;
use crate::docker::keeper::{Keeper, Outcome};
use crate::docker::proxy::rules::{self, Ask, Words};
use crate::docker::resolver::{self, WeaveDns};
use crate::docker::{self, DockerContainer, Life, process};
use crate::ipam::address::Cidr;
use crate::net::attach::{self, AttachRequest};
use crate::net::container::{self, Container};
use crate::net::{NetError, Netlink};

/// Containers that are worked on at once.
const AT_ONCE: usize = 16;
/// Between two tries for a container that ran before we came.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How containers that wait in `/w/w` are attached.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Also those that do not ask for it with `WEAVE_CIDR`.
    pub default_ipalloc: bool,
    /// Their hosts file gets their addresses.
    pub rewrite_hosts: bool,
    /// 224.0.0.0/4 is routed through the interface.
    pub multicast_route: bool,
    /// Their names go into WeaveDNS.
    pub dns: bool,
}

/// What an attachment needs. Clones share everything.
#[derive(Clone)]
pub struct Worker(Arc<Inner>);

/// The parts of a [`Worker`].
pub struct Inner {
    /// Who waits.
    pub keeper: Keeper,
    /// Docker's endpoint.
    pub docker: String,
    /// Into the host's namespace.
    pub nl: Netlink,
    /// The weave bridge.
    pub bridge: String,
    /// Addresses and names.
    pub handle: Handle,
    /// The way to the loop.
    pub events: Events,
    /// Attached while they ran.
    pub attachments: Attachments,
    /// For those that wait.
    pub rules: Rules,
    permits: Semaphore,
    /// What containers had that have come to their end, so that they get it again even when it was free meanwhile.
    last: Mutex<HashMap<String, Vec<Cidr>>>,
}

impl Inner {
    /// Who does the work, with nothing done yet.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "each is what its name says")]
    pub fn new(
        keeper: Keeper,
        docker: String,
        nl: Netlink,
        bridge: String,
        handle: Handle,
        events: Events,
        attachments: Attachments,
        rules: Rules,
    ) -> Self {
        Self {
            keeper,
            docker,
            nl,
            bridge,
            handle,
            events,
            attachments,
            rules,
            permits: Semaphore::new(AT_ONCE),
            last: Mutex::default(),
        }
    }
}

/// What there is to do for a container.
struct Job {
    container: Container,
    words: Option<Words>,
    kept: Option<Attachment>,
}

/// How a try has ended.
enum Attempt {
    /// It is none of ours, or has ended.
    Nothing,
    /// It has its addresses.
    Attached,
    /// It has not.
    Failed(Failed),
}

struct Failed {
    why: String,
    /// Its main process, if that waits for it.
    pid: Option<u32>,
    /// Docker gave no answer: nobody knows what the container is.
    unknown: bool,
}

/// When a container is tried again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// It has started: now or never.
    Started,
    /// It ran when we came: for as long as it runs.
    Found,
}

impl Worker {
    /// Ready for events.
    #[must_use]
    pub fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// Takes note of an event that the loop has been told. Does not wait.
    pub fn on_event(&self, event: &ContainerEvent) {
        match event {
            ContainerEvent::Started(id) => self.begin(id, Mode::Started),
            ContainerEvent::Died(_) => {}
            ContainerEvent::Destroyed(id) => {
                self.last().remove(id);
                let (worker, id) = (self.clone(), id.clone());
                tokio::spawn(async move {
                    if let Err(error) = worker.0.attachments.forget(&id).await {
                        tracing::warn!("cannot forget container {id}: {error}");
                    }
                });
            }
            ContainerEvent::Running { ids, .. } => {
                for id in ids {
                    self.begin(id, Mode::Found);
                }
                // Their start, and their end, were missed.
                for id in self.0.keeper.waiters().overdue() {
                    self.begin(&id, Mode::Started);
                }
                tokio::spawn(self.clone().forget_removed());
            }
        }
    }

    /// What was removed while nobody told us.
    async fn forget_removed(self) {
        let all = match docker::list_all_at(&self.0.docker).await {
            Ok(all) => all,
            Err(error) => return tracing::info!("cannot list the containers: {error}"),
        };
        let ids: BTreeSet<&str> = all.iter().map(String::as_str).collect();
        self.last().retain(|id, _| ids.contains(id.as_str()));
        if let Err(error) = self.0.attachments.retain(&ids).await {
            tracing::warn!("cannot forget containers that were removed: {error}");
        }
    }

    fn begin(&self, id: &str, mode: Mode) {
        if let Some(wake) = self.0.keeper.waiters().begin(id) {
            tokio::spawn(self.clone().attend(id.to_owned(), wake, mode));
        }
    }

    /// From a start to the end of the attachment, and again for each start that comes meanwhile.
    async fn attend(self, id: String, wake: Arc<Notify>, mut mode: Mode) {
        let mut taken = self.0.keeper.waiters().take(&id);
        loop {
            match self.attach(&id, &taken, &wake, mode).await {
                Some(outcome) => {
                    if !self.0.keeper.waiters().end(&id, taken, &outcome) {
                        return;
                    }
                    taken = self.0.keeper.waiters().take(&id);
                }
                // Those who have waited so far wait for this start.
                None => taken.join(self.0.keeper.waiters().take(&id)),
            }
            mode = Mode::Started;
        }
    }

    /// Until it has its addresses, or cannot have them. `None`: it was started again while we waited to try again.
    async fn attach(&self, id: &str, taken: &Taken, wake: &Notify, mode: Mode) -> Option<Outcome> {
        let mut pause = FIRST_PAUSE;
        loop {
            let failed = match self.attempt(id).await {
                Attempt::Nothing => return Some(Ok(())),
                Attempt::Attached => {
                    // Nobody waits for this.
                    let (worker, id) = (self.clone(), id.to_owned());
                    tokio::spawn(async move { worker.tell_life(&id).await });
                    return Some(Ok(()));
                }
                Attempt::Failed(failed) => failed,
            };
            let why = failed.why;
            match self.tell_life(id).await {
                // It has ended meanwhile: that is why.
                Life::Ended | Life::Gone => return Some(Ok(())),
                // And was started again: that start is told of.
                Life::Runs(now) if failed.pid.is_some_and(|pid| pid != now) => return Some(Ok(())),
                Life::Runs(_) if mode == Mode::Started && !failed.unknown => {
                    tracing::warn!("cannot attach container {id}: {why}");
                    // Without one it waits for nothing.
                    let Some(pid) = failed.pid else {
                        return Some(Ok(()));
                    };
                    self.kill(id, pid, !taken.is_empty()).await;
                    return Some(Err(why));
                }
                Life::Runs(_) | Life::Unknown => {}
            }
            let after = pause.as_secs();
            tracing::warn!("cannot attach container {id}, trying again in {after} s: {why}");
            self.0.keeper.waiters().pause(id);
            if tokio::time::timeout(pause, wake.notified()).await.is_ok() {
                return None;
            }
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }

    /// What Docker says of the container's life now; the loop has been told. A container may have died before it had
    /// its addresses and names: then its death has not freed them.
    async fn tell_life(&self, id: &str) -> Life {
        let mut life = docker::life(&self.0.docker, id).await;
        loop {
            let owned = || id.to_owned();
            let events = match life {
                Life::Runs(_) => vec![ContainerEvent::Started(owned())],
                Life::Ended => vec![ContainerEvent::Died(owned())],
                Life::Gone => {
                    self.last().remove(id);
                    vec![ContainerEvent::Died(owned()), ContainerEvent::Destroyed(owned())]
                }
                Life::Unknown => Vec::new(),
            };
            for event in events {
                self.0.events.send(Event::Container(event)).await;
            }
            // What has changed since we asked was perhaps told before we told that; what changes from here on is
            // told afterwards.
            let now = docker::life(&self.0.docker, id).await;
            if now == life || now == Life::Unknown {
                return now;
            }
            life = now;
        }
    }

    /// Somebody who waits is told, so Docker is not to start it again by itself; else it is.
    async fn kill(&self, id: &str, pid: u32, is_told: bool) {
        let docker = &self.0.docker;
        let killed = if is_told {
            docker::kill(docker, id).await
        } else {
            // Asked after the process was found: it is not another of the same number.
            let still = || async { docker::life(docker, id).await == Life::Runs(pid) };
            let killed = process::kill_if(pid, still).await;
            killed.map_err(|e| NetError::kernel("kill the container's first process", e))
        };
        if let Err(error) = killed {
            tracing::warn!("cannot kill container {id}: {error}");
        }
    }

    async fn attempt(&self, id: &str) -> Attempt {
        let permit = self.0.permits.acquire().await;
        let found = match docker::find_at(&self.0.docker, id).await {
            Ok(Some(found)) if found.running => found,
            Ok(_) => return Attempt::Nothing,
            Err(error) => {
                return Attempt::Failed(Failed {
                    why: error.to_string(),
                    pid: None,
                    unknown: true,
                });
            }
        };
        let kept = self.0.attachments.get(id).await;
        let words = found
            .waits()
            .then(|| rules::wanted(&found.network_mode, &found.env, self.0.rules.default_ipalloc));
        let words = match words.transpose() {
            Ok(words) => words,
            Err(why) => {
                tracing::info!("Leaving container {id} alone because {why}");
                None
            }
        };
        if words.is_none() && kept.is_none() {
            return Attempt::Nothing;
        }
        let pid = found.pid.filter(|_| words.is_some());
        let failed = |why| {
            Attempt::Failed(Failed {
                why,
                pid,
                unknown: false,
            })
        };
        let container = match container::of_docker_here(id, found) {
            Ok(container) => container,
            Err(NetError::Died(_) | NetError::NotRunning(_)) => return Attempt::Nothing,
            Err(error @ NetError::Elsewhere { .. }) => {
                tracing::info!("{error}");
                return Attempt::Nothing;
            }
            Err(error) => {
                return failed(error.to_string());
            }
        };
        // Waiting for an address is no work.
        drop(permit);
        let job = Job {
            container,
            words,
            kept,
        };
        match self.work(id, &job).await {
            Ok(()) => Attempt::Attached,
            Err(why) => failed(why),
        }
    }

    async fn work(&self, id: &str, job: &Job) -> Result<(), String> {
        let had = self.had(id, &job.container).await;
        let mut addrs = Vec::new();
        if let Some(words) = &job.words {
            for (word, ask) in words.asks().map_err(|e| e.to_string())? {
                let taken = self.take(id, ask, &had).await;
                addrs.push(taken.map_err(|why| format!("for \"{word}\": {}", why.trim_end()))?);
            }
        }
        let kept = job.kept.as_ref();
        for kept in kept.iter().flat_map(|kept| &kept.addresses) {
            if addrs.iter().any(|cidr: &Cidr| cidr.addr == kept.cidr.addr) {
                continue;
            }
            match self.take_again(id, *kept).await {
                Ok(cidr) if addrs.contains(&cidr) => {}
                Ok(cidr) => addrs.push(cidr),
                Err(why) => tracing::warn!(
                    "container {id} does not get {} again: {}",
                    kept.cidr,
                    why.trim_end()
                ),
            }
        }
        self.last().insert(id.to_owned(), addrs.clone());
        let _permit = self.0.permits.acquire().await;
        self.connect(job, &addrs).await
    }

    async fn connect(&self, job: &Job, addrs: &[Cidr]) -> Result<(), String> {
        let Inner {
            nl, bridge, rules, ..
        } = &*self.0;
        let (container, kept) = (&job.container, job.kept.as_ref());
        let waits = job.words.is_some();
        let either = |of_rules: bool, of_kept: fn(&Attachment) -> bool| {
            (waits && of_rules) || kept.is_some_and(of_kept)
        };
        if either(rules.rewrite_hosts, |kept| kept.rewrite_hosts)
            && let Some(hosts) = Hosts::of(container, &kept.map(Attachment::static_hosts).unwrap_or_default())
            && let Err(error) = hosts.rewrite(addrs)
        {
            tracing::warn!("{error}");
        }
        let request = AttachRequest::new(
            container,
            addrs,
            bridge,
            either(rules.multicast_route, |kept| kept.multicast_route),
        );
        attach::attach(nl, &request).await.map_err(|e| e.to_string())?;
        let Some(dns) = self.0.handle.dns() else {
            return Ok(());
        };
        let wants_dns = container
            .docker
            .as_ref()
            .is_some_and(|docker| rules::wants_dns(&docker.env));
        if either(rules.dns && wants_dns, |kept| kept.dns)
            && let Some(name) = container.docker.as_ref().and_then(DockerContainer::fqdn)
        {
            for cidr in addrs {
                let id = container.id.clone();
                let added = self.0.handle.add_name(id, cidr.addr, name.clone(), false);
                if let Err(error) = added.await {
                    tracing::warn!("cannot register {name}: {error}");
                }
            }
        }
        // Those that wait were given their nameserver when they were made.
        if !waits
            && kept.is_some_and(|kept| kept.dns)
            && let Some(std::net::SocketAddr::V4(address)) = dns.address
        {
            let weave_dns = WeaveDns {
                address: *address.ip(),
                domain: dns.domain.clone(),
            };
            if let Some(note) = resolver::add(nl, bridge, container, addrs, &weave_dns).await {
                tracing::info!("{note}");
            }
        }
        Ok(())
    }

    async fn take(&self, id: &str, ask: Ask, had: &[Cidr]) -> Result<Cidr, String> {
        let handle = &self.0.handle;
        match ask {
            Ask::Plain(cidr) => self.claim(id, cidr).await.map(|()| cidr),
            Ask::Net(_) if !handle.ipam_enabled() => {
                Err("IP address allocation must be enabled to use 'net:'".to_owned())
            }
            Ask::Net(subnet) => {
                let within = subnet.or(handle.default_subnet());
                let had = had.iter().find(|cidr| Some(cidr.network()) == within);
                if let Some(cidr) = had
                    && self.claim(id, *cidr).await.is_ok()
                {
                    return Ok(*cidr);
                }
                let allocated = handle.allocate(id.to_owned(), subnet, true).await;
                allocated.map_err(|e| e.to_string())
            }
        }
    }

    /// The same address while it can be had.
    async fn take_again(&self, id: &str, kept: Kept) -> Result<Cidr, String> {
        match self.claim(id, kept.cidr).await {
            Ok(()) => Ok(kept.cidr),
            Err(_) if kept.allocated => self.take(id, Ask::Net(Some(kept.cidr.network())), &[]).await,
            Err(why) => Err(why),
        }
    }

    /// What the container has, as when we were away or have lost our data; and what it had when it was last
    /// attached.
    async fn had(&self, id: &str, container: &Container) -> Vec<Cidr> {
        let held = async {
            let guest = Netlink::open(&container.ns).await?;
            match guest.find_link(attach::INTERFACE).await? {
                Some(link) => guest.addresses(link.index).await,
                None => Ok(Vec::new()),
            }
        };
        let mut had = held.await.unwrap_or_default();
        had.extend(self.last().get(id).into_iter().flatten());
        had
    }

    async fn claim(&self, id: &str, cidr: Cidr) -> Result<(), String> {
        if !self.0.handle.ipam_enabled() {
            return Ok(());
        }
        let claimed = self.0.handle.claim(id.to_owned(), cidr, true, false).await;
        claimed.map_err(|e| format!("Unable to claim: {e}"))
    }

    fn last(&self) -> std::sync::MutexGuard<'_, HashMap<String, Vec<Cidr>>> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
