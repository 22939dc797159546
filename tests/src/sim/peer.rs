//! What runs beside the mesh of a peer of the product: an allocator, its disk, its clients.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use weave_ctl::ipam::address::{Address, Cidr};
use weave_ctl::ipam::allocator::{Allocator, CHANNEL, Config, Persisted};
use weave_ctl::ipam::operations::ClaimOptions;
use weave_ctl::mesh::Now;
use weave_ctl::mesh::channel::{Channel, Channels, Outlet};

use super::book::{Asked, Book};
use super::{Site, World, node_of};

/// One process and its disk.
pub struct Peer {
    /// The allocator.
    pub ipam: Allocator,
    config: Config,
    node: usize,
    disk: Option<Persisted>,
    /// Addresses handed out, as the disk has them.
    on_disk: BTreeSet<Address>,
    book: Rc<RefCell<Book>>,
}

impl Peer {
    /// With an empty disk.
    #[must_use]
    pub fn new(config: Config, book: &Rc<RefCell<Book>>) -> Self {
        Self {
            ipam: Allocator::new(config.clone(), None),
            node: node_of(config.name),
            config,
            disk: None,
            on_disk: BTreeSet::new(),
            book: Rc::clone(book),
        }
    }

    /// Its next process, which finds what this one has saved.
    #[must_use]
    pub fn next(&self, uid: u64) -> Self {
        let config = Config {
            uid,
            ..self.config.clone()
        };
        self.book.borrow_mut().hang_up(self.node);
        // Through bytes, as a store would.
        let bytes = serde_json::to_vec(&self.disk).unwrap();
        let disk: Option<Persisted> = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(disk, self.disk);
        Self {
            ipam: Allocator::new(config.clone(), disk.clone()),
            config,
            node: self.node,
            disk,
            on_disk: self.on_disk.clone(),
            book: Rc::clone(&self.book),
        }
    }

    /// Its next process after `weave reset`: the disk is empty.
    #[must_use]
    pub fn reset(&self, uid: u64) -> Self {
        self.book.borrow_mut().forget(self.node);
        let config = Config {
            uid,
            ..self.config.clone()
        };
        Self::new(config, &self.book)
    }
}

impl Channels for Peer {
    fn names(&self) -> Vec<&'static str> {
        vec![CHANNEL]
    }
    fn get(&mut self, name: &str) -> Option<&mut dyn Channel> {
        (name == CHANNEL).then_some(&mut self.ipam as &mut dyn Channel)
    }
}

impl Site for Peer {
    const CHANNEL: &'static str = CHANNEL;
    const CHORE: Option<Duration> = Some(Duration::from_secs(5));

    fn chore(&mut self, out: &mut dyn Outlet) {
        self.ipam.tick(out);
    }

    fn save(&mut self) {
        if let Some(changes) = self.ipam.take_changes() {
            changes.apply(&mut self.disk);
            let records = self.disk.iter().flat_map(|state| state.owned.values());
            let cidrs = records.flat_map(|record| &record.cidrs);
            let addresses = cidrs.map(|cidr| cidr.addr).collect();
            self.book.borrow_mut().saved(self.node, &self.on_disk, &addresses);
            self.on_disk = addresses;
        }
    }

    fn answer(&mut self, now: Now) {
        for (request, reply) in self.ipam.take_replies() {
            self.book.borrow_mut().answer(self.node, request, reply, now);
        }
    }
}

impl World<Peer> {
    /// A client of that peer asks.
    pub fn ask(&mut self, node: usize, asked: Asked) {
        let now = self.now;
        self.act(node, |peer, out| {
            let request = peer.book.borrow_mut().ask(node, asked.clone(), now);
            let subnet = peer.config.universe;
            match asked {
                Asked::Allocate(id) => peer.ipam.allocate(out, request, &id, subnet, true),
                Asked::Claim(id, addr) => {
                    let cidr = Cidr { addr, ..subnet };
                    peer.ipam.claim(out, request, &id, cidr, ClaimOptions::default());
                }
            }
        });
    }

    /// A client of that peer gives up all addresses of an ID.
    pub fn free(&mut self, node: usize, id: &str) {
        self.act(node, |peer, _| {
            peer.book.borrow_mut().free(node, id);
            // It may have none.
            let _ = peer.ipam.free_all(id);
        });
    }

    /// The first thing found to be wrong ends the run.
    pub fn check_book(&self, book: &RefCell<Book>) {
        if let Some(wrong) = &book.borrow().wrong {
            self.fail(wrong);
        }
    }

    /// Have all running peers the same ring, and no conflict?
    pub fn rings_agree(&self) -> Result<(), String> {
        let up = self.up();
        let Some((first, others)) = up.split_first() else {
            return Ok(());
        };
        let ring = self.nodes[*first].site.ipam.ring();
        for other in others {
            let theirs = self.nodes[*other].site.ipam.ring();
            if theirs.entries != ring.entries {
                let both = ring.entries.iter().zip(&theirs.entries);
                let differ = both.clone().filter(|(a, b)| a != b).count();
                let example = both.clone().find(|(a, b)| a != b);
                return Err(format!(
                    "the rings of {first} and {other} differ: {} and {} entries, {differ} of them: {example:?}",
                    ring.entries.len(),
                    theirs.entries.len()
                ));
            }
        }
        Ok(())
    }

    /// What was answered is there, in memory as well as on disk; nothing is used at two places.
    pub fn addresses_kept(&self, book: &RefCell<Book>) -> Result<(), String> {
        for node in self.up() {
            let owned = self.nodes[node].site.ipam.owned();
            let owned: BTreeSet<(Address, &str)> = owned
                .iter()
                .flat_map(|(id, cidrs)| cidrs.iter().map(move |cidr| (cidr.addr, id.as_str())))
                .collect();
            for user in book.borrow().of(node) {
                if !owned.contains(&user) {
                    return Err(format!("{node} has lost {:#x} of {}", user.0, user.1));
                }
            }
        }
        Ok(())
    }
}
