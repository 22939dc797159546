//! From a query to its answer, as far as we can give it ourselves (control.md 2.4).

use std::net::Ipv4Addr;

use rand::Rng;
use rand::seq::SliceRandom as _;

use super::wire::{self, Header, Query, Question, rcode};
use super::zone::{Answer, MAX_NAME, Zone, wire as wire_name};

/// The largest answer over UDP to an asker who has not said what it takes (RFC 1035, 2.3.4), in bytes.
const PLAIN_UDP: usize = 512;
/// The largest answer over UDP however much the asker takes: a small query cannot ask for much more.
const LARGEST_UDP: usize = 4096;
/// The largest message over TCP.
const LARGEST_TCP: usize = u16::MAX as usize;
/// Of a record whose owner is the question's name: pointer, type, class, TTL, length.
const RECORD_HEAD: usize = 12;
/// Where names of addresses are.
const REVERSE: &[u8] = b"\x07in-addr\x04arpa\0";

/// What questions are answered by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    domain: Box<[u8]>,
    ttl: u32,
}

/// No domain: empty, or with an empty or too long label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid DNS domain \"{0}\"")]
pub struct InvalidDomain(pub String);

impl Local {
    /// `domain` with or without trailing dot, in any letter case; `ttl` in seconds.
    pub fn new(domain: &str, ttl: u32) -> Result<Self, InvalidDomain> {
        let name = wire_name(domain).filter(|name| name.len() > 1);
        let mut name = name.ok_or_else(|| InvalidDomain(domain.to_owned()))?;
        name.make_ascii_lowercase();
        Ok(Self { domain: name, ttl })
    }
}

/// Who asks, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Over TCP.
    pub tcp: bool,
    /// Network and mask of the asker on our bridge, if it is there.
    pub subnet: Option<(Ipv4Addr, Ipv4Addr)>,
}

impl Asker {
    fn near(&self, addr: Ipv4Addr) -> bool {
        self.subnet.is_some_and(|(network, mask)| {
            u32::from(addr) & u32::from(mask) == u32::from(network) & u32::from(mask)
        })
    }

    /// The largest answer, in bytes.
    fn limit(&self, query: &Query<'_>) -> usize {
        match query.udp_size {
            _ if self.tcp => LARGEST_TCP,
            Some(size) => usize::from(size).clamp(PLAIN_UDP, LARGEST_UDP),
            None => PLAIN_UDP,
        }
    }
}

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answered: a name of ours (also when it has no records of that type).
    Local,
    /// Answered: there is no such name of ours.
    Missing,
    /// Answered: the name of an address of ours.
    Reverse,
    /// Answered: the query makes no sense.
    Malformed,
    /// Others know.
    Forward,
    /// Nothing to say: no query at all.
    Ignore,
}

/// Answers questions; keeps its working space from one to the next.
#[derive(Debug)]
pub struct Answerer<R> {
    local: Local,
    rng: R,
    chosen: Vec<Answer>,
}

impl<R: Rng> Answerer<R> {
    /// `rng` only shuffles: nobody gains by foreseeing it.
    pub fn new(local: Local, rng: R) -> Self {
        Self {
            local,
            rng,
            chosen: Vec::new(),
        }
    }

    /// Writes the answer to `out`, which is emptied first. Nothing is written for `Forward` and `Ignore`.
    pub fn answer(&mut self, request: &[u8], zone: &Zone, asker: Asker, out: &mut Vec<u8>) -> Verdict {
        out.clear();
        let query = match Query::read(request) {
            Ok(query) if query.header.flags & wire::QR == 0 => query,
            Err(Some(header)) if header.flags & wire::QR == 0 => {
                put_head(out, header, None, rcode::FORMERR);
                return Verdict::Malformed;
            }
            _ => return Verdict::Ignore,
        };
        let Some(question) = query.question else {
            put_head(out, query.header, None, rcode::FORMERR);
            return Verdict::Malformed;
        };
        let mut buffer = [0; MAX_NAME];
        let mut length = question.name.len();
        for (to, from) in buffer.iter_mut().zip(question.name) {
            *to = from.to_ascii_lowercase();
        }
        let mut name = buffer.get(..length).unwrap_or_default();
        // One label and the root: a bare name, which is ours.
        let bare = length > 1
            && name
                .first()
                .is_some_and(|label| usize::from(*label) + 2 == length);
        let mut ours = ends_with(name, &self.local.domain);
        if bare && !ours {
            let end = length - 1 + self.local.domain.len();
            let Some(rest) = buffer.get_mut(length - 1..end) else {
                return missing(&query, question, out);
            };
            rest.copy_from_slice(&self.local.domain);
            length = end;
            name = buffer.get(..length).unwrap_or_default();
            ours = true;
        }
        if ours {
            return self.local(&query, question, name, zone, asker, out);
        }
        if ends_with(name, REVERSE) {
            return self.reverse(&query, question, name, zone, out);
        }
        if query.header.flags & wire::OPCODE != 0 {
            put_head(out, query.header, Some(question), rcode::NOTIMP);
            return Verdict::Malformed;
        }
        Verdict::Forward
    }

