//! The persistent state: one redb file, `<data-dir>/weave.redb` (control.md 8.1 tells what the original keeps).
//!
//! Each change is one atomic transaction and is on disk when the call returns. Values are JSON. The allocator's
//! state is spread over a key for each ring entry and each owner, so that saving a change costs as much as the
//! change.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, TableDefinition, TableError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::docker::attachment::Attachment;
use crate::ipam::owned::OwnedRecord;
use crate::ipam::paxos::Voter;
use crate::ipam::persist::{Changes, Head, Persisted};
use crate::ipam::ring::{Entry, Ring};
use crate::mesh::name::{PeerName, ShortId};
use crate::net::expose::Exposed;

/// Name of the file in the data directory.
pub const FILE_NAME: &str = "weave.redb";

/// Raised when the values change in a way that older programs would misread.
const VERSION: u32 = 2;
/// The version that had the allocator's state in one value.
const VERSION_ONE_VALUE: u32 = 1;

const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("weave");
const KEY_VERSION: &str = "version";
const KEY_IDENTITY: &str = "identity";
/// The allocator's whole state, in version 1.
const KEY_IPAM: &str = "ipam";
/// All of these begin with [`IPAM_PREFIX`].
const KEY_IPAM_HEAD: &str = "ipam:head";
const KEY_IPAM_VOTER: &str = "ipam:voter";
/// Followed by the token, as eight hexadecimal digits.
const IPAM_ENTRY_PREFIX: &str = "ipam:entry:";
/// Followed by the record's number, as sixteen hexadecimal digits.
const IPAM_OWNER_PREFIX: &str = "ipam:owner:";
const IPAM_PREFIX: &str = "ipam:";
const KEY_DIRECT_PEERS: &str = "direct-peers";
const KEY_EXPOSED: &str = "exposed";
/// Followed by a container's ID.
const ATTACHED_PREFIX: &str = "attached:";
const FLAG_PREFIX: &str = "flag:";

/// A key, and its new value or `None` to remove it.
type Write = (String, Option<Vec<u8>>);

/// The open file. Only one process can have it open.
#[derive(Debug)]
pub struct Store {
    db: Database,
    path: PathBuf,
}

/// Everything in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// Who we are.
    pub identity: Option<Identity>,
    /// The allocator's state.
    pub ipam: Option<Persisted>,
    /// Direct peers as the user wrote them; `None` if never saved.
    pub direct_peers: Option<Vec<String>>,
    /// Addresses of the bridge, in the order in which they were exposed.
    pub exposed: Vec<Exposed>,
    /// Containers that were attached while they ran, by ID.
    pub attached: BTreeMap<String, Attachment>,
    /// Flags by name.
    pub flags: BTreeMap<String, String>,
}

/// Who we are, once chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Peer name.
    pub name: PeerName,
    /// The short ID we last had, to be preferred again.
    #[serde(with = "short_id")]
    pub short_id: Option<ShortId>,
    /// When this name was chosen, Unix seconds; 0 with `instance`.
    #[serde(default)]
    pub since: u64,
    /// Random, drawn with the name; 0: not known, as in files of earlier releases.
    #[serde(default)]
    pub instance: u64,
    /// Why the name is not the one that the machine would give.
    #[serde(default)]
    pub renamed: Option<String>,
}

impl Identity {
    /// A name, and nothing else known yet.
    #[must_use]
    pub fn new(name: PeerName) -> Self {
        Self {
            name,
            short_id: None,
            since: 0,
            instance: 0,
            renamed: None,
        }
    }
}

/// The state cannot be used; the texts say what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("{} is in use by another process: is weave running already? See 'weave-ctl status'; end it with 'weave-ctl stop'", .0.display())]
    Locked(PathBuf),
    /// File or directory permissions.
    #[error("no permission to use {}: run as root, or choose another place with --data-dir", .0.display())]
    Permission(PathBuf),
    /// The content makes no sense.
    #[error("{} is damaged ({}): restore it from a backup, or start anew with 'weave-ctl reset --force'", .0.display(), .1)]
    Corrupt(PathBuf, String),
    /// Written by a newer program.
    #[error("{} has format version {}, this program knows {VERSION}: use the newer weave-ctl that wrote it, or start anew with 'weave-ctl reset --force'", .0.display(), .1)]
    Version(PathBuf, u32),
    /// The disk is full, or fails.
    #[error("cannot use {}: {}", .0.display(), .1)]
    Io(PathBuf, String),
}

