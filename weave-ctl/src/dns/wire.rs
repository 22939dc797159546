//! DNS messages (RFC 1035, 4; RFC 6891), as far as a server that passes most of them on has to read them.
//!
//! Messages are read in place and passed on byte by byte, so that record types that we have never heard of, options
//! and flags arrive as they were sent. Nothing here panics or reads past the end, whatever the bytes are.

use super::zone::{MAX_LABEL, MAX_NAME};

/// Bytes of the header; the first question follows.
pub const HEADER: usize = 12;

/// Type A.
pub const A: u16 = 1;
/// Type SOA.
pub const SOA: u16 = 6;
/// Type PTR.
pub const PTR: u16 = 12;
/// Type OPT (EDNS), not a record but more header.
pub const OPT: u16 = 41;
/// Class IN.
pub const IN: u16 = 1;

/// Response.
pub const QR: u16 = 0x8000;
/// Kind of query.
pub const OPCODE: u16 = 0x7800;
/// Authoritative answer.
pub const AA: u16 = 0x0400;
/// Truncated.
pub const TC: u16 = 0x0200;
/// Recursion desired.
pub const RD: u16 = 0x0100;
/// Recursion available.
pub const RA: u16 = 0x0080;
/// Checking disabled.
pub const CD: u16 = 0x0010;
/// Response code.
pub const RCODE: u16 = 0x000f;

/// Response codes (RFC 1035, 4.1.1).
pub mod rcode {
    /// No error.
    pub const OK: u16 = 0;
    /// The message was not understood.
    pub const FORMERR: u16 = 1;
    /// The server has failed.
    pub const SERVFAIL: u16 = 2;
    /// There is no such name.
    pub const NXDOMAIN: u16 = 3;
    /// Not a kind of query that is answered here.
    pub const NOTIMP: u16 = 4;
    /// The server does not want to answer.
    pub const REFUSED: u16 = 5;
}

/// The first twelve bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Chosen by who asks, repeated in the answer.
    pub id: u16,
    /// The bits above.
    pub flags: u16,
    /// Number of questions, and of records in the sections answer, authority and additional.
    pub counts: [u16; 4],
}

/// The first question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    /// In wire format, letter case as sent.
    pub name: &'a [u8],
    /// Type of the records wanted.
    pub kind: u16,
    /// The question as it is in the message.
    pub bytes: &'a [u8],
}

/// A record, as far as it matters to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its type.
    pub kind: u16,
    /// Its class; of OPT the size of UDP messages that the sender takes, in bytes.
    pub class: u16,
    /// How long it may be kept, in seconds.
    pub ttl: u32,
    /// Where in the message the TTL is.
    pub ttl_at: usize,
    /// Its data; names in it may be compressed.
    pub data: &'a [u8],
}

/// Reads a message from front to back. `None` is: there is no more, or it makes no sense.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// At the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..)?.get(..count)?;
        self.at += count;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    /// The header.
    pub fn header(&mut self) -> Option<Header> {
        let (id, flags) = (self.u16()?, self.u16()?);
        let counts = [self.u16()?, self.u16()?, self.u16()?, self.u16()?];
        Some(Header { id, flags, counts })
    }

    /// Passes over a name, which may end in a pointer.
    fn skip_name(&mut self) -> Option<()> {
        loop {
            match usize::from(*self.take(1)?.first()?) {
                0 => return Some(()),
                length @ 1..=MAX_LABEL => self.take(length)?,
                0xc0.. => return self.take(1).map(drop),
                _ => return None,
            };
        }
    }

    /// A question with its whole name: nobody compresses the first one, as there is nothing to point to.
    pub fn question(&mut self) -> Option<Question<'a>> {
        let start = self.at;
        self.skip_name()?;
        let name = self.bytes.get(start..self.at)?;
        if name.len() > MAX_NAME {
            return None;
        }
        labels(name).is_some().then_some(())?;
        let kind = self.u16()?;
        self.u16()?;
        let bytes = self.bytes.get(start..self.at)?;
        Some(Question { name, kind, bytes })
    }

    /// A further question, which nobody answers.
    pub fn skip_question(&mut self) -> Option<()> {
        self.skip_name()?;
        self.take(4).map(drop)
    }

    /// A record of any section.
    pub fn record(&mut self) -> Option<Record<'a>> {
        self.skip_name()?;
        let (kind, class) = (self.u16()?, self.u16()?);
        let ttl_at = self.at;
        let ttl = self.u32()?;
        let length = self.u16()?;
        let data = self.take(length.into())?;
        Some(Record {
            kind,
            class,
            ttl,
            ttl_at,
            data,
        })
    }
}

