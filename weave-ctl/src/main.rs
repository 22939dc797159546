//! `weave-ctl`, also called `weave`: the command and the daemon.

use std::process::ExitCode;

fn main() -> ExitCode {
    weave_ctl::cli::main(std::env::args_os())
}
