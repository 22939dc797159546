//! What upstream servers said, for as long as they allow.
//!
//! An answer is kept under the whole query but its ID and the letter case of the name: who gets it has sent the same
//! flags, size and options as who caused it. So it is passed on byte by byte, with the asker's ID and letter case and
//! what is left of the TTLs.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::wire::{self, HEADER, OPT, Query, Reader, SOA, rcode};

/// Answers kept at most, in bytes.
const MOST_BYTES: usize = 4 << 20;
/// Kept no longer, in seconds: for what changes although its TTL says otherwise.
const LONGEST: u32 = 3600;
/// The same of answers that there is nothing (RFC 2308, 5, allows more).
const LONGEST_NEGATIVE: u32 = 300;
/// What an entry takes beside its bytes, about.
const OVERHEAD: usize = 160;

/// Under what an answer is kept.
pub type Key = Box<[u8]>;

/// Writes the key of a query to `out`, which is emptied first. False: the query has no question.
pub fn put_key(request: &[u8], tcp: bool, out: &mut Vec<u8>) -> bool {
    out.clear();
    let Some(question) = Reader::new(request.get(HEADER..).unwrap_or_default()).question() else {
        return false;
    };
    out.push(tcp.into());
    out.extend(request.get(2..).unwrap_or_default());
    let name = HEADER - 1..HEADER - 1 + question.name.len();
    if let Some(name) = out.get_mut(name) {
        name.make_ascii_lowercase();
    }
    true
}

struct Kept {
    answer: Arc<[u8]>,
    /// Seconds of the cache's clock.
    since: u64,
    until: u64,
    number: u64,
}

/// The cache. Time is whole seconds of a clock that never goes back.
#[derive(Default)]
pub struct Cache {
    kept: HashMap<Key, Kept>,
    /// In the order of arrival; some are gone or have been replaced by others.
    order: VecDeque<(Key, u64)>,
    bytes: usize,
    number: u64,
}

impl Cache {
    /// Keeps an answer, if it may be kept.
    pub fn put(&mut self, key: Key, answer: &Arc<[u8]>, now: u64) {
        let ttl = lifetime(answer);
        if ttl == 0 {
            return;
        }
        self.remove(&key);
        self.number += 1;
        self.bytes += size(&key, answer);
        let kept = Kept {
            answer: answer.clone(),
            since: now,
            until: now + u64::from(ttl),
            number: self.number,
        };
        self.order.push_back((key.clone(), self.number));
        self.kept.insert(key, kept);
        // Those that have gone otherwise stay in the order until they are its first.
        while self.bytes > MOST_BYTES || self.order.len() > 2 * self.kept.len() + 16 {
            let Some((key, number)) = self.order.pop_front() else {
                break;
            };
            if self.kept.get(&key).is_some_and(|kept| kept.number == number) {
                self.remove(&key);
            }
        }
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some(kept) = self.kept.remove(key) {
            self.bytes -= size(key, &kept.answer);
        }
    }

    /// The answer and its age in seconds.
    pub fn get(&mut self, key: &[u8], now: u64) -> Option<(Arc<[u8]>, u32)> {
        let kept = self.kept.get(key)?;
        if now >= kept.until {
            self.remove(key);
            return None;
        }
        let age = u32::try_from(now.saturating_sub(kept.since)).unwrap_or(u32::MAX);
        Some((kept.answer.clone(), age))
    }

