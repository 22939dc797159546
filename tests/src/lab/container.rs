//! A container on a host of a lab.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::netns;
use crate::process::{self, Background, Output};

/// A container: a network namespace, as any runtime would make it.
#[derive(Debug, Clone)]
pub struct Container {
    netns: String,
}

impl Container {
    pub(super) fn new(netns: String) -> Self {
        Self { netns }
    }

    /// Name of the network namespace.
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// How `weave-ctl` is told about it.
    pub fn id(&self) -> String {
        format!("netns:{}", self.netns)
    }

    /// A command that will run in this container.
    ///
    /// # Errors
    /// If the namespace is gone.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(program);
        netns::enter(&mut command, &self.netns)?;
        Ok(command)
    }

    /// Runs a program in this container to its end.
    ///
    /// # Errors
    /// If it cannot be started or hangs; a failing program is no error here.
    pub fn exec(&self, args: &[&str]) -> Result<Output> {
        netns::run_in(&self.netns, args)
    }

    /// Starts a program in this container in the background.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, args: &[&str]) -> Result<Background> {
        let (program, args) = args.split_first().context("no command given")?;
        Background::start(self.command(program)?.args(args))
    }

    /// Waits until one ping to `target` is answered.
    ///
    /// # Errors
    /// If none is for a long time.
    pub fn wait_ping(&self, target: Ipv4Addr) -> Result<()> {
        process::wait_for(
            &format!("an answer from {target}"),
            Duration::from_secs(60),
            || {
                self.exec(&["ping", "-n", "-c", "1", "-W", "1", &target.to_string()])?
                    .ok()
                    .map(Some)
            },
        )
        .map(drop)
    }

    /// Checks that `target` does not answer three pings.
    ///
    /// # Errors
    /// If it does.
    pub fn no_ping(&self, target: Ipv4Addr) -> Result<()> {
        let output = self.exec(&[
            "ping",
            "-n",
            "-c",
            "3",
            "-i",
            "0.2",
            "-W",
            "1",
            &target.to_string(),
        ])?;
        ensure!(!output.success(), "an answer that must not come: {output}");
        Ok(())
    }
}