impl Store {
    /// Opens the file, or makes a new one (mode 0600, directory 0700).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        create(&path).map_err(|error| from_io(&path, &error))?;
        let mut builder = Database::builder();
        // A damaged file then gives an error; otherwise redb might panic. The file is small.
        builder.set_check_integrity_on_open(true);
        let db = builder
            .create(&path)
            .map_err(|error| explain(&path, error.into()))?;
        let store = Self { db, path };
        store.check_version()?;
        Ok(store)
    }

    fn check_version(&self) -> Result<(), StoreError> {
        match self.get(KEY_VERSION)? {
            Some(VERSION) => Ok(()),
            Some(VERSION_ONE_VALUE) => self.split_ipam(),
            Some(other) => Err(StoreError::Version(self.path.clone(), other)),
            None => self.put(KEY_VERSION, &VERSION),
        }
    }

    /// From version 1: the allocator's state gets its keys, and version 2 is reached, in one transaction.
    fn split_ipam(&self) -> Result<(), StoreError> {
        #[derive(Deserialize)]
        struct OneValue {
            peer: PeerName,
            ring: Ring,
            owned: Vec<OwnedRecord>,
            #[serde(default)]
            voter: Option<Voter>,
        }
        let old: Option<OneValue> = self.get(KEY_IPAM)?;
        let changes = old.map(|old| {
            let OneValue {
                peer,
                ring,
                owned,
                voter,
            } = old;
            let owned = (0..).zip(owned).collect();
            Changes::all(Persisted {
                peer,
                ring,
                owned,
                voter,
            })
        });
        let mut writes = changes
            .as_ref()
            .map_or_else(|| Ok(Vec::new()), |c| self.writes(c))?;
        writes.push((KEY_IPAM.to_owned(), None));
        writes.push((KEY_VERSION.to_owned(), Some(self.json(&VERSION)?)));
        self.commit(&writes, false)
    }

    /// Reads everything.
    pub fn load(&self) -> Result<Stored, StoreError> {
        Ok(Stored {
            identity: self.get(KEY_IDENTITY)?,
            ipam: self.ipam()?,
            direct_peers: self.get(KEY_DIRECT_PEERS)?,
            exposed: self.get(KEY_EXPOSED)?.unwrap_or_default(),
            attached: self.by_name(ATTACHED_PREFIX)?,
            flags: self.by_name(FLAG_PREFIX)?,
        })
    }

    fn ipam(&self) -> Result<Option<Persisted>, StoreError> {
        let head: Option<Head> = self.get(KEY_IPAM_HEAD)?;
        let Some(head) = head else {
            return Ok(None);
        };
        let mut state = Persisted::new(head);
        state.voter = self.get(KEY_IPAM_VOTER)?;
        for (key, raw) in self.all(IPAM_ENTRY_PREFIX)? {
            // In the order of their keys, which is that of their tokens.
            state.ring.entries.push(self.parse::<Entry>(&key, &raw)?);
        }
        for (key, raw) in self.all(IPAM_OWNER_PREFIX)? {
            let number = u64::from_str_radix(key.trim_start_matches(IPAM_OWNER_PREFIX), 16);
            let number = number.map_err(|error| self.corrupt(&key, &error))?;
            state.owned.insert(number, self.parse(&key, &raw)?);
        }
        Ok(Some(state))
    }

    /// Saves what has changed of the allocator's state, all of it or nothing.
    pub fn save_ipam(&self, changes: &Changes) -> Result<(), StoreError> {
        self.commit(&self.writes(changes)?, changes.anew)
    }

    fn writes(&self, changes: &Changes) -> Result<Vec<Write>, StoreError> {
        let mut writes = Vec::with_capacity(2 + changes.entries.len() + changes.owned.len());
        if let Some(head) = &changes.head {
            writes.push((KEY_IPAM_HEAD.to_owned(), Some(self.json(head)?)));
        }
        if let Some(voter) = &changes.voter {
            let value = voter.as_ref().map(|v| self.json(v)).transpose()?;
            writes.push((KEY_IPAM_VOTER.to_owned(), value));
        }
        for (token, entry) in &changes.entries {
            let value = entry.map(|e| self.json(&e)).transpose()?;
            writes.push((format!("{IPAM_ENTRY_PREFIX}{token:08x}"), value));
        }
        for (number, record) in &changes.owned {
            let value = record.as_ref().map(|r| self.json(r)).transpose()?;
            writes.push((format!("{IPAM_OWNER_PREFIX}{number:016x}"), value));
        }
        Ok(writes)
    }

    /// Saves the direct peers as the user wrote them.
    pub fn save_direct_peers(&self, peers: &[String]) -> Result<(), StoreError> {
        self.put(KEY_DIRECT_PEERS, peers)
    }

    /// Saves the addresses of the bridge.
    pub fn save_exposed(&self, exposed: &[Exposed]) -> Result<(), StoreError> {
        self.put(KEY_EXPOSED, exposed)
    }

    /// Saves how a container was attached; `None` forgets it.
    pub fn save_attachment(&self, id: &str, attachment: Option<&Attachment>) -> Result<(), StoreError> {
        let value = attachment.map(|attachment| self.json(attachment)).transpose()?;
        self.commit(&[(format!("{ATTACHED_PREFIX}{id}"), value)], false)
    }

    /// Saves who we are.
    pub fn save_identity(&self, identity: &Identity) -> Result<(), StoreError> {
        self.put(KEY_IDENTITY, identity)
    }

    /// Sets a flag.
    pub fn set_flag(&self, name: &str, value: &str) -> Result<(), StoreError> {
        self.put(&format!("{FLAG_PREFIX}{name}"), value)
    }

    /// A flag's value.
    pub fn flag(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.get(&format!("{FLAG_PREFIX}{name}"))
    }

    fn by_name<T: DeserializeOwned>(&self, prefix: &str) -> Result<BTreeMap<String, T>, StoreError> {
        let parse = |(key, value): (String, Vec<u8>)| {
            let name = key.trim_start_matches(prefix).to_owned();
            Ok((name, self.parse(&key, &value)?))
        };
        self.all(prefix)?.into_iter().map(parse).collect()
    }

    /// All keys with that prefix, ascending, and their values.
    fn all(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let read = || -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
            let table = match self.db.begin_read()?.open_table(TABLE) {
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                other => other?,
            };
            let mut found = Vec::new();
            for item in table.range(prefix..)? {
                let (key, value) = item?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                found.push((key.value().to_owned(), value.value().to_vec()));
            }
            Ok(found)
        };
        read().map_err(|error| self.failed(error))
    }

    fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            match self.db.begin_read()?.open_table(TABLE) {
                Err(TableError::TableDoesNotExist(_)) => Ok(None),
                table => Ok(table?.get(key)?.map(|value| value.value().to_vec())),
            }
        };
        let raw = read().map_err(|error| self.failed(error))?;
        raw.map(|raw| self.parse(key, &raw)).transpose()
    }

    fn parse<T: DeserializeOwned>(&self, key: &str, raw: &[u8]) -> Result<T, StoreError> {
        serde_json::from_slice(raw).map_err(|error| self.corrupt(key, &error))
    }

    fn corrupt(&self, key: &str, error: &dyn std::error::Error) -> StoreError {
        StoreError::Corrupt(self.path.clone(), format!("value '{key}': {error}"))
    }

    fn json<T: Serialize + ?Sized>(&self, value: &T) -> Result<Vec<u8>, StoreError> {
        let unfit = |error: serde_json::Error| StoreError::Io(self.path.clone(), error.to_string());
        serde_json::to_vec(value).map_err(unfit)
    }

    fn put<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<(), StoreError> {
        self.commit(&[(key.to_owned(), Some(self.json(value)?))], false)
    }

    /// One transaction; on disk when this returns. `anew`: without what was there of IPAM.
    fn commit(&self, writes: &[Write], anew: bool) -> Result<(), StoreError> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.db.begin_write()?;
            {
                let mut table = transaction.open_table(TABLE)?;
                if anew {
                    table.retain_in(IPAM_PREFIX.., |key, _| !key.starts_with(IPAM_PREFIX))?;
                }
                for (key, value) in writes {
                    match value {
                        Some(value) => table.insert(key.as_str(), value.as_slice())?,
                        None => table.remove(key.as_str())?,
                    };
                }
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|error| self.failed(error))
    }

    fn failed(&self, error: redb::Error) -> StoreError {
        explain(&self.path, error)
    }
}

