//! Who this peer is: its name, and where that comes from (wire.md 10.1, weakness W24).

use std::io;
use std::path::{Path, PathBuf};

use rand::{Rng, RngExt};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use crate::mesh::name::PeerName;
use crate::store::Identity;

const SALT: &[u8] = b"9oBJ0Jmip-";

/// What a name can be made from; the first that is there counts, in this order.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// `--name`.
    pub given: Option<PeerName>,
    /// The name this host had before.
    pub persisted: Option<PeerName>,
    /// MAC address of the interface `weave`, if that exists.
    pub bridge: Option<[u8; 6]>,
    /// Where `sys` is; `/` but in tests.
    pub root: &'a Path,
    /// The host's file system (`--host-root`); `/` if that is ours.
    pub host_root: &'a Path,
}

/// No name can be found.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A system ID exists but cannot be read.
    #[error("cannot read system ID {}: {source}: run as root, or choose a name with --name", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Chooses our name. It should then be persisted, so that it outlives changes of hardware and image.
pub fn peer_name(sources: &Sources<'_>, rng: &mut impl Rng) -> Result<PeerName, IdentityError> {
    if let Some(name) = sources.given {
        return Ok(name);
    }
    if let Some(name) = sources.persisted {
        return Ok(name);
    }
    if let Some(name) = sources.bridge.and_then(|mac| PeerName::from_bytes(&mac)) {
        info!("peer name {name} taken from the existing bridge");
        return Ok(name);
    }
    let data = system_ids(sources)?;
    if data.trim_ascii().is_empty() {
        let name = name_of(rng.random());
        warn!("All system IDs are blank: using the random peer name {name}; choose one with --name");
        return Ok(name);
    }
    Ok(hash(&data))
}

/// What is to be persisted with `name`: what was `saved` if that is about the same name. `now` in Unix seconds.
#[must_use]
pub fn settled(saved: Option<Identity>, name: PeerName, now: u64, rng: &mut impl Rng) -> Identity {
    let mut identity = saved
        .filter(|saved| saved.name == name)
        .unwrap_or_else(|| Identity::new(name));
    if identity.instance == 0 {
        identity.since = now;
        identity.instance = rng.random_range(1..=u64::MAX);
    }
    identity
}

/// A new, random name, as another peer keeps the one we had: `why`. `now` in Unix seconds.
#[must_use]
pub fn renamed(from: PeerName, why: &str, now: u64, rng: &mut impl Rng) -> Identity {
    let renamed = format!("renamed from {from}: {why}, as clones of one machine have");
    Identity {
        renamed: Some(renamed),
        ..settled(None, name_of(rng.random()), now, rng)
    }
}

/// machine-id, then system UUID, as they are in their files.
fn system_ids(sources: &Sources<'_>) -> Result<Vec<u8>, IdentityError> {
    let first_of = |root: &Path, files: [&str; 2]| {
        for file in files {
            let path = root.join(file);
            match std::fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => return result.map_err(|source| IdentityError::Unreadable { path, source }),
            }
        }
        Ok(Vec::new())
    };
    let mut data = first_of(sources.host_root, ["etc/machine-id", "var/lib/dbus/machine-id"])?;
    let uuids = ["sys/class/dmi/id/product_uuid", "sys/hypervisor/uuid"];
    data.extend(first_of(sources.root, uuids)?);
    Ok(data)
}

fn hash(data: &[u8]) -> PeerName {
    let digest = Sha256::new().chain_update(SALT).chain_update(data).finalize();
    let mut mac = [0; 6];
    mac.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    name_of(mac)
}

/// The MAC made unicast and locally administered; so it is never zero.
fn name_of(mut mac: [u8; 6]) -> PeerName {
    mac[0] = mac[0] & 0xfe | 0x02;
    match PeerName::from_bytes(&mac) {
        Some(name) => name,
        None => unreachable!("bit 1 of {mac:x?} is set"),
    }
}

/// Default nickname: the host name; the peer name if there is none.
#[must_use]
pub fn default_nickname(name: PeerName) -> String {
    let host = nix::unistd::gethostname().ok();
    let host = host.map(|h| h.to_string_lossy().into_owned());
    host.filter(|h| !h.is_empty()).unwrap_or_else(|| name.to_string())
}

