//! Debian's docker-py through the proxy, as the original's suite had it (cli.md 8.5: 601 to 604): the same script at the
//! engine itself and at the proxy, with the same outcomes.

use std::path::Path;

use anyhow::{Result, ensure};
use weave_tests::case::Unsupported;
use weave_tests::lab::{Host, Lab, Plan};
use weave_tests::process::{self, LIMIT};
use weave_tests::proxied::World;

const PYTHON: &str = "/usr/bin/python3";
/// Of the package python3-docker.
const LIBRARY: &str = "/usr/lib/python3/dist-packages/docker/__init__.py";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/docker_py.py");

/// What the script says with its client at that socket.
fn outcomes(host: &Host, socket: &Path, more: &[&str]) -> Result<String> {
    let mut command = host.command(PYTHON)?;
    command
        .arg(SCRIPT)
        .arg(format!("unix://{}", socket.display()))
        .args(more);
    process::run(&mut command, 3 * LIMIT)?.ok()
}

#[test]
fn docker_py() {
    Plan::mesh(1).test("dockerpy", |lab: &Lab| {
        if ![PYTHON, LIBRARY].iter().all(|file| Path::new(file).exists()) {
            return Err(Unsupported::new("needs python3-docker").into());
        }
        let host = lab.host(1)?;
        let world = World::start(host)?;
        let alone = outcomes(host, &world.files()?.join("docker.sock"), &[])?;
        ensure!(alone.lines().count() > 25, "{alone}");
        world.launch(&[])?;
        let proxied = outcomes(host, &world.socket(), &["attached"])?;
        ensure!(
            proxied == alone,
            "through the proxy:\n{proxied}\nwithout it:\n{alone}"
        );
        Ok(())
    });
}