/// So that permissions are right from the start; redb fills an empty file.
fn create(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map(drop)
}

fn from_io(path: &Path, error: &io::Error) -> StoreError {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            StoreError::Permission(path.to_owned())
        }
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
            StoreError::Corrupt(path.to_owned(), error.to_string())
        }
        _ => StoreError::Io(path.to_owned(), error.to_string()),
    }
}

fn explain(path: &Path, error: redb::Error) -> StoreError {
    use redb::Error as E;
    match error {
        E::DatabaseAlreadyOpen | E::LockProtocolMismatch => StoreError::Locked(path.to_owned()),
        E::Io(error) => from_io(path, &error),
        E::PreviousIo | E::DatabaseClosed | E::ValueTooLarge(_) | E::LockPoisoned(_) => {
            StoreError::Io(path.to_owned(), error.to_string())
        }
        // What remains says that the file does not hold what a store holds.
        other => StoreError::Corrupt(path.to_owned(), other.to_string()),
    }
}

mod short_id {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::mesh::name::ShortId;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "signature asked for by serde")]
    pub fn serialize<S: Serializer>(id: &Option<ShortId>, serializer: S) -> Result<S::Ok, S::Error> {
        id.map(ShortId::get).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ShortId>, D::Error> {
        let number = Option::<u64>::deserialize(deserializer)?;
        Ok(number.and_then(ShortId::new))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::docker::attachment::Kept;
    use crate::ipam::address::{Cidr, Range};

    fn name(number: u64) -> PeerName {
        PeerName::from_u64(number).unwrap()
    }

    fn state(addresses: u32) -> Persisted {
        let mut ring = Ring::new(
            Range {
                start: 0x0a20_0000,
                end: 0x0a30_0000,
            },
            name(1),
        );
        ring.divide(vec![name(1), name(0x8a3e_3e3e_3e3e)]);
        let cidr = |n| Cidr {
            addr: 0x0a20_0001 + n,
            prefix_len: 12,
        };
        let record = OwnedRecord {
            id: "weave:expose".to_owned(),
            is_container: false,
            cidrs: (0..addresses).map(cidr).collect(),
        };
        Persisted {
            peer: name(1),
            ring,
            owned: BTreeMap::from([(7, record)]),
            voter: None,
        }
    }

    /// What the program of format version 1 wrote.
    fn write_version_1(path: &Path, values: &[(&str, &str)]) {
        let db = Database::create(path).unwrap();
        let transaction = db.begin_write().unwrap();
        {
            let mut table = transaction.open_table(TABLE).unwrap();
            table.insert("version", b"1".as_slice()).unwrap();
            for (key, value) in values {
                table.insert(*key, value.as_bytes()).unwrap();
            }
        }
        transaction.commit().unwrap();
    }

    fn fill(store: &Store) -> Stored {
        let identity = Identity {
            short_id: ShortId::new(77),
            since: u64::MAX,
            instance: u64::MAX,
            renamed: Some("why".to_owned()),
            ..Identity::new(name(1))
        };
        let peers = vec!["host1".to_owned(), "10.0.0.1:6783".to_owned()];
        store.save_identity(&identity).unwrap();
        store.save_ipam(&Changes::all(state(3))).unwrap();
        store.save_direct_peers(&peers).unwrap();
        store.set_flag("peer-reclaim", "ok").unwrap();
        let exposed = vec![Exposed {
            cidr: "10.32.0.5/12".parse().unwrap(),
            masquerade: false,
        }];
        store.save_exposed(&exposed).unwrap();
        let attachment = Attachment {
            addresses: vec![Kept::parse("net:10.32.0.9/12").unwrap()],
            dns: true,
            ..Attachment::default()
        };
        store.save_attachment("c1", Some(&attachment)).unwrap();
        store.save_attachment("c2", Some(&attachment)).unwrap();
        store.save_attachment("c2", None).unwrap();
        Stored {
            attached: BTreeMap::from([("c1".to_owned(), attachment)]),
            exposed,
            identity: Some(identity),
            ipam: Some(state(3)),
            direct_peers: Some(peers),
            flags: BTreeMap::from([("peer-reclaim".to_owned(), "ok".to_owned())]),
        }
    }

    #[test]
    fn what_is_saved_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/weave.redb");
        let store = Store::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), Stored::default());
        let filled = fill(&store);
        assert_eq!(store.load().unwrap(), filled);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.load().unwrap(), filled);
        assert_eq!(store.flag("peer-reclaim").unwrap().as_deref(), Some("ok"));
        assert_eq!(store.flag("other").unwrap(), None);
    }

    #[test]
    fn a_killed_process_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("a.redb"), dir.path().join("b.redb"));
        let store = Store::open(&path).unwrap();
        for n in 0..5 {
            store.save_ipam(&Changes::all(state(n))).unwrap();
            // The file as it is on disk at this moment, without the store having been closed.
            std::fs::copy(&path, &copy).unwrap();
            let found = Store::open(&copy).unwrap().load().unwrap();
            assert_eq!(found.ipam, Some(state(n)));
        }
    }

    #[test]
    fn a_second_process_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let _first = Store::open(&path).unwrap();
        let error = Store::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Locked(_)), "{error}");
        assert!(error.to_string().contains("weave-ctl stop"));
    }

    #[test]
    fn damage_is_reported_and_never_believed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("a.redb"), dir.path().join("b.redb"));
        let filled = fill(&Store::open(&path).unwrap());
        let good = std::fs::read(&path).unwrap();
        // Damage here and there in what is in use.
        let used: Vec<usize> = (0..good.len()).filter(|i| good[*i] != 0).collect();
        let used = used.iter().copied().step_by(used.len() / 40);
        let mut refused = 0;
        for at in used {
            let mut bad = good.clone();
            bad[at] ^= 0x15;
            std::fs::write(&copy, &bad).unwrap();
            match Store::open(&copy).and_then(|s| s.load()) {
                Ok(found) => assert_eq!(found, filled, "byte {at}"),
                Err(StoreError::Corrupt(file, _)) => {
                    assert_eq!(file, copy);
                    refused += 1;
                }
                Err(StoreError::Version(..)) => refused += 1,
                Err(other) => panic!("byte {at}: {other}"),
            }
        }
        assert!(refused > 0);

        std::fs::write(&copy, b"this is no database, but somebody's notes").unwrap();
        let error = Store::open(&copy).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt(..)), "{error}");
        assert!(error.to_string().contains("weave-ctl reset"));
        assert!(
            std::fs::read(&copy).unwrap().starts_with(b"this is"),
            "the file is left alone"
        );
    }

    #[test]
    fn values_that_make_no_sense_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let store = Store::open(&path).unwrap();
        let voter = Some(Voter {
            uid: 5,
            claims: Default::default(),
        });
        store
            .save_ipam(&Changes::all(Persisted { voter, ..state(1) }))
            .unwrap();
        for key in [
            KEY_IPAM_VOTER,
            "ipam:entry:0a200000",
            "ipam:owner:0000000000000007",
            KEY_IPAM_HEAD,
        ] {
            let before: Option<serde_json::Value> = store.get(key).unwrap();
            store.put(key, "nonsense").unwrap();
            let error = store.load().unwrap_err().to_string();
            assert!(
                error.contains(FILE_NAME) && error.contains(&format!("'{key}'")),
                "{error}"
            );
            store.put(key, &before).unwrap();
            store.load().unwrap();
        }
        store.put(KEY_VERSION, &(VERSION + 1)).unwrap();
        drop(store);
        assert!(matches!(Store::open(&path), Err(StoreError::Version(_, 3))));
    }

    #[test]
    fn a_directory_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let error = Store::open(dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::Io(..)), "{error}");
    }

    #[test]
    fn changes_add_up() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join(FILE_NAME)).unwrap();
        fill(&store);
        let before = store.load().unwrap();
        let entry = state(3).ring.entries[1];
        let changed = Entry { version: 9, ..entry };
        let added = OwnedRecord {
            id: "c2".to_owned(),
            ..state(1).owned[&7].clone()
        };
        store
            .save_ipam(&Changes {
                entries: BTreeMap::from([(entry.token, Some(changed))]),
                owned: BTreeMap::from([(300, Some(added.clone())), (7, None)]),
                voter: Some(Some(Voter {
                    uid: 5,
                    claims: Default::default(),
                })),
                ..Changes::default()
            })
            .unwrap();
        let after = store.load().unwrap();
        let ipam = after.ipam.unwrap();
        assert_eq!(ipam.owned, BTreeMap::from([(300, added)]));
        assert_eq!(ipam.ring.entries, [state(3).ring.entries[0], changed]);
        assert_eq!(ipam.ring.seeds, state(3).ring.seeds);
        assert_eq!(ipam.voter.unwrap().uid, 5);
        // Another peer's state goes, all of it, and nothing else.
        let mut other = state(1);
        other.peer = name(2);
        other.ring = Ring::new(other.ring.range, name(2));
        other.owned.clear();
        store.save_ipam(&Changes::all(other.clone())).unwrap();
        let after = store.load().unwrap();
        assert_eq!(after.ipam, Some(other));
        assert_eq!((after.flags, after.identity), (before.flags, before.identity));
    }

    #[test]
    fn a_file_of_format_version_1_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let identity = r#"{"name":"00:00:00:00:00:01","short_id":77}"#;
        let ipam = r#"{"peer":"00:00:00:00:00:01","ring":{"range":{"start":169869312,"end":170917888},
            "peer":"00:00:00:00:00:01","entries":[
              {"token":169869312,"peer":"00:00:00:00:00:01","version":3,"free":524285},
              {"token":170393600,"peer":"8a:3e:3e:3e:3e:3e","version":0,"free":524288}],
            "seeds":["00:00:00:00:00:01","8a:3e:3e:3e:3e:3e"]},
            "owned":[{"id":"weave:expose","is_container":false,"cidrs":["10.32.0.1/12"]},
              {"id":"0123","is_container":true,"cidrs":["10.32.0.3/12","10.32.0.2/12"]}],
            "voter":{"uid":12,"claims":{"promise":null,"accepted":null}}}"#;
        let peers = r#"["host1"]"#;
        write_version_1(
            &path,
            &[
                ("identity", identity),
                ("ipam", ipam),
                ("direct-peers", peers),
                ("flag:f", "\"v\""),
            ],
        );
        // Twice: at the second opening it is an ordinary file of today.
        for _ in 0..2 {
            let store = Store::open(&path).unwrap();
            assert_eq!(store.get::<u32>(KEY_VERSION).unwrap(), Some(VERSION));
            assert_eq!(store.get::<serde_json::Value>(KEY_IPAM).unwrap(), None);
            let found = store.load().unwrap();
            assert_eq!(found.identity.unwrap().short_id, ShortId::new(77));
            assert_eq!(found.direct_peers.unwrap(), ["host1"]);
            assert_eq!(found.flags["f"], "v");
            let ipam = found.ipam.unwrap();
            assert_eq!(ipam.peer, name(1));
            assert_eq!(ipam.ring.seeds, [name(1), name(0x8a3e_3e3e_3e3e)]);
            assert_eq!(ipam.ring.range, state(0).ring.range);
            assert_eq!(ipam.ring.entries[0].free, 524_285);
            assert_eq!(ipam.ring.entries[1].peer, name(0x8a3e_3e3e_3e3e));
            assert_eq!(ipam.voter.unwrap().uid, 12);
            let owned: Vec<(&str, bool, usize)> = ipam
                .owned
                .values()
                .map(|r| (r.id.as_str(), r.is_container, r.cidrs.len()))
                .collect();
            assert_eq!(owned, [("weave:expose", false, 1), ("0123", true, 2)]);
            assert_eq!(ipam.owned[&1].cidrs[0].addr, 0x0a20_0003);
        }
    }

    #[test]
    fn a_file_of_format_version_1_without_allocator() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        write_version_1(&path, &[]);
        assert_eq!(Store::open(&path).unwrap().load().unwrap(), Stored::default());
    }
}
