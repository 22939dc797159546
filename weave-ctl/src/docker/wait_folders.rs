//! The folders that are mounted at `/w` into containers, each with the wait helper (control.md 4.4).
//!
//! They are in the data directory, not below /run: containers name them for all their life, Docker starts
//! containers before us when the host boots, and /run may forbid programs.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::artifact;

/// File name of the helper, beside the BPF object.
pub const FILE_NAME: &str = "weave-wait";
/// Below the data directory.
const FOLDER: &str = "wait";
/// The helper's name in each folder.
const PROGRAM: &str = "w";
/// Beside it: what to wait for, unless for everything.
const WAY: &str = "way";
/// The interface is enough.
const NO_MULTICAST: &str = "nomcast";

/// Folders on the host, to be mounted read-only at `/w`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitFolders {
    /// Waits for the interface and for the multicast route, if containers get one now.
    pub wait: PathBuf,
    /// Waits for the interface only.
    pub wait_nomcast: PathBuf,
    /// Waits for nothing.
    pub noop: PathBuf,
}

impl WaitFolders {
    /// Where they are, whether they exist or not.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        let folder = |name| data_dir.join(FOLDER).join(name);
        Self {
            wait: folder("w"),
            wait_nomcast: folder("w-nomcast"),
            noop: folder("w-noop"),
        }
    }

    /// Makes them, with the helper that belongs to this program. What starts meanwhile finds the old helper or
    /// the new one. `multicast`: containers get a route for it, also those that were made when they got none, and the
    /// other way round.
    ///
    /// # Errors
    /// If there is no helper, or a file cannot be written; the text says which.
    pub fn prepare(data_dir: &Path, multicast: bool) -> io::Result<Self> {
        let helper = artifact::find(FILE_NAME, "WEAVE_WAIT_HELPER").map_err(io::Error::other)?;
        Self::prepare_from(&helper, data_dir, multicast)
    }

    fn prepare_from(helper: &Path, data_dir: &Path, multicast: bool) -> io::Result<Self> {
        let program = fs::read(helper).map_err(|e| at(helper, &e))?;
        let folders = Self::of(data_dir);
        let ways = [
            (&folders.wait, (!multicast).then_some(NO_MULTICAST)),
            (&folders.wait_nomcast, Some(NO_MULTICAST)),
            (&folders.noop, Some("noop")),
        ];
        for (folder, way) in ways {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
            // Whatever the umask is.
            let opened = made.and_then(|()| fs::set_permissions(folder, fs::Permissions::from_mode(0o755)));
            opened.map_err(|e| at(folder, &e))?;
            match way {
                Some(way) => replace(&folder.join(WAY), way.as_bytes(), 0o444)?,
                None => remove(&folder.join(WAY))?,
            }
            replace(&folder.join(PROGRAM), &program, 0o555)?;
        }
        // A container's root that is not the host's must get through to them. It cannot list what is there.
        for folder in [data_dir.to_owned(), data_dir.join(FOLDER)] {
            let mode = fs::metadata(&folder)
                .map_err(|e| at(&folder, &e))?
                .permissions()
                .mode();
            let open = fs::Permissions::from_mode(mode | 0o011);
            fs::set_permissions(&folder, open).map_err(|e| at(&folder, &e))?;
        }
        Ok(folders)
    }

    /// Where all of them are, to be removed.
    #[must_use]
    pub fn root(data_dir: &Path) -> PathBuf {
        data_dir.join(FOLDER)
    }
}

/// A file that is what it was keeps its place: running containers share it.
fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let same = fs::read(path).is_ok_and(|old| old == content);
    if same && fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o777 == mode) {
        return Ok(());
    }
    let new = path.with_extension("new");
    let written = fs::write(&new, content)
        .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&new, path));
    written.map_err(|e| at(path, &e))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path, &error)),
        _ => Ok(()),
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn made_once_and_replaced_at_an_upgrade() {
        let dir = tempfile::tempdir().unwrap();
        let (helper, data) = (dir.path().join("helper"), dir.path().join("data"));
        fs::write(&helper, "one").unwrap();
        DirBuilder::new().mode(0o700).create(&data).unwrap();
        let folders = WaitFolders::prepare_from(&helper, &data, true).unwrap();
        let inode = |folder: &Path| fs::metadata(folder.join("w")).unwrap().ino();
        let before = inode(&folders.wait);
        assert_eq!(WaitFolders::prepare_from(&helper, &data, true).unwrap(), folders);
        assert_eq!(inode(&folders.wait), before, "the same helper in another file");

        fs::write(&helper, "two").unwrap();
        WaitFolders::prepare_from(&helper, &data, true).unwrap();
        for (folder, way) in [
            (&folders.wait, None),
            (&folders.wait_nomcast, Some("nomcast")),
            (&folders.noop, Some("noop")),
        ] {
            assert_eq!(fs::read(folder.join("w")).unwrap(), b"two");
            assert_eq!(fs::read_to_string(folder.join("way")).ok().as_deref(), way);
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(folder), mode(&folder.join("w"))), (0o755, 0o555));
            assert_eq!(mode(&data), 0o711, "others get through, and see nothing");
            let files = fs::read_dir(folder).unwrap().count();
            assert_eq!(files, 1 + usize::from(way.is_some()), "left over in {folder:?}");
        }
        // Those that have it mounted follow the option.
        let way = || fs::read_to_string(folders.wait.join("way")).ok();
        WaitFolders::prepare_from(&helper, &data, false).unwrap();
        assert_eq!(way().as_deref(), Some("nomcast"));
        WaitFolders::prepare_from(&helper, &data, true).unwrap();
        assert_eq!(way(), None);
    }

    #[test]
    fn without_a_helper_the_error_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = WaitFolders::prepare_from(&dir.path().join("none"), dir.path(), true).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
    }
}
