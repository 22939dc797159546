//! Mounted at `/w` into containers and run as their first program: waits until the container's interface is up,
//! then becomes the command that follows (control.md 4.4).
//!
//! It runs in images without anything, as any user, on a read-only file system, so it is static and asks the
//! kernel only. What it waits for is told by the file `way` in its own folder: `nomcast`, `noop`, or no file.

#![no_main]

mod lookup;
mod network;
mod signals;

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use network::Network;

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// What to wait for.
#[derive(PartialEq, Eq)]
enum Way {
    /// The interface, then a multicast route: the last that is done to it.
    Wait,
    /// The interface.
    WithoutMulticast,
    /// Nothing.
    Nothing,
}

/// Without Rust's own preparations, which the command would inherit: `SIGPIPE` ignored, files opened.
#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let given = usize::try_from(argc).unwrap_or(0);
    // SAFETY: the C library gives `argc` strings that live as long as the process.
    let args: Vec<&CStr> = (0..given)
        .map(|n| unsafe { CStr::from_ptr(*argv.add(n)) })
        .collect();
    let (own, command) = match args.split_first() {
        Some((own, command)) => (own.to_bytes(), command),
        None => (&b""[..], &[][..]),
    };
    let Some(name) = command.first() else {
        return fail("No command specified");
    };
    if let Err(error) = wait(&way(own)) {
        return fail(&error);
    }
    let program = match lookup::look(name.to_bytes()) {
        Ok(program) => program,
        Err(error) => return fail(&error),
    };
    // SAFETY: `argv` ends with a null pointer, so there is one more than `argc`, and `argc` is at least 2; both
    // lists are the C library's own.
    unsafe {
        libc::execve(program.as_ptr(), argv.add(1), environ);
    }
    fail(&lookup::text(&std::io::Error::last_os_error()))
}

/// From the folder that this program was called in.
fn way(own: &[u8]) -> Way {
    let folder = Path::new(OsStr::from_bytes(own)).parent();
    let way = std::fs::read(folder.unwrap_or(Path::new("/w")).join("way"));
    match way.as_deref().map(<[u8]>::trim_ascii) {
        Ok(b"nomcast") => Way::WithoutMulticast,
        Ok(b"noop") => Way::Nothing,
        _ => Way::Wait,
    }
}

fn wait(way: &Way) -> Result<(), String> {
    if *way == Way::Nothing {
        return Ok(());
    }
    signals::end_when_told();
    // Subscribed before looking, so that no change is missed.
    let network = Network::subscribe().map_err(|e| format!("cannot watch the network: {e}"))?;
    loop {
        let is_ready =
            network::is_up() && (*way == Way::WithoutMulticast || network.has_multicast_route()?);
        if is_ready {
            return Ok(());
        }
        network.changed()?;
    }
}

fn fail(text: &str) -> c_int {
    // There is nobody to tell otherwise.
    let _ = writeln!(std::io::stderr(), "{text}");
    1
}
