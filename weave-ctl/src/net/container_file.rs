//! Files on the host that a container sees as its own, through a bind mount: they must be changed in place, for
//! a new file under the same name would not be seen.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// What is longer than this is no file of ours or Docker's, in bytes.
const LONGEST: u64 = 64 * 1024;

/// Reads it.
///
/// # Errors
/// If it is not a plain file of text, too long, or cannot be read.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open(path, false)?.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::other("the file is too long"));
    }
    Ok(text)
}

/// Writes it. Whoever reads meanwhile finds the beginning of the new text, not an empty file.
///
/// # Errors
/// If it is not a plain file, or cannot be written.
pub(super) fn write(path: &Path, text: &str) -> io::Result<Metadata> {
    let mut file = open(path, true)?;
    file.write_all(text.as_bytes())?;
    let end = file.stream_position()?;
    file.set_len(end)?;
    file.metadata()
}

/// Not through a symbolic link, and nothing but a plain file: the folder may be in the hands of others.
fn open(path: &Path, write: bool) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(!write)
        .write(write)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("not a plain file"))
    }
}
