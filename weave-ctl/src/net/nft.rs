//! The programs that change the kernel's packet filter: each call is one transaction, of tables and chains of our
//! own.

use std::io::{self, ErrorKind, Write as _};
use std::process::{Command, Stdio};

use super::{NetError, Netns};

/// Gives the script to `nft` inside the namespace.
pub(super) async fn run(ns: &Netns, script: String) -> Result<(), NetError> {
    call(ns, "nft", &["-f", "-"], script).await.map(drop)
}

/// Runs a program of Debian's package `nftables` or `iptables` inside the namespace; what it prints.
pub(super) async fn call(
    ns: &Netns,
    program: &'static str,
    args: &[&str],
    input: String,
) -> Result<String, NetError> {
    let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    let done = ns.run(move || spawn(program, &args, &input)).await?;
    done.map_err(|source| match source.kind() {
        ErrorKind::NotFound => NetError::NoProgram(program),
        _ => NetError::kernel(format!("change the packet filter with {program}"), source),
    })
}

/// A table of the IPv4 family that may be there or not, as a script that leaves it away.
pub(super) fn without(table: &str) -> String {
    format!("add table ip {table}\ndelete table ip {table}\n")
}

/// Only such names are safe inside a script.
pub(super) fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn spawn(program: &str, args: &[String], input: &str) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let out = child.wait_with_output()?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(io::Error::other(
        String::from_utf8_lossy(&out.stderr).trim().to_owned(),
    ))
}