    /// Forgets everything: other servers may say something else.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

fn size(key: &[u8], answer: &[u8]) -> usize {
    2 * key.len() + answer.len() + OVERHEAD
}

/// How long an answer may be kept, in seconds.
fn lifetime(answer: &[u8]) -> u32 {
    whole_lifetime(answer).unwrap_or(0)
}

fn whole_lifetime(answer: &[u8]) -> Option<u32> {
    let mut reader = Reader::new(answer);
    let header = reader.header()?;
    let code = header.flags & wire::RCODE;
    if header.flags & wire::TC != 0 || !matches!(code, rcode::OK | rcode::NXDOMAIN) {
        return None;
    }
    reader.question()?;
    let [1, answers, authorities, additionals] = header.counts else {
        return None;
    };
    let negative = answers == 0 || code == rcode::NXDOMAIN;
    let mut shortest = if negative { LONGEST_NEGATIVE } else { LONGEST };
    let mut has_soa = false;
    let all = u32::from(answers) + u32::from(authorities) + u32::from(additionals);
    for _ in 0..all {
        let record = reader.record()?;
        if record.kind == OPT {
            continue;
        }
        shortest = shortest.min(record.ttl);
        if record.kind == SOA {
            has_soa = true;
            let minimum = record
                .data
                .last_chunk()
                .map(|minimum| u32::from_be_bytes(*minimum))?;
            shortest = shortest.min(minimum);
        }
    }
    // Without SOA nobody has said how long there will be nothing (RFC 2308, 5).
    (!negative || has_soa).then_some(shortest)
}

/// Writes an upstream server's answer for the one who sent `request`: its ID, its letter case, and TTLs `age` seconds
/// less.
pub fn put_answer(answer: &[u8], request: &[u8], age: u32, out: &mut Vec<u8>) {
    out.clear();
    out.extend(answer);
    for (to, from) in out.iter_mut().zip(request.iter().take(2)) {
        *to = *from;
    }
    let mut reader = Reader::new(answer);
    let Some(header) = reader.header() else { return };
    let asked = Query::read(request).ok().and_then(|query| query.question);
    if let (1, Some(question), Some(asked)) = (header.counts[0], reader.question(), asked)
        && question.name.eq_ignore_ascii_case(asked.name)
        && let Some(name) = out.get_mut(HEADER..HEADER + asked.name.len())
    {
        name.copy_from_slice(asked.name);
    }
    if age == 0 {
        return;
    }
    while let Some(record) = reader.record() {
        let place = out.get_mut(record.ttl_at..record.ttl_at + 4);
        if let Some(place) = place.filter(|_| record.kind != OPT) {
            place.copy_from_slice(&record.ttl.saturating_sub(age).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::net::Ipv4Addr;

    use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn request(host: &str, id: u16) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(name(host), RecordType::A));
        message.to_vec().unwrap()
    }

    fn response(host: &str, ttls: &[u32], change: impl FnOnce(&mut Message)) -> Arc<[u8]> {
        let mut message = Message::new(7, MessageType::Response, OpCode::Query);
        message.add_query(Query::query(name(host), RecordType::A));
        for ttl in ttls {
            let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
            message.add_answer(Record::from_rdata(name(host), *ttl, data));
        }
        change(&mut message);
        message.to_vec().unwrap().into()
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        let data = SOA::new(name("ns.example."), name("root.example."), 1, 2, 3, 4, minimum);
        Record::from_rdata(name("example."), ttl, RData::SOA(data))
    }

    #[test]
    fn how_long_an_answer_is_kept() {
        let missing = |m: &mut Message| m.metadata.response_code = ResponseCode::NXDomain;
        for (ttls, change, expected) in [
            (
                &[60, 30][..],
                &(|_: &mut Message| {}) as &dyn Fn(&mut Message),
                30,
            ),
            (&[100_000], &|_| {}, 3600),
            (&[0], &|_| {}, 0),
            (&[], &|_| {}, 0),
            (
                &[],
                &|m| {
                    let _ = m.add_authority(soa(500, 20));
                },
                20,
            ),
            (
                &[],
                &|m| {
                    let _ = m.add_authority(soa(10, 20));
                },
                10,
            ),
            (
                &[],
                &|m| {
                    let _ = m.add_authority(soa(5000, 5000));
                },
                300,
            ),
            (
                &[60],
                &|m| {
                    let _ = m.add_authority(soa(500, 20));
                },
                20,
            ),
            (
                &[60],
                &|m| {
                    let _ = m.set_edns(Edns::new());
                },
                60,
            ),
            (&[60], &|m| m.metadata.truncation = true, 0),
            (&[60], &|m| m.metadata.response_code = ResponseCode::ServFail, 0),
            (&[], &missing, 0),
        ] {
            assert_eq!(
                lifetime(&response("a.example.", ttls, |m| change(m))),
                expected,
                "{ttls:?}"
            );
        }
        let missing = response("a.example.", &[], |m| {
            missing(m);
            m.add_authority(soa(60, 60));
        });
        assert_eq!(lifetime(&missing), 60);
    }

    #[test]
    fn passed_on_with_the_askers_id_and_case_and_less_ttl() {
        let mut key = Vec::new();
        assert!(put_key(&request("A.Example.", 1), false, &mut key));
        let mut cache = Cache::default();
        let answer = response("a.example.", &[60, 90], |m| {
            let _ = m.set_edns(Edns::new());
        });
        cache.put(key.as_slice().into(), &answer, 100);

        let asked = request("a.eXAMPLE.", 0x4321);
        let mut other = Vec::new();
        assert!(put_key(&asked, false, &mut other));
        assert_eq!(key, other, "neither ID nor letter case matter");
        assert!(
            put_key(&asked, true, &mut other) && key != other,
            "but the transport does"
        );

        let (kept, age) = cache.get(&key, 159).unwrap();
        let mut out = Vec::new();
        put_answer(&kept, &asked, age, &mut out);
        let message = Message::from_vec(&out).unwrap();
        assert_eq!(message.metadata.id, 0x4321);
        assert_eq!(message.queries[0].name.to_ascii(), "a.eXAMPLE.");
        let ttls: Vec<u32> = message.answers.iter().map(|record| record.ttl).collect();
        assert_eq!(ttls, [1, 31]);
        assert!(message.edns.is_some());
        assert!(cache.get(&key, 160).is_none() && cache.bytes == 0);
    }

    #[test]
    fn never_more_than_its_share_of_memory() {
        let mut cache = Cache::default();
        let mut key = Vec::new();
        for i in 0..60_000 {
            let host = format!("n{}.example.", i % 50_000);
            assert!(put_key(&request(&host, 1), false, &mut key));
            cache.put(key.as_slice().into(), &response(&host, &[60; 4], |_| {}), 0);
            assert!(cache.bytes <= MOST_BYTES && cache.order.len() <= 2 * cache.kept.len() + 16);
        }
        assert!(cache.get(&key, 1).is_some() && cache.kept.len() > 1000);
        let bytes: usize = cache.kept.iter().map(|(key, kept)| size(key, &kept.answer)).sum();
        assert_eq!(cache.bytes, bytes);
        cache.clear();
        assert!(cache.get(&key, 1).is_none());
    }
}
