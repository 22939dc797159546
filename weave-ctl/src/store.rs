//! The persistent state: one redb file, `<data-dir>/weave.redb` (control.md 8.1 tells what the original keeps).
//!
//! Each change is one atomic transaction and is on disk when the call returns. Values are JSON.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, TableDefinition, TableError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ipam::allocator::Persisted;
use crate::mesh::name::{PeerName, ShortId};

/// Name of the file in the data directory.
pub const FILE_NAME: &str = "weave.redb";

/// Raised when the values change in a way that older programs would misread.
const VERSION: u32 = 1;

const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("weave");
const KEY_VERSION: &str = "version";
const KEY_IDENTITY: &str = "identity";
const KEY_IPAM: &str = "ipam";
const KEY_DIRECT_PEERS: &str = "direct-peers";
const FLAG_PREFIX: &str = "flag:";

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
            Some(other) => Err(StoreError::Version(self.path.clone(), other)),
            None => self.put(KEY_VERSION, &VERSION),
        }
    }

    /// Reads everything.
    pub fn load(&self) -> Result<Stored, StoreError> {
        Ok(Stored {
            identity: self.get(KEY_IDENTITY)?,
            ipam: self.get(KEY_IPAM)?,
            direct_peers: self.get(KEY_DIRECT_PEERS)?,
            flags: self.flags()?,
        })
    }

    /// Saves the allocator's state: name, ring and owners in one.
    pub fn save_ipam(&self, state: &Persisted) -> Result<(), StoreError> {
        self.put(KEY_IPAM, state)
    }

    /// Saves the direct peers as the user wrote them.
    pub fn save_direct_peers(&self, peers: &[String]) -> Result<(), StoreError> {
        self.put(KEY_DIRECT_PEERS, peers)
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

    fn flags(&self) -> Result<BTreeMap<String, String>, StoreError> {
        let read = || -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
            let table = match self.db.begin_read()?.open_table(TABLE) {
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                other => other?,
            };
            let mut found = Vec::new();
            for item in table.range(FLAG_PREFIX..)? {
                let (key, value) = item?;
                let Some(name) = key.value().strip_prefix(FLAG_PREFIX) else {
                    break;
                };
                found.push((name.to_owned(), value.value().to_vec()));
            }
            Ok(found)
        };
        let raw = read().map_err(|error| self.failed(error))?;
        let parse = |(name, value): (String, Vec<u8>)| Ok((name, self.parse(FLAG_PREFIX, &value)?));
        raw.into_iter().map(parse).collect()
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
        let corrupt = |error| StoreError::Corrupt(self.path.clone(), format!("value '{key}': {error}"));
        serde_json::from_slice(raw).map_err(corrupt)
    }

    fn put<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<(), StoreError> {
        let unfit = |error: serde_json::Error| StoreError::Io(self.path.clone(), error.to_string());
        let raw = serde_json::to_vec(value).map_err(unfit)?;
        let write = || -> Result<(), redb::Error> {
            let transaction = self.db.begin_write()?;
            transaction.open_table(TABLE)?.insert(key, raw.as_slice())?;
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
    use crate::ipam::address::{Cidr, Range};
    use crate::ipam::owned::OwnedRecord;
    use crate::ipam::ring::Ring;

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
        Persisted {
            peer: name(1),
            ring,
            owned: vec![OwnedRecord {
                id: "weave:expose".to_owned(),
                is_container: false,
                cidrs: (0..addresses).map(cidr).collect(),
            }],
            voter: None,
        }
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
        store.save_ipam(&state(3)).unwrap();
        store.save_direct_peers(&peers).unwrap();
        store.set_flag("peer-reclaim", "ok").unwrap();
        Stored {
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
            store.save_ipam(&state(n)).unwrap();
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
        store.put(KEY_IPAM, "nonsense").unwrap();
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains(FILE_NAME) && error.contains("'ipam'"), "{error}");
        store.put(KEY_VERSION, &(VERSION + 1)).unwrap();
        drop(store);
        assert!(matches!(Store::open(&path), Err(StoreError::Version(_, 2))));
    }

    #[test]
    fn a_directory_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let error = Store::open(dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::Io(..)), "{error}");
    }
}
