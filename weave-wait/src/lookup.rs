//! From a command's name to its file, with the words of Go's `exec.LookPath`, which people's scripts look for.

use std::ffi::{CString, OsStr};
use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

const NOT_FOUND: &str = "executable file not found in $PATH";

/// The program's file: the name itself if it has a slash, else the first in `$PATH`.
pub(crate) fn look(name: &[u8]) -> Result<CString, String> {
    let failed = |why: &str| format!("exec: {}: {why}", quoted(name));
    if name.contains(&b'/') {
        check(name).map_err(|error| match error {
            Some(error) => failed(&format!(
                "stat {}: {}",
                String::from_utf8_lossy(name),
                text(&error)
            )),
            None => failed("permission denied"),
        })?;
        return CString::new(name).map_err(|_| failed(NOT_FOUND));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = path.as_bytes().split(|b| *b == b':');
    // An empty list has no folder; an empty name in a list is the working directory.
    let folders = folders.filter(|_| !path.is_empty());
    for folder in folders {
        let folder = if folder.is_empty() { b"." } else { folder };
        let file = [folder, b"/", name].concat();
        if check(&file).is_ok()
            && let Ok(file) = CString::new(file)
        {
            return Ok(file);
        }
    }
    Err(failed(NOT_FOUND))
}

/// `Err(None)`: it is there, and no program.
fn check(file: &[u8]) -> Result<(), Option<io::Error>> {
    let meta = std::fs::metadata(Path::new(OsStr::from_bytes(file))).map_err(Some)?;
    if !meta.is_dir() && meta.permissions().mode() & 0o111 != 0 {
        Ok(())
    } else {
        Err(None)
    }
}

/// An error of the system, as Go writes it.
pub(crate) fn text(error: &io::Error) -> String {
    let text = error.to_string();
    // Without Rust's addition, and with a small letter.
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// In quotes, with what is no plain text escaped.
fn quoted(name: &[u8]) -> String {
    let mut quoted = "\"".to_owned();
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => quoted.extend(['\\', c]),
                '\n' => quoted.push_str("\\n"),
                '\r' => quoted.push_str("\\r"),
                '\t' => quoted.push_str("\\t"),
                c if c.is_ascii_control() => {
                    let _ = write!(quoted, "\\x{:02x}", u32::from(c));
                }
                c => quoted.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(quoted, "\\x{byte:02x}");
        }
    }
    quoted.push('"');
    quoted
}