/// Where the labels of an uncompressed name start, the first one at 0; `None` if it is none.
pub fn labels(name: &[u8]) -> Option<impl Iterator<Item = usize> + '_> {
    let mut at = 0;
    loop {
        match usize::from(*name.get(at)?) {
            0 if at + 1 == name.len() => break,
            length @ 1..=MAX_LABEL => at += length + 1,
            _ => return None,
        }
    }
    let mut at = 0;
    Some(std::iter::from_fn(move || {
        let length = usize::from(*name.get(at)?);
        let start = at;
        at += length + 1;
        (length != 0).then_some(start)
    }))
}

/// A query.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Its header.
    pub header: Header,
    /// The first question; there may be none.
    pub question: Option<Question<'a>>,
    /// How large a UDP message the asker takes by its OPT, in bytes.
    pub udp_size: Option<u16>,
}

impl<'a> Query<'a> {
    /// Reads a query. `Err` has the header, if there was one.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Option<Header>> {
        let mut reader = Reader::new(bytes);
        let header = reader.header().ok_or(None)?;
        Self::body(header, &mut reader).ok_or(Some(header))
    }

    fn body(header: Header, reader: &mut Reader<'a>) -> Option<Self> {
        let [questions, records @ ..] = header.counts;
        let question = match questions {
            0 => None,
            _ => Some(reader.question()?),
        };
        for _ in 1..questions {
            reader.skip_question()?;
        }
        let mut udp_size = None;
        for _ in 0..records.iter().map(|count| u32::from(*count)).sum() {
            let record = reader.record()?;
            if record.kind == OPT {
                udp_size = Some(record.class);
            }
        }
        Some(Self {
            header,
            question,
            udp_size,
        })
    }
}

/// Writes a header at the start of an empty message.
pub fn put_header(out: &mut Vec<u8>, header: Header) {
    for number in [header.id, header.flags].iter().chain(&header.counts) {
        out.extend(number.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn labels_of_a_name() {
        let starts = |name: &[u8]| labels(name).map(Iterator::collect::<Vec<_>>);
        assert_eq!(starts(b"\x01a\x02bc\0"), Some(vec![0, 2]));
        assert_eq!(starts(b"\0"), Some(vec![]));
        for bad in [
            &b""[..],
            b"\x01a",
            b"\x01a\0\0",
            b"\x02a\0",
            b"\xc0\x0c",
            b"\x41a\0",
        ] {
            assert_eq!(starts(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_question_is_not_compressed() {
        for (bytes, good) in [
            (&b"\x01a\0\0\x01\0\x01"[..], true),
            (b"\0\0\x01\0\x01", true),
            (b"\x01a\xc0\x0c\0\x01\0\x01", false),
            (b"\xc0\x0c\0\x01\0\x01", false),
            (b"\x01a\0\0\x01\0", false),
        ] {
            assert_eq!(Reader::new(bytes).question().is_some(), good, "{bytes:?}");
        }
        let long = [[b"\x3f".as_slice(), &[b'a'; 63]].concat().repeat(4), vec![0; 5]].concat();
        assert_eq!(Reader::new(&long).question(), None, "257 bytes");
    }
}
