//! Where the password comes from, and how it gets to the daemon without being seen (cli.md 4.3).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, PipeReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use zeroize::Zeroizing;

use super::flags::LaunchArgs;
use super::options::fatal;
use crate::cli::env::PASSWORD;
use crate::cli::{Env, Failure, note};
use crate::mesh::crypto::Password;

/// What the daemon reads its password from.
pub(super) const STDIN: &str = "/dev/stdin";
/// Longest password in bytes: with a newline it fits into every pipe, before anybody reads.
const LONGEST: usize = 4095;

/// The option, else the file, else the variable; nothing if it is empty.
pub(super) fn choose(args: &LaunchArgs, env: &Env) -> Result<Option<Password>, Failure> {
    // Whatever follows a peer is taken for a peer, would be looked up, and be printed as unknown.
    if args.peers.iter().any(|peer| holds_password(peer)) {
        return Err(fatal(
            "--password and --password-file must come before the peers.",
        ));
    }
    let password = match (&args.password, &args.password_file) {
        (Some(_), Some(_)) => {
            return Err(fatal(
                "--password and --password-file were both given: leave one of them out.",
            ));
        }
        (Some(password), None) => password.clone(),
        (None, Some(file)) => read(file)?,
        (None, None) => env.password.clone(),
    };
    // How arguments look that are no text.
    if args.password.is_some() && password.as_bytes().windows(3).any(|c| c == "\u{fffd}".as_bytes()) {
        return Err(fatal(
            "--password must be UTF-8 text: put other passwords into a file for --password-file.",
        ));
    }
    if password.as_bytes().len() > LONGEST {
        return Err(fatal(format!(
            "the password is longer than {LONGEST} bytes: choose a shorter one."
        )));
    }
    Ok(Some(password).filter(|password| !password.is_empty()))
}

fn read(path: &Path) -> Result<Password, Failure> {
    let shown = path.display();
    let failed = |e: io::Error| fatal(format!("cannot read the password from {shown}: {e}"));
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_file() && metadata.permissions().mode() & 0o006 != 0 {
        note(&format!(
            "WARNING: {shown} is open to all users of this host: run 'chmod 600 {shown}'."
        ));
    }
    // Room for all that may come: nothing is left behind by a buffer that had to move.
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 * LONGEST));
    let most = LONGEST as u64 + 2;
    file.take(most).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.is_empty() {
        return Err(fatal(format!(
            "the password file {shown} is empty: write the password into it, or leave out --password-file."
        )));
    }
    Ok(Password::new(std::mem::take(&mut bytes)))
}

/// Shorter passwords can be found by trying, as can those of few different characters.
const ENOUGH_BYTES: usize = 16;
const ENOUGH_DIFFERENT: usize = 8;

/// What to tell whoever chose a password that an attacker may guess: whoever sits between two hosts can try as
/// many as he likes, without anybody noticing (wire.md W7).
pub(super) fn weakness(password: &Password) -> Option<&'static str> {
    let bytes = password.as_bytes();
    let different: BTreeSet<&u8> = bytes.iter().collect();
    (bytes.len() < ENOUGH_BYTES || different.len() < ENOUGH_DIFFERENT).then_some(
        "WARNING: the password is weak: whoever can intercept a connection between hosts may find it by \
         trying. Make one with 'openssl rand -base64 24' and use it on all hosts.",
    )
}

/// A pipe with the password in it, for [`STDIN`].
pub(super) fn pipe(password: &Password) -> io::Result<PipeReader> {
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(password.as_bytes())?;
    writer.write_all(b"\n")?;
    Ok(reader)
}

/// Can others see the password of this very process?
pub(super) fn exposed(words: &[String]) -> bool {
    let variable = std::env::var_os(PASSWORD).is_some_and(|password| !password.is_empty());
    variable || words.iter().any(|word| name(word) == Some("password"))
}

/// The arguments without the options that tell of a password.
pub(super) fn without(words: &[String]) -> Vec<&String> {
    let mut kept = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if !holds_password(word) {
            kept.push(word);
        } else if !word.contains('=') {
            words.next();
        }
    }
    kept
}

fn holds_password(word: &str) -> bool {
    matches!(name(word), Some("password" | "password-file"))
}

/// Of an option, in its old form with one dash as well.
fn name(word: &str) -> Option<&str> {
    let option = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    option.split('=').next()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::super::tests::words;
    use super::*;

    #[test]
    fn the_daemon_is_not_started_with_it() {
        let without = |text: &str| {
            let words = words(text);
            without(&words).into_iter().cloned().collect::<Vec<_>>().join(" ")
        };
        for (given, kept) in [
            ("--port 1 --password geheim a b", "--port 1 a b"),
            ("-password geheim --port 1 a", "--port 1 a"),
            ("--password=geheim -password=geheim a", "a"),
            ("--password --geheim a", "a"),
            ("--password-file /f --resume", "--resume"),
            ("--password-file=/f a", "a"),
            ("--password", ""),
            ("--name ::1 a", "--name ::1 a"),
        ] {
            assert_eq!(without(given), kept, "{given}");
        }
        assert!(exposed(&words("launch --password geheim")));
        assert!(exposed(&words("launch -password=geheim")));
        assert!(!exposed(&words("launch --password-file f")));
    }

    #[test]
    fn weak_passwords() {
        for (text, weak) in [
            ("wombat", true),
            ("Tr0ub4dor&3", true),
            ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", true),
            ("abababab12121212", true),
            ("correct horse battery staple", false),
            ("Jx0bVb0fRGDhT7q1y9Z5nG0c8mWkqvuE", false),
        ] {
            assert_eq!(weakness(&text.parse().unwrap()).is_some(), weak, "{text}");
        }
    }

    #[test]
    fn through_the_pipe() {
        for bytes in [b"x\n".to_vec(), vec![0xff, 0], vec![b'y'; LONGEST]] {
            let password = Password::new(bytes);
            let mut reader = pipe(&password).unwrap();
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            assert_eq!(read.strip_suffix(b"\n").unwrap(), password.as_bytes());
        }
    }
}