/// A new UID for this process: never zero (wire.md 1.2).
#[must_use]
pub fn new_uid(rng: &mut impl Rng) -> u64 {
    rng.random_range(1..=u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const MACHINE: &str = "0123456789abcdef0123456789abcdef\n";
    const UUID: &str = "564D9B1C-0F2A-4E3C-9A1B-112233445566\n";

    /// A file system with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        dir
    }

    fn sources(root: &Path) -> Sources<'_> {
        Sources {
            given: None,
            persisted: None,
            bridge: None,
            root,
            host_root: root,
        }
    }

    fn derived(files: &[(&str, &str)]) -> String {
        let dir = root(files);
        let name = peer_name(&sources(dir.path()), &mut StdRng::seed_from_u64(1));
        name.unwrap().to_string()
    }

    #[test]
    fn vectors() {
        assert_eq!(hash(MACHINE.as_bytes()).to_string(), "0a:39:ab:6e:42:c6");
        assert_eq!(hash(b"").to_string(), "d2:f6:2a:51:2b:8e");
        assert_eq!(hash(UUID.as_bytes()).to_string(), "f6:d5:8f:0a:75:fe");
        let (product, hypervisor) = ("sys/class/dmi/id/product_uuid", "sys/hypervisor/uuid");
        let both = "be:09:0b:d6:df:e7";
        assert_eq!(derived(&[("etc/machine-id", MACHINE), (product, UUID)]), both);
        assert_eq!(
            derived(&[("var/lib/dbus/machine-id", MACHINE), (hypervisor, UUID)]),
            both
        );
        let all = [
            ("etc/machine-id", MACHINE),
            ("var/lib/dbus/machine-id", "other"),
            (product, "EC2F4A6B-1111-2222-3333-444455556666\n"),
            (hypervisor, "other"),
        ];
        assert_eq!(derived(&all), "3e:8a:00:dd:5e:3f");
        assert_eq!(derived(&[("etc/machine-id", MACHINE)]), "0a:39:ab:6e:42:c6");
        assert_eq!(derived(&[(product, UUID)]), "f6:d5:8f:0a:75:fe");
    }

    #[test]
    fn order_of_sources() {
        let dir = root(&[("etc/machine-id", MACHINE)]);
        let mut rng = StdRng::seed_from_u64(1);
        let mut sources = sources(dir.path());
        let mut name = |s: &Sources<'_>| peer_name(s, &mut rng).map(|n| n.to_string()).unwrap();
        assert_eq!(name(&sources), "0a:39:ab:6e:42:c6");
        sources.bridge = Some([2, 0, 0, 0, 0, 1]);
        assert_eq!(name(&sources), "02:00:00:00:00:01");
        sources.persisted = PeerName::from_u64(0x77);
        assert_eq!(name(&sources), "00:00:00:00:00:77");
        sources.given = PeerName::from_u64(1);
        assert_eq!(name(&sources), "00:00:00:00:00:01");
    }

    #[test]
    fn blank_ids_give_a_random_name() {
        let dir = root(&[("etc/machine-id", "\n")]);
        let mut rng = StdRng::seed_from_u64(1);
        let mut name = || peer_name(&sources(dir.path()), &mut rng).unwrap();
        let (first, second) = (name(), name());
        assert_ne!(first, second);
        assert_eq!(first.to_bytes()[0] & 3, 2);
    }

    #[test]
    fn an_unreadable_id_is_named() {
        let dir = root(&[("etc/machine-id/a-directory", "")]);
        let error = peer_name(&sources(dir.path()), &mut StdRng::seed_from_u64(1)).unwrap_err();
        assert!(error.to_string().contains("etc/machine-id: "), "{error}");
    }

    #[test]
    fn the_name_stays_when_the_machine_changes() {
        let mut rng = StdRng::seed_from_u64(1);
        let before = root(&[("etc/machine-id", MACHINE)]);
        let name = peer_name(&sources(before.path()), &mut rng).unwrap();
        let saved = settled(None, name, 1000, &mut rng);
        assert_eq!((saved.name, saved.since, saved.short_id), (name, 1000, None));
        let after = root(&[("etc/machine-id", "another\n"), ("sys/hypervisor/uuid", UUID)]);
        let mut sources = sources(after.path());
        sources.persisted = Some(saved.name);
        let again = peer_name(&sources, &mut rng).unwrap();
        assert_eq!(settled(Some(saved.clone()), again, 2000, &mut rng), saved);
        // Written by a release that kept the name only.
        let old = Identity::new(name);
        let known = settled(Some(old), name, 2000, &mut rng);
        assert_eq!((known.name, known.since), (name, 2000));
        assert_ne!((known.instance, saved.instance), (0, known.instance));
        let other = PeerName::from_u64(1).unwrap();
        let chosen = settled(Some(saved.clone()), other, 3000, &mut rng);
        assert_eq!((chosen.name, chosen.since), (other, 3000));
        assert_ne!(chosen.instance, saved.instance);
    }

    #[test]
    fn a_clone_takes_a_random_name() {
        let mut rng = StdRng::seed_from_u64(1);
        let old = PeerName::from_u64(0x77).unwrap();
        let [one, other] = [1, 2].map(|now| renamed(old, "host b had it", now, &mut rng));
        assert!(one.name != old && one.name != other.name && one.instance != other.instance);
        assert_eq!((one.since, one.name.to_bytes()[0] & 3), (1, 2));
        let why = one.renamed.unwrap();
        assert!(
            why.starts_with("renamed from 00:00:00:00:00:77: host b had it"),
            "{why}"
        );
    }

    #[test]
    fn nickname_and_uid() {
        let name = PeerName::from_u64(1).unwrap();
        assert!(!default_nickname(name).is_empty());
        let mut rng = StdRng::seed_from_u64(1);
        assert_ne!(new_uid(&mut rng), new_uid(&mut rng));
    }
}