    fn local(
        &mut self,
        query: &Query<'_>,
        question: Question<'_>,
        name: &[u8],
        zone: &Zone,
        asker: Asker,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let answers = zone.answers(name);
        if answers.is_empty() || query.header.counts[0] != 1 {
            return missing(query, question, out);
        }
        put_head(out, query.header, Some(question), rcode::OK);
        let mut flags = wire::AA;
        if question.kind == wire::A {
            self.choose(answers, asker);
            let room = asker.limit(query).saturating_sub(out.len());
            let fit = self.chosen.len().min(room / (RECORD_HEAD + 4)).max(1);
            if fit < self.chosen.len() {
                flags |= wire::TC;
            }
            for answer in self.chosen.iter().take(fit) {
                put_record(out, wire::A, self.local.ttl, &answer.addr.octets());
            }
            amend(out, flags, fit);
        } else {
            amend(out, flags, 0);
        }
        Verdict::Local
    }

    /// Addresses that have a route, if there are any; of these those on the asker's own subnet first, then those of
    /// this host, and else in a random order, afresh for each question.
    fn choose(&mut self, answers: &[Answer], asker: Asker) {
        let some_reachable = answers.iter().any(|a| a.reachable);
        let useful = answers.iter().filter(|a| a.reachable || !some_reachable);
        self.chosen.clear();
        self.chosen.extend(useful);
        if self.chosen.len() > 1 {
            self.chosen.shuffle(&mut self.rng);
            self.chosen.sort_by_key(|a| (!asker.near(a.addr), !a.local));
        }
    }

    fn reverse(
        &mut self,
        query: &Query<'_>,
        question: Question<'_>,
        name: &[u8],
        zone: &Zone,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let address = address(name).filter(|_| query.header.counts[0] == 1 && question.kind == wire::PTR);
        let Some(address) = address else {
            return missing(query, question, out);
        };
        let Some(hostname) = zone.hostname(address) else {
            return Verdict::Forward;
        };
        put_head(out, query.header, Some(question), rcode::OK);
        put_record(out, wire::PTR, self.local.ttl, hostname);
        amend(out, wire::AA, 1);
        Verdict::Reverse
    }
}

fn missing(query: &Query<'_>, question: Question<'_>, out: &mut Vec<u8>) -> Verdict {
    put_head(out, query.header, Some(question), rcode::NXDOMAIN);
    Verdict::Missing
}

/// Says that we could not find out.
pub fn failure(request: &[u8], out: &mut Vec<u8>) {
    out.clear();
    if let Ok(query) = Query::read(request) {
        put_head(out, query.header, query.question, rcode::SERVFAIL);
    }
}

/// Whether a lower-cased name is the domain or below it.
fn ends_with(name: &[u8], domain: &[u8]) -> bool {
    let Some(start) = name.len().checked_sub(domain.len()) else {
        return false;
    };
    // Only where a label begins: the domain's bytes may also be inside one.
    name.get(start..) == Some(domain)
        && wire::labels(name).is_some_and(|mut starts| starts.any(|at| at == start))
}

/// The address that a name below `in-addr.arpa` stands for.
fn address(name: &[u8]) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut rest = name.strip_suffix(REVERSE)?;
    for octet in octets.iter_mut().rev() {
        let (length, tail) = rest.split_first()?;
        let (digits, tail) = tail.split_at_checked(usize::from(*length))?;
        let leading_zero = digits.len() > 1 && digits.starts_with(b"0");
        if leading_zero || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        *octet = std::str::from_utf8(digits).ok()?.parse().ok()?;
        rest = tail;
    }
    rest.is_empty().then(|| octets.into())
}

/// The header of a response without records, and the question.
fn put_head(out: &mut Vec<u8>, asked: Header, question: Option<Question<'_>>, rcode: u16) {
    let copied = asked.flags & (wire::OPCODE | wire::RD | wire::CD);
    let header = Header {
        id: asked.id,
        flags: wire::QR | wire::RA | copied | rcode,
        counts: [question.is_some().into(), 0, 0, 0],
    };
    wire::put_header(out, header);
    out.extend(question.map_or(&[][..], |question| question.bytes));
}

/// Adds flags and the number of answers to a response.
fn amend(out: &mut [u8], flags: u16, answers: usize) {
    let [high, low] = flags.to_be_bytes();
    let answers = u16::try_from(answers).unwrap_or(u16::MAX).to_be_bytes();
    if let [_, _, first, second, _, _, count @ ..] = out {
        *first |= high;
        *second |= low;
        count.iter_mut().zip(answers).for_each(|(to, from)| *to = from);
    }
}

/// A record of the name that was asked for.
fn put_record(out: &mut Vec<u8>, kind: u16, ttl: u32, data: &[u8]) {
    /// Points to the question's name.
    const OWNER: [u8; 2] = [0xc0, wire::HEADER as u8];
    out.extend(OWNER);
    out.extend(kind.to_be_bytes());
    out.extend(wire::IN.to_be_bytes());
    out.extend(ttl.to_be_bytes());
    // Addresses and names are far below 65,536 bytes.
    out.extend((data.len() as u16).to_be_bytes());
    out.extend(data);
}
